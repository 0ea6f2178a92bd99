"""EP-1, EP-2, EP-4: what each rank computes of a step; reproducible, the same micro-batches for any number of ranks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workers.config import TrainingConfig
from workers.data.plan import BatchPlan, Seat
from workers.data.sampler import whole_units

WORLDS, ATTEMPTS, STEPS = st.integers(1, 12), st.integers(0, 5), st.integers(1, 9)


def plan(*, reproducible: bool) -> BatchPlan:
    """Of 150 samples: three batches an epoch, the last of 22."""
    config = TrainingConfig(name="a", seed=3, global_batch=64, micro_batch=10, reproducible=reproducible)
    return BatchPlan(config, 150)


@given(WORLDS, ATTEMPTS, STEPS)
def test_ep1_all_shares_together_are_the_batch(world: int, attempt: int, step: int) -> None:
    for reproducible in (False, True):
        batches = plan(reproducible=reproducible)
        shares = [batches.share(step, Seat(world, rank, attempt)) for rank in range(world)]
        read = [ids for share in shares for ids in share.micro_batches]
        assert sorted(np.concatenate(read).tolist()) == sorted(batches.batch(step).tolist())
        assert all(len(ids) <= 10 for ids in read)


@given(st.lists(st.integers(1, 2), min_size=1, max_size=12), ATTEMPTS, STEPS)
def test_gm21_shares_that_are_not_equal_are_the_batch_too(shares: list[int], attempt: int, step: int) -> None:
    """Each sample once; a rank with a smaller share has less, where no piece was turned to it."""
    world = len(shares)
    for reproducible in (False, True):
        batches = plan(reproducible=reproducible)
        found = [batches.share(step, Seat(world, rank, attempt, (), tuple(shares))) for rank in range(world)]
        read = [ids for share in found for ids in share.micro_batches]
        assert sorted(np.concatenate(read).tolist()) == sorted(batches.batch(step).tolist())
        if reproducible:
            alone = batches.share(step, Seat(1, 0, 0)).micro_batches
            assert sorted(ids.tolist() for ids in read) == sorted(ids.tolist() for ids in alone)
        elif len(batches.batch(step)) == 64:
            sizes = [sum(map(len, share.micro_batches)) for share in found]
            turned = [shares[(rank + attempt) % world] for rank in range(world)]
            assert all(abs(size - 64 * part / sum(shares)) < 1 for size, part in zip(sizes, turned, strict=True))


@given(WORLDS, ATTEMPTS, STEPS)
def test_ep4_a_reproducible_step_has_the_micro_batches_of_one_rank(world: int, attempt: int, step: int) -> None:
    batches = plan(reproducible=True)
    alone = batches.share(step, Seat(1, 0, 0)).micro_batches
    shares = [batches.share(step, Seat(world, rank, attempt)) for rank in range(world)]
    orders = [share.order for share in shares if share.order is not None]
    assert len(orders) == world and len({order.leaves for order in orders}) == 1
    assert sorted(leaf for order in orders for leaf in order.mine) == list(range(len(alone)))
    for share, order in zip(shares, orders, strict=True):
        assert [ids.tolist() for ids in share.micro_batches] == [alone[leaf].tolist() for leaf in order.mine]
    assert plan(reproducible=False).share(step, Seat(world, 0, attempt)).order is None


@given(WORLDS, ATTEMPTS, st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_cc24_a_round_is_the_batches_of_as_many_steps(
    world: int, attempt: int, every: int, step: int, merged_by_host: bool
) -> None:
    """In the same order, each shared out by itself, and none of the next epoch; each rank knows whose mean it computes."""
    config = {"name": "a", "seed": 3, "global_batch": 64, "micro_batch": 10}
    rounds = BatchPlan(TrainingConfig.model_validate({**config, "sync": {"every": every}}), 150)
    steps = BatchPlan(TrainingConfig.model_validate(config), 150)
    epoch, index = rounds.position(step)
    assert rounds.steps_per_epoch == -(-steps.steps_per_epoch // every)
    first = epoch * steps.steps_per_epoch + index * every
    batches = range(first, min(first + every, (epoch + 1) * steps.steps_per_epoch))
    pairs = [(rank, rank ^ 1) for rank in range(world)] if merged_by_host and world % 2 == 0 else [()] * world
    shares = [rounds.share(step, Seat(world, rank, attempt, pairs[rank])) for rank in range(world)]
    for share in shares:
        assert len(share.batches) == len(share.samples) == len(batches)
    for inner, batch in enumerate(batches):
        alone = [steps.share(batch + 1, Seat(world, rank, attempt)) for rank in range(world)]
        own = [sum(map(len, share.micro_batches)) for share in alone]
        for rank, share in enumerate(shares):
            assert [ids.tolist() for ids in share.batches[inner]] == [ids.tolist() for ids in alone[rank].micro_batches]
            expected = sum(own[member] for member in pairs[rank]) if pairs[rank] else own[rank]
            assert share.samples[inner] == (expected if every > 1 else len(steps.batch(batch + 1)))


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 12))
def test_ep4_whole_units_stay_together(number: int, unit: int, parts: int) -> None:
    rows = list(range(number))
    pieces = [rows[whole_units(number, unit, parts, part)] for part in range(parts)]
    assert [row for piece in pieces for row in piece] == rows
    assert all(not piece or piece[0] % unit == 0 for piece in pieces)
