"""GM-15: how a rank's gradient agrees with the others', by the ranks themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from workers.coherence import agreement
from workers.coherence.agreement import EVERY, Agreement

SIZES = (3000, 17, 5000)


def looked_at(
    gradients: list[list[Tensor]], shares: list[float], step: int = EVERY, sizes: tuple[int, ...] = SIZES
) -> list[Agreement]:
    """One step of ranks with these mean gradients, by bucket."""
    ranks = [Agreement(sizes, seed=3) for _ in gradients]
    total = torch.zeros(1024)
    for rank, buckets, share in zip(ranks, gradients, shares, strict=True):
        rank.begin(step)
        for bucket, gradient in enumerate(buckets):
            rank.add(bucket, share * gradient)
        total += rank.collect()
    for rank, share in zip(ranks, shares, strict=True):
        rank.end(total, share)
    return ranks


def random_gradients(count: int, common: float, seed: int = 0) -> list[list[Tensor]]:
    """With a part that is the same for all."""
    chance = torch.Generator().manual_seed(seed)
    shared = [torch.randn(size, generator=chance) for size in SIZES]
    return [[common * s + torch.randn(len(s), generator=chance) for s in shared] for _ in range(count)]


def flat(buckets: list[Tensor]) -> Tensor:
    return torch.cat(buckets)


def test_gm15_cosine_and_norm_are_about_those_of_the_gradients_themselves() -> None:
    gradients, shares = random_gradients(4, 1.0), [0.4, 0.3, 0.2, 0.1]
    for index, rank in enumerate(looked_at(gradients, shares)):
        each = [share * flat(gradient) for gradient, share in zip(gradients, shares, strict=True)]
        others = torch.stack(each[:index] + each[index + 1 :]).sum(0)
        exact = float(torch.cosine_similarity(flat(gradients[index]), others, dim=0))
        assert rank.cosine == pytest.approx(exact, abs=4 / math.sqrt(1024))
        assert rank.norm == pytest.approx(float(flat(gradients[index]).norm()), rel=0.1)


def test_gm15_a_rank_that_goes_the_other_way_stands_out() -> None:
    gradients = random_gradients(8, 2.0)
    gradients[5] = [-gradient for gradient in gradients[5]]
    ranks = looked_at(gradients, [1 / 8] * 8)
    assert ranks[5].cosine < -0.7 and all(rank.cosine > 0.7 for i, rank in enumerate(ranks) if i != 5)
    gradients = random_gradients(8, 2.0)
    gradients[2] = [20 * gradient for gradient in gradients[2]]
    norms = [rank.norm for rank in looked_at(gradients, [1 / 8] * 8)]
    assert norms[2] > 15 * max(norm for i, norm in enumerate(norms) if i != 2)


def test_gm15_a_large_gradient_is_looked_at_in_parts_that_cover_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "MOST_ELEMENTS", sum(SIZES) // 4)
    rank = Agreement(SIZES, seed=3)
    seen = [torch.zeros(size, dtype=torch.bool) for size in SIZES]
    for turn in range(5):
        rank._at = turn * EVERY
        parts = [rank._part(bucket) for bucket in range(len(SIZES))]
        assert sum(part.stop - part.start for part in parts) <= sum(SIZES) // 4 + len(SIZES)
        for mask, part in zip(seen, parts, strict=True):
            mask[part] = True
    assert all(bool(mask.all()) for mask in seen)
    gradients = random_gradients(2, 1.0)
    ranks = looked_at(gradients, [0.5, 0.5])
    assert ranks[0].norm == pytest.approx(float(flat(gradients[0]).norm()), rel=0.15)
    assert ranks[0].cosine == pytest.approx(0.5, abs=0.15)


def test_gm15_who_is_alone_or_has_no_samples_agrees_with_nobody() -> None:
    (alone,) = looked_at(random_gradients(1, 1.0), [1.0])
    assert math.isnan(alone.cosine) and alone.norm > 0
    _, idle = looked_at(random_gradients(2, 1.0), [1.0, 0.0])
    assert math.isnan(idle.cosine) and math.isnan(idle.norm)


def test_gm15_all_ranks_look_in_the_same_steps() -> None:
    assert [step for step in range(1, 41) if Agreement.is_due(step)] == [10, 20, 30, 40]
