"""CC-1, CC-3 to CC-5, CC-10 to CC-12 on real sockets and real shared memory: what the ways of buckets give and owe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Size, Tensor

from tests.workers.collectives.gangs import Gang, never
from workers.collectives import links
from workers.collectives.buckets import BucketPlan, Row, plan_buckets
from workers.collectives.exchange import Topology
from workers.compression import shards
from workers.compression.choice import Choice, Plan
from workers.compression.gradients import GradientCompression
from workers.identity import Generation, StateId

PLAN = plan_buckets(
    [("a.weight", Size([30, 50])), ("a.bias", Size([30])), ("b.weight", Size([40, 30])), ("b.bias", Size([40]))],
    tail=5,
    first_bytes=2000,
    bucket_bytes=6000,
)
CHOICES = ("none", "bf16", "fp16", "int8", "int4", "sign", "topk 0.05", "threshold 0.05", "powersgd 2", "powersgd-int8 2")
SHAPES = ([1, 1], [1, 1, 1], [2], [2, 2], [2, 1], [3, 2, 1])
WITHOUT_LOSS = {"none"}


def compressions(ranks: int, policy: Callable[[int], Plan]) -> list[GradientCompression]:
    return [GradientCompression(PLAN, policy, seed=3) for _ in range(ranks)]


def always(text: str) -> Callable[[int], Plan]:
    plan = (Choice.parse(text),) * len(PLAN.sizes)
    return lambda step: plan


def gradients(rank: int, step: int, plan: BucketPlan = PLAN) -> Row:
    """Of one rank and step; sizes differ from rank to rank."""
    noise = torch.Generator().manual_seed(1000 * step + rank)
    row = Row(plan)
    for bucket in row.buckets:
        bucket.copy_(torch.randn(len(bucket), generator=noise) * 10.0 ** -(rank % 3))
    return row


def flat(row: Row) -> Tensor:
    """float64: all buckets without the tail."""
    parts = [bucket[:size] for bucket, size in zip(row.buckets, PLAN.gradient_sizes, strict=True)]
    return torch.cat(parts).double()


def owed(each: list[GradientCompression]) -> Tensor:
    """float64, as `flat`: what all ranks together owe."""
    row = Row(PLAN)
    for compression in each:
        state = compression.memory.state_dict()
        for slot, view in zip(PLAN.slots, row.views, strict=True):
            if slot.name in state:
                view += state[slot.name]
    return flat(row)


def state_of(step: int) -> StateId:
    return StateId(step, 0, Generation(1, 1), step)


def reduce(gang: Gang, step: int, *, commit: bool = True) -> list[Row]:
    """A step of all ranks: what each of them has in the end."""

    def one(rank: int) -> Row:
        reducer, row = gang.reducers[rank], gradients(rank, step)
        gang.compressions[rank].begin(state_of(step), gang.generation, 0.1)
        reducer.begin()
        tasks = []
        for index, size in enumerate(PLAN.gradient_sizes):
            tasks.append(reducer.sum_bucket(index, row.buckets[index][:size]))
            reducer.progress()
        tasks.append(reducer.sum_exactly(row.tail))
        for task in tasks:
            task.wait(never)
        return row

    rows = gang.each(one)
    for compression in gang.compressions if commit else []:
        compression.commit()
    return rows


def same_bits(rows: list[Row]) -> None:
    for row in rows[1:]:
        for ours, first in zip(row.buckets, rows[0].buckets, strict=True):
            assert torch.equal(ours.view(torch.int32), first.view(torch.int32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("choice", CHOICES)
def test_cc4_all_ranks_get_the_same_bits_and_owe_the_rest(
    store: str, tmp_path: Path, choice: str, shape: list[int]
) -> None:
    """CC-10's invariant over the sum: what was applied and what is owed is what was given, on any hosts."""
    world = sum(shape)
    gang = Gang(store, tmp_path, shape, compressions(world, always(choice)))
    applied, given, moved = (torch.zeros(sum(PLAN.gradient_sizes), dtype=torch.float64) for _ in range(3))
    for step in range(6):
        rows = reduce(gang, step)
        same_bits(rows)
        each = [flat(gradients(rank, step)) for rank in range(world)]
        applied += flat(rows[0])
        given += torch.stack(each).sum(0)
        moved += torch.stack(each).abs().sum(0)
        assert float((applied + owed(gang.compressions) - given).abs().max()) <= 2e-6 * float(moved.max())
        tails = sum(gradients(rank, step).tail.double() for rank in range(world))
        assert torch.allclose(rows[0].tail.double(), torch.as_tensor(tails), atol=1e-5)
    expected_loss = choice not in WITHOUT_LOSS and (len(shape) > 1 or choice.startswith("powersgd"))
    assert bool(owed(gang.compressions).any()) == expected_loss
    assert bool(applied.any())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cc4_low_rank_goes_by_owners_where_it_is_too_much_for_everybody(
    store: str, tmp_path: Path, shape: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "DIRECT_BYTES", 0)
    test_cc4_all_ranks_get_the_same_bits_and_owe_the_rest(store, tmp_path, "powersgd-int8 2", shape)


@pytest.mark.parametrize(
    ("choice", "shape"),
    [
        ("bf16", [2, 2]),
        ("none", [2, 1]),
        *((c, shape) for c in ("bf16", "int8", "topk 0.05") for shape in ([1, 1, 1], [2, 1])),
    ],
    ids=str,
)
def test_cc4_large_lanes_go_both_ways_at_once(
    store: str, tmp_path: Path, choice: str, shape: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = count_of_transfers_that_go_both_ways(monkeypatch)
    test_cc4_all_ranks_get_the_same_bits_and_owe_the_rest(store, tmp_path, choice, shape)
    assert parted


def test_cc5_some_buckets_go_both_ways_and_some_by_low_rank(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both take the phases of the second pair, and nobody waits for ever."""
    parted = count_of_transfers_that_go_both_ways(monkeypatch)
    monkeypatch.setattr(shards, "DIRECT_BYTES", 0)
    test_cc10_a_change_of_codec_in_mid_run_loses_nothing(store, tmp_path, [2, 2])
    assert parted


def count_of_transfers_that_go_both_ways(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """However small they are; an entry for each, that of who sends."""
    genuine, found = links._both_ways, list[int]()

    def both_ways(operands: links._Operands, index: int) -> list[links._Operands]:
        found.append(index)
        return genuine(operands, index)

    monkeypatch.setattr(links, "LARGE_BYTES", 0)
    monkeypatch.setattr(links, "_both_ways", both_ways)
    return found


@pytest.mark.parametrize("shape", [[1, 1], [2, 2], [3, 3]], ids=str)
def test_cc10_nothing_is_lost_where_a_ring_in_bfloat16_begins_and_ends(
    store: str, tmp_path: Path, shape: list[int]
) -> None:
    """What owners of pieces owe goes into it, and what it owes into the others."""
    texts = ["int8", "bf16-ring", "topk 0.05", "bf16-ring", "none"]
    plans = [(Choice.parse(text),) * len(PLAN.sizes) for text in texts]
    gang = Gang(store, tmp_path, shape, compressions(sum(shape), lambda step: plans[step // 2 % 5]))
    applied, given, bound = (torch.zeros(sum(PLAN.gradient_sizes), dtype=torch.float64) for _ in range(3))
    for step in range(20):
        before = owed(gang.compressions)
        rows = reduce(gang, step)
        same_bits(rows)
        applied += flat(rows[0])
        each = torch.stack([flat(gradients(rank, step)) for rank in range(sum(shape))])
        given += each.sum(0)
        bound += rounded_in_rings(gang, each.abs().sum(0) + before.abs())
        assert bool(((applied + owed(gang.compressions) - given).abs() <= bound + 1e-4).all())


@pytest.mark.parametrize("choice", CHOICES)
def test_cc10_cc12_over_steps_discards_joins_and_leaves_nothing_is_lost(store: str, tmp_path: Path, choice: str) -> None:
    """100 steps on changing hosts, some discarded; a leaver's residual goes to a survivor."""
    applied, given, moved = (torch.zeros(sum(PLAN.gradient_sizes), dtype=torch.float64) for _ in range(3))
    each = compressions(4, always(choice))
    step = 0
    for number, (shape, steps) in enumerate([([2, 2], 30), ([2, 1], 30), ([1, 1, 1, 1], 20), ([3, 2], 20)]):
        world = sum(shape)
        for leaver in each[world:]:
            each[0].memory.absorb(leaver.memory.state_dict())
        joiners = compressions(max(0, world - len(each)), always(choice))
        for joiner in joiners:
            joiner.load_state_dict(each[0].state_dict())
        each = [*each[:world], *joiners]
        gang = Gang(store, tmp_path, shape, each, number + 1)
        for _ in range(steps):
            discarded = step % 5 == 3
            rows = reduce(gang, step, commit=not discarded)
            same_bits(rows)
            if not discarded:
                own = [flat(gradients(rank, step)) for rank in range(world)]
                applied += flat(rows[0])
                given += torch.stack(own).sum(0)
                moved += torch.stack(own).abs().sum(0)
                assert float((applied + owed(each) - given).abs().max()) <= 2e-6 * float(moved.max())
            step += 1
    assert step == 100


@pytest.mark.parametrize("shape", [[1, 1], [1, 1, 1, 1]], ids=str)
def test_cc10_a_ring_in_bfloat16_loses_of_the_sums_only_what_their_type_does(
    store: str, tmp_path: Path, shape: list[int]
) -> None:
    """What a rank's own gradient lost it owes to the last bit, but nobody what partial sums lost."""
    world = len(shape)
    gang = Gang(store, tmp_path, shape, compressions(world, always("bf16-ring")))
    applied, given, bound = (torch.zeros(sum(PLAN.gradient_sizes), dtype=torch.float64) for _ in range(3))
    kept = [c.memory.state_dict() for c in gang.compressions]
    for step in range(12):
        discarded = step % 4 == 2
        rows = reduce(gang, step, commit=not discarded)
        same_bits(rows)
        for rank, compression in enumerate(gang.compressions):
            state = compression.memory.state_dict()
            for slot in PLAN.slots:
                residual = kept[rank].get(slot.name, torch.zeros(slot.shape))
                if not discarded:
                    compensated = residual + gradients(rank, step).views[PLAN.slots.index(slot)]
                    residual = compensated - compensated.bfloat16().float()
                assert torch.equal(state.get(slot.name, torch.zeros(slot.shape)), residual)
            kept[rank] = state
        if not discarded:
            each = torch.stack([flat(gradients(rank, step)) for rank in range(world)])
            applied += flat(rows[0])
            given += each.sum(0)
            bound += 1.1 * (world - 1) * 2**-8 * each.abs().sum(0)
    lost = (applied + owed(gang.compressions) - given).abs()
    assert bool((lost <= bound + 1e-5).all()) and bool(owed(gang.compressions).any())


def test_cc10_where_hosts_have_unequally_many_ranks_a_ring_in_bfloat16_is_bf16(store: str, tmp_path: Path) -> None:
    test_cc4_all_ranks_get_the_same_bits_and_owe_the_rest(store, tmp_path, "bf16-ring", [2, 1])


def rounded_in_rings(gang: Gang, sizes: Tensor) -> Tensor:
    """float64, as `flat`: what sums in bfloat16 may lose in a step of what adds up to `sizes`; it is owed to nobody."""
    choices, lane = gang.compressions[0].choices, Topology(gang.places, 0).lane
    buckets = zip(choices, PLAN.gradient_sizes, strict=True)
    rings = [torch.full((size,), float(bool(lane) and choice.codec == "bf16-ring")) for choice, size in buckets]
    return 2**-7 * sizes * torch.cat(rings)


@pytest.mark.parametrize("shape", [[2, 1], [2, 2]], ids=str)
def test_cc10_a_change_of_codec_in_mid_run_loses_nothing(store: str, tmp_path: Path, shape: list[int]) -> None:
    texts = ["int8", "topk 0.05", "none", "powersgd 2", "bf16-ring", "powersgd 1", "sign", "none", "none"]

    def policy(step: int) -> Plan:
        """Another one for each bucket, and every two steps others."""
        return tuple(Choice.parse(texts[(step // 2 + bucket) % len(texts)]) for bucket in range(len(PLAN.sizes)))

    gang = Gang(store, tmp_path, shape, compressions(sum(shape), policy))
    applied, given, bound = (torch.zeros(sum(PLAN.gradient_sizes), dtype=torch.float64) for _ in range(3))
    for step in range(24):
        before = owed(gang.compressions)
        rows = reduce(gang, step)
        same_bits(rows)
        applied += flat(rows[0])
        each = torch.stack([flat(gradients(rank, step)) for rank in range(sum(shape))])
        given += each.sum(0)
        bound += rounded_in_rings(gang, each.abs().sum(0) + before.abs())
        assert bool(((applied + owed(gang.compressions) - given).abs() <= bound + 1e-4).all())
    assert bool(bound.any()) == (shape == [2, 2])


@pytest.mark.parametrize("choice", ["topk 0.05", "threshold 0.05"])
@pytest.mark.parametrize("shape", [[1, 1], [2, 2]], ids=str)
def test_cc13_momentum_is_accumulated_before_the_choice_and_none_of_it_lost(
    store: str, tmp_path: Path, choice: str, shape: list[int]
) -> None:
    """What was applied and what is owed is the sum of u ← m u + g; and u is zero where something was sent."""
    momentum, world = 0.7, sum(shape)
    each = [GradientCompression(PLAN, always(choice), seed=3, momentum=momentum) for _ in range(world)]
    gang = Gang(store, tmp_path, shape, each)
    applied, accumulated = (torch.zeros(sum(PLAN.gradient_sizes), dtype=torch.float64) for _ in range(2))
    for step in range(8):
        for compression in each:
            accumulated += momentum * velocity(compression)
        rows = reduce(gang, step)
        same_bits(rows)
        applied += flat(rows[0])
        accumulated += torch.stack([flat(gradients(rank, step)) for rank in range(world)]).sum(0)
        assert float((applied + owed(each) - accumulated).abs().max()) <= 1e-4
    kept = torch.stack([velocity(compression) for compression in each])
    assert 0.1 < float((kept != 0).double().mean()) * world < 1.9  # of two lanes' masks, neither all nor nothing


def velocity(compression: GradientCompression) -> Tensor:
    """float64, as `flat`."""
    momentum = compression.memory._momentum
    assert momentum is not None
    state = momentum.state_dict()
    parts = [state.get(f"velocity/{i}", torch.zeros(size)) for i, size in enumerate(PLAN.gradient_sizes)]
    return torch.cat(parts).double()


def sums_are_those_of_float64(gang: Gang, values: int, *, largest: bool) -> None:
    each = [torch.randn(values, generator=torch.Generator().manual_seed(rank)) for rank in range(sum(map(len, gang.hosts)))]
    exact = torch.stack(each).double().amax(0) if largest else torch.stack(each).double().sum(0)

    def one(rank: int, each: list[Tensor] = each, largest: bool = largest) -> Tensor:
        mine = each[rank].clone()
        gang.reducers[rank].begin()
        gang.reducers[rank].sum_exactly(mine, largest=largest).wait(never)
        return mine

    found = gang.each(one)
    assert all(torch.equal(mine, found[0]) for mine in found)
    assert torch.allclose(found[0].double(), exact, atol=1e-5)


@pytest.mark.parametrize("choice", ["none", "int8", "powersgd 2"])
@pytest.mark.parametrize("shape", [[1, 1], [2, 2], [2, 1]], ids=str)
def test_cc3_uncompressed_sums_are_those_of_float64(store: str, tmp_path: Path, choice: str, shape: list[int]) -> None:
    gang = Gang(store, tmp_path, shape, compressions(sum(shape), always(choice)))
    for values, largest in ((3, False), (3, True), (5000, False), (5000, True), (0, False)):
        sums_are_those_of_float64(gang, values, largest=largest)


def reduce_with(gang: Gang, bad: float) -> list[Row]:
    """Step 1, in which rank 1 has one gradient that is not finite, in b.weight; it is not committed."""

    def one(rank: int) -> Row:
        row = gradients(rank, 1)
        if rank == 1:
            row.views[2][3, 4] = bad
        gang.compressions[rank].begin(state_of(1), gang.generation, 0.1)
        gang.reducers[rank].begin()
        sizes = PLAN.gradient_sizes
        for task in [gang.reducers[rank].sum_bucket(i, row.buckets[i][:size]) for i, size in enumerate(sizes)]:
            task.wait(never)
        return row

    return gang.each(one)


def skipped_steps_keep(gang: Gang, before: list[dict[str, Tensor]]) -> None:
    for compression, kept in zip(gang.compressions, before, strict=True):
        compression.commit(skipped=True)
        after = compression.memory.state_dict()
        assert after.keys() == kept.keys() and all(torch.equal(after[name], kept[name]) for name in kept)


@pytest.mark.parametrize("choice", ["int8", "topk 0.05", "powersgd 2"])
def test_cc15_a_gradient_that_is_not_finite_is_refused_by_name_and_spoils_nothing(
    store: str, tmp_path: Path, choice: str
) -> None:
    gang = Gang(store, tmp_path, [2, 1], compressions(3, always(choice)))
    reduce(gang, 0)
    before = [c.memory.state_dict() for c in gang.compressions]
    for row in reduce_with(gang, float("nan")):
        assert all(bool(bucket.isfinite().all()) for bucket in row.buckets)
    refused = [compression.non_finite for compression in gang.compressions]
    assert refused[0] is None and refused[2] is None
    assert str(refused[1]) == "the gradient of b.weight holds NaN; the step is discarded"
    skipped_steps_keep(gang, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("owed_only", [False, True], ids=["encoded", "only owed"])
def test_cc15_in_a_ring_the_sum_itself_may_tell_all_that_a_gradient_was_not_finite(
    store: str, tmp_path: Path, bad: float, owed_only: bool
) -> None:
    """And only that of its bucket."""
    plans = [always("bf16-ring")(1), always("none" if owed_only else "bf16-ring")(2)]
    gang = Gang(store, tmp_path, [1, 1, 1], compressions(3, lambda step: plans[step - 1]), nan_tells=True)
    reduce(gang, 0)
    before = [c.memory.state_dict() for c in gang.compressions]
    rows = reduce_with(gang, bad)
    hit = next(slot.bucket for slot in PLAN.slots if slot.name == "b.weight")
    assert len(PLAN.sizes) > 1 and [reducer.spoilt for reducer in gang.reducers] == [{hit}] * 3
    for row in rows:
        whole = [bool(row.buckets[i][:size].isfinite().all()) for i, size in enumerate(PLAN.gradient_sizes)]
        assert whole == [i != hit for i in range(len(whole))]
    skipped_steps_keep(gang, before)
