"""CC-1, CC-4, CC-10 to CC-13, CC-17 with groups of hosts: what is summed, owed, sent, and told to the controller."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.workers.collectives.gangs import Gang, each_over, never
from tests.workers.collectives.test_reducer import (
    CHOICES,
    PLAN,
    WITHOUT_LOSS,
    always,
    compressions,
    count_of_transfers_that_go_both_ways,
    flat,
    gradients,
    owed,
    reduce,
    same_bits,
    sums_are_those_of_float64,
    velocity,
)
from workers.collectives.exchange import INSIDE, PHASES, FlatExchange, Underway
from workers.collectives.links import FRAME_BYTES
from workers.compression.choice import Choice, Plan
from workers.compression.config import CompressionConfig
from workers.compression.gradients import GradientCompression
from workers.compression.setup import compression_of

SHAPES = [([2, 1, 3], "aab"), ([1, 1, 1, 1], "abab"), ([2, 2, 1, 1], "aabc")]
"""Ranks on each host, and the group of each: uneven, in any order, of one host, of one rank."""

ROUNDED = 2e-6


def zeros(count: int) -> Iterator[Tensor]:
    return (torch.zeros(sum(PLAN.gradient_sizes), dtype=torch.float64) for _ in range(count))


@pytest.mark.parametrize(("choice", "shape", "groups"), each_over(CHOICES, *SHAPES))
def test_cc4_all_ranks_of_all_groups_get_the_same_bits_and_owe_the_rest(
    store: str, tmp_path: Path, choice: str, shape: list[int], groups: str
) -> None:
    """CC-10's invariant over the sum, and that of what is exact."""
    world = sum(shape)
    gang = Gang(store, tmp_path, shape, compressions(world, always(choice)), groups=groups)
    applied, given, moved = zeros(3)
    for step in range(5):
        rows = reduce(gang, step)
        same_bits(rows)
        each = [flat(gradients(rank, step)) for rank in range(world)]
        applied += flat(rows[0])
        given += torch.stack(each).sum(0)
        moved += torch.stack(each).abs().sum(0)
        assert float((applied + owed(gang.compressions) - given).abs().max()) <= ROUNDED * float(moved.max())
        tails = sum(gradients(rank, step).tail.double() for rank in range(world))
        assert torch.allclose(rows[0].tail.double(), torch.as_tensor(tails), atol=1e-5)
    assert bool(owed(gang.compressions).any()) == (choice not in WITHOUT_LOSS)
    assert bool(applied.any())


def test_gm2_the_sum_over_uneven_groups_is_that_of_all_ranks_and_no_mean_of_means(store: str, tmp_path: Path) -> None:
    """Ranks send n_r · g_r / Σ n (EP-6): what a group of three adds up weighs three times that of a group of one."""
    gang = Gang(store, tmp_path, [1, 1, 1, 1], compressions(4, always("none")), groups="aaab")
    rows = reduce(gang, 0)
    same_bits(rows)
    each = torch.stack([flat(gradients(rank, 0)) for rank in range(4)])
    largest = float(each.abs().sum(0).max())
    mean_of_means = 4 * (each[:3].mean(0) + each[3]) / 2
    assert float((flat(rows[0]) - each.sum(0)).abs().max()) <= ROUNDED * largest
    assert float((flat(rows[0]) - mean_of_means).abs().max()) > 0.1 * largest


@pytest.mark.parametrize("choice", ["none", "int8"])
def test_cc4_large_lanes_go_both_ways_between_groups_and_inside(
    store: str, tmp_path: Path, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = count_of_transfers_that_go_both_ways(monkeypatch)
    test_cc4_all_ranks_of_all_groups_get_the_same_bits_and_owe_the_rest(store, tmp_path, choice, [2, 1, 1], "aab")
    assert parted


@pytest.mark.parametrize("choice", CHOICES)
def test_cc10_cc12_nothing_is_lost_where_groups_change(store: str, tmp_path: Path, choice: str) -> None:
    """Steps on changing hosts in changing groups, some discarded; a leaver's residual goes to a survivor."""
    applied, given, moved = zeros(3)
    each = compressions(4, always(choice))
    step = 0
    stretches = [([1, 1, 2], "aab"), ([1, 1, 2], "abb"), ([2, 1], "aa"), ([1, 1, 1, 1], "aabb"), ([3, 1, 1], "aab")]
    for number, (shape, groups) in enumerate(stretches):
        world = sum(shape)
        for leaver in each[world:]:
            each[0].memory.absorb(leaver.memory.state_dict())
        joiners = compressions(max(0, world - len(each)), always(choice))
        for joiner in joiners:
            joiner.load_state_dict(each[0].state_dict())
        each = [*each[:world], *joiners]
        gang = Gang(store, tmp_path, shape, each, number + 1, groups)
        for _ in range(8):
            discarded = step % 5 == 3
            rows = reduce(gang, step, commit=not discarded)
            same_bits(rows)
            if not discarded:
                own = [flat(gradients(rank, step)) for rank in range(world)]
                applied += flat(rows[0])
                given += torch.stack(own).sum(0)
                moved += torch.stack(own).abs().sum(0)
                assert float((applied + owed(each) - given).abs().max()) <= ROUNDED * float(moved.max())
            step += 1
    assert step == 40


def test_cc10_a_change_of_codec_in_mid_run_loses_nothing(store: str, tmp_path: Path) -> None:
    texts = ["int8", "topk 0.05", "none", "powersgd 2", "sign", "powersgd-int8 1", "none", "none"]

    def policy(step: int) -> Plan:
        """Another one for each bucket, and every two steps others."""
        return tuple(Choice.parse(texts[(step // 2 + bucket) % len(texts)]) for bucket in range(len(PLAN.sizes)))

    gang = Gang(store, tmp_path, [2, 1, 1], compressions(4, policy), groups="aab")
    applied, given = zeros(2)
    for step in range(24):
        rows = reduce(gang, step)
        same_bits(rows)
        applied += flat(rows[0])
        given += torch.stack([flat(gradients(rank, step)) for rank in range(4)]).sum(0)
        assert float((applied + owed(gang.compressions) - given).abs().max()) <= 1e-4


@pytest.mark.parametrize("choice", ["topk 0.05", "threshold 0.05"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES[:2], ids=str)
def test_cc13_momentum_is_accumulated_of_the_sums_of_groups(
    store: str, tmp_path: Path, choice: str, shape: list[int], groups: str
) -> None:
    """What was applied and what is owed is the sum of u ← m u + g, and each element of u is kept once in each group."""
    momentum, world = 0.7, sum(shape)
    each = [GradientCompression(PLAN, always(choice), seed=3, momentum=momentum) for _ in range(world)]
    gang = Gang(store, tmp_path, shape, each, groups=groups)
    applied, accumulated = zeros(2)
    for step in range(8):
        for compression in each:
            accumulated += momentum * velocity(compression)
        rows = reduce(gang, step)
        same_bits(rows)
        applied += flat(rows[0])
        accumulated += torch.stack([flat(gradients(rank, step)) for rank in range(world)]).sum(0)
        assert float((applied + owed(each) - accumulated).abs().max()) <= 1e-4
    kept = {rank: velocity(compression) != 0 for rank, compression in enumerate(each)}
    for group in gang.reducers[0]._exchange.topology.groups:
        in_group = torch.stack([kept[rank] for rank in group]).sum(0)
        assert int(in_group.max()) == 1 and float(in_group.double().mean()) > 0.1


@pytest.mark.parametrize("values", [0, 3, 5000])
def test_cc3_uncompressed_sums_are_those_of_float64(store: str, tmp_path: Path, values: int) -> None:
    gang = Gang(store, tmp_path, [2, 1, 2], compressions(5, always("int8")), groups="aab")
    for largest in (False, True):
        sums_are_those_of_float64(gang, values, largest=largest)


def test_cc2_a_group_whose_ranks_share_no_memory_exchanges_through_sockets(store: str, tmp_path: Path) -> None:
    gang = Gang(store, tmp_path, [2, 2], compressions(4, always("int8")), groups="ab", sockets=[0])
    assert gang.hosts == ((0,), (1,), (2, 3))
    applied, given = zeros(2)
    for step in range(4):
        rows = reduce(gang, step)
        same_bits(rows)
        applied += flat(rows[0])
        given += torch.stack([flat(gradients(rank, step)) for rank in range(4)]).sum(0)
    assert float((applied + owed(gang.compressions) - given).abs().max()) <= 1e-4


def test_cc15_a_gradient_that_is_not_finite_is_refused_and_spoils_nothing(store: str, tmp_path: Path) -> None:
    gang = Gang(store, tmp_path, [2, 1, 1], compressions(4, always("int8")), groups="aab")
    reduce(gang, 0)
    before = [c.memory.state_dict() for c in gang.compressions]

    def poisoned(rank: int) -> Tensor:
        gradient = torch.full((PLAN.gradient_sizes[0],), float("nan") if rank == 1 else 1.0)
        gang.reducers[rank].begin()
        gang.reducers[rank].sum_bucket(0, gradient).wait(never)
        return gradient

    assert all(bool(gradient.isfinite().all()) for gradient in gang.each(poisoned))
    assert [compression.non_finite is not None for compression in gang.compressions] == [False, True, False, False]
    for compression, kept in zip(gang.compressions, before, strict=True):
        compression.commit(skipped=True)
        after = compression.memory.state_dict()
        assert after.keys() == kept.keys() and all(torch.equal(after[name], kept[name]) for name in kept)


# ------------------------------------------------------------------ what is sent


class Sent(NamedTuple):
    """One rank's part of an operation: bytes to each member."""

    rank: int
    phase: int
    sizes: list[int]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """All that any rank gives to an all-to-all."""
    found: list[Sent] = []
    lock = threading.Lock()
    genuine = FlatExchange.all_to_all

    def all_to_all(
        self: FlatExchange, received: Tensor, sent: Tensor, receive: list[int], send: list[int], phase: int = 0
    ) -> Underway:
        with lock:
            found.append(Sent(self.topology.index, phase, [size * sent.element_size() for size in send]))
        return genuine(self, received, sent, receive, send, phase)

    monkeypatch.setattr(FlatExchange, "all_to_all", all_to_all)
    return found


def between_groups(gang: Gang, sent: list[Sent]) -> dict[str, int]:
    """Bytes that leave each group."""
    found: dict[str, int] = defaultdict(int)
    for each in sent:
        here = gang.places[each.rank].group
        found[here] += sum(size for size, place in zip(each.sizes, gang.places, strict=True) if place.group != here)
    return found


def send_one_bucket(gang: Gang, sent: list[Sent]) -> int:
    """float32 [n] elements, as `none`: n."""
    sent.clear()
    n = 78 * 64

    def one(rank: int) -> None:
        gang.reducers[rank].begin()
        gang.reducers[rank].sum_exactly(torch.full((n,), float(rank))).wait(never)

    gang.each(one)
    return n


@pytest.mark.parametrize("shape", [[1, 1, 1, 1], [2, 1, 1, 2], [1, 1]], ids=str)
def test_cc1_a_group_sends_as_much_as_one_host_would(
    store: str, tmp_path: Path, shape: list[int], sent: list[Sent]
) -> None:
    """To other groups 2 (G − 1)/G · 4n bytes, however many hosts it has; and in the phases inside of it nothing."""
    groups = "aabb" if len(shape) == 4 else "ab"
    gang = Gang(store, tmp_path, shape, [uncompressed() for _ in range(sum(shape))], groups=groups)
    n = send_one_bucket(gang, sent)
    leaving = between_groups(gang, sent)
    assert leaving.keys() == {"a", "b"}
    assert sum(leaving.values()) == 2 * (2 * 4 * n) * (2 - 1) // 2
    assert all(abs(each - 4 * n) <= 4 * 64 * len(shape) for each in leaving.values())
    inside = [each for each in sent if each.phase >= INSIDE]
    assert not any(between_groups(gang, inside).values())
    assert bool(inside) == (len(shape) > 2)


def uncompressed() -> GradientCompression:
    plan = (Choice("none"),) * len(PLAN.sizes)
    return GradientCompression(PLAN, lambda step: plan)


def test_cc1_one_group_sends_what_hosts_send(store: str, tmp_path: Path, sent: list[Sent]) -> None:
    """In no phase but those of a world without groups; between two halves H/G times as much as if these were groups."""
    gang = Gang(store, tmp_path, [1, 1, 1, 1], [uncompressed() for _ in range(4)])
    n = send_one_bucket(gang, sent)
    assert {each.phase for each in sent} <= set(range(PHASES))
    far = sum(sum(each.sizes[m] for m in range(4) if m // 2 != each.rank // 2) for each in sent)
    assert far == 2 * (2 * 4 * n)


@pytest.mark.parametrize("choice", ["none", "int8", "topk 0.05", "powersgd 2", "powersgd-int8 2"])
def test_cc17_the_controller_is_told_of_transfers_between_groups_only(
    store: str, tmp_path: Path, choice: str, sent: list[Sent], monkeypatch: pytest.MonkeyPatch
) -> None:
    gang = Gang(store, tmp_path, [2, 1, 1], compressions(4, always(choice)), groups="aab")
    told: dict[int, list[int]] = defaultdict(list)
    for rank, compression in enumerate(gang.compressions):
        monkeypatch.setattr(
            compression, "transferred", lambda nbytes, begun, ended, transfers=1, rank=rank: told[rank].append(nbytes)
        )
    sent.clear()
    reduce(gang, 0)
    for rank, reducer in enumerate(gang.reducers):
        place = gang.places[rank]
        expected, left = [], 0
        for each in (each for each in sent if each.rank == rank):
            reached = range(4) if each.phase < INSIDE else reducer._exchange.topology.group
            far = [m for m in reached if gang.places[m].group != place.group]
            gone = [m for m in reached if gang.places[m].host != place.host]
            expected += [sum(each.sizes[m] + FRAME_BYTES for m in far)] if far else []
            left += sum(each.sizes[m] + FRAME_BYTES for m in gone)
        assert sum(told[rank]) == sum(expected) > 0
        assert reducer.sent_bytes == left
        assert (left > sum(expected)) == (place.group == "a")


def test_cc18_the_controller_decides_for_links_between_groups(store: str, tmp_path: Path) -> None:
    config = CompressionConfig(policy="adaptive")
    each = [compression_of(PLAN, config, planned_steps=10) for _ in range(4)]
    worlds: list[Callable[[], tuple[int, int]]] = [lambda c=c: c.controller.world for c in each]  # type: ignore[misc]
    for number, groups in enumerate(["aab", "aaa"], 1):
        Gang(store, tmp_path, [2, 1, 1], each, number, groups)
        assert {world() for world in worlds} == {(2, 1) if groups == "aab" else (3, 1)}
    Gang(store, tmp_path, [1, 1, 2], each, 3, "aab")
    assert {world() for world in worlds} == {(2, 2)}
