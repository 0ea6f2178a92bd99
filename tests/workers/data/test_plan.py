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


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 12))
def test_ep4_whole_units_stay_together(number: int, unit: int, parts: int) -> None:
    rows = list(range(number))
    pieces = [rows[whole_units(number, unit, parts, part)] for part in range(parts)]
    assert [row for piece in pieces for row in piece] == rows
    assert all(not piece or piece[0] % unit == 0 for piece in pieces)
