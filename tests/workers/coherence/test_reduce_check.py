"""GM-16: wrong sums are found, and whose they are; right ones are not taken for wrong."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from workers.coherence.reduce_check import NOBODY, TILE, Piece, ReduceCheck

SIZE = 3 * TILE + 1000
MEMBERS = 4
OWNED: list[Piece] = [(i * SIZE // MEMBERS, (i + 1) * SIZE // MEMBERS, i) for i in range(MEMBERS)]


def checked(
    gradients: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor], total: Tensor, pieces: list[Piece]
) -> list[int]:
    """What the last member finds, as all do."""
    members = len(gradients)
    checks = [ReduceCheck(7) for _ in gradients]
    claims = []
    for check, gradient, owed, owes in zip(checks, gradients, before, after, strict=True):
        check.begin(members)
        check.put_in(0, pieces, gradient)
        check.put_in(0, pieces, owed)
        check.left_out(0, pieces, owes)
        check.came_out(0, pieces, total)
        claims.append(check.claims)
    found = [check.wrong(torch.stack(claims).sum(0)) for check in checks]
    assert all(each == found[0] for each in found)
    return found[0]


def vectors(seed: int, scale: float = 1.0, count: int = MEMBERS) -> list[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(SIZE, generator=chance) * scale for _ in range(count)]


def right(gradients: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    return (sum(gradients) + sum(before) - sum(after)).float()  # type: ignore[union-attr]


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
@pytest.mark.parametrize("seed", range(10))
def test_gm16_a_right_sum_is_right_whatever_is_owed(seed: int, scale: float) -> None:
    gradients, before, after = vectors(seed, scale), vectors(seed + 100, scale), vectors(seed + 200, 3 * scale)
    assert checked(gradients, before, after, right(gradients, before, after), OWNED) == []


@pytest.mark.parametrize("owner", range(MEMBERS))
def test_gm16_one_element_that_is_added_up_wrongly_names_its_owner(owner: int) -> None:
    gradients, before, after = vectors(1), vectors(2), vectors(3)
    total = right(gradients, before, after)
    first, _, _ = OWNED[owner]
    total[first] += 100.0
    assert checked(gradients, before, after, total, OWNED) == [owner]


def test_gm16_a_contribution_that_one_owner_leaves_out_names_it() -> None:
    gradients, nothing = vectors(1), [torch.zeros(SIZE)] * MEMBERS
    total = right(gradients, nothing, nothing)
    first, last, _ = OWNED[2]
    total[first:last] -= gradients[0][first:last]
    assert checked(gradients, nothing, nothing, total, OWNED) == [2]


def test_gm16_a_rank_that_sends_something_else_than_it_says_spoils_all_pieces() -> None:
    gradients, nothing = vectors(1), [torch.zeros(SIZE)] * MEMBERS
    total = right(gradients, nothing, nothing) + vectors(9)[0]
    assert checked(gradients, nothing, nothing, total, OWNED) == list(range(MEMBERS))


def test_gm16_of_a_ring_nobody_is_the_owner() -> None:
    gradients, nothing = vectors(1), [torch.zeros(SIZE)] * MEMBERS
    total = right(gradients, nothing, nothing)
    total[5] = 1e6
    assert checked(gradients, nothing, nothing, total, [(0, SIZE, NOBODY)]) == [NOBODY]


def test_gm16_a_sum_that_is_not_finite_is_wrong() -> None:
    gradients, nothing = vectors(1), [torch.zeros(SIZE)] * MEMBERS
    total = right(gradients, nothing, nothing)
    total[-1] = torch.nan
    assert checked(gradients, nothing, nothing, total, OWNED) == [MEMBERS - 1]


def test_gm16_parts_of_a_bucket_count_where_they_lie() -> None:
    """A residual is kept for a shard, which begins anywhere."""
    gradients, after = vectors(1), [torch.zeros(SIZE) for _ in range(MEMBERS)]
    owed = [torch.zeros(SIZE) for _ in range(MEMBERS)]
    total = right(gradients, owed, after)
    shard = torch.randn(5000)
    total[TILE - 2000 : TILE + 3000] += shard
    check, others = ReduceCheck(7), []
    for gradient in gradients:
        check = ReduceCheck(7)
        check.begin(MEMBERS)
        check.put_in(0, OWNED, gradient)
        check.came_out(0, OWNED, total)
        others.append(check)
    check.put_in(0, OWNED, shard, start=TILE - 2000)
    assert check.wrong(torch.stack([each.claims for each in others]).sum(0)) == []
