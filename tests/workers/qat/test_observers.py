"""QS-17, QS-36 and QS-40: ranges follow what all ranks have seen, whatever rank has seen it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from workers.observing import NOTHING, Observers
from workers.qat.observers import RangeObserver, averaging_constant, range_observers

STEPS = st.lists(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=12), min_size=1, max_size=6)


def step(observer: RangeObserver, *shards: Tensor) -> None:
    """One step of a gang: each rank sees its shard, and the maximum over ranks is taken."""
    rows = []
    for shard in shards:
        observer.seen.fill_(NOTHING)
        observer(shard)
        rows.append(observer.seen.clone())
    observer.take(torch.stack(rows).amax(dim=0))


def extent(observer: RangeObserver) -> tuple[float, float, int]:
    return float(observer.low), float(observer.high), int(observer.updates)


def test_qs17_the_first_step_sets_the_range_and_others_move_it_by_a_hundredth() -> None:
    observer = RangeObserver()
    assert not observer.ready
    step(observer, torch.tensor([-1.0, 2.0]))
    assert extent(observer) == (-1.0, 2.0, 1) and observer.ready
    step(observer, torch.tensor([-2.0, 12.0]))
    assert extent(observer) == (pytest.approx(-1.01), pytest.approx(2.1), 2)


def test_qs17_the_forward_of_a_step_changes_no_buffer() -> None:
    observer = RangeObserver()
    x = torch.randn(5)
    assert observer(x) is x
    assert extent(observer) == (0.0, 0.0, 0)
    assert torch.equal(observer.seen, torch.stack((-x.min(), x.max())))


@given(STEPS, st.integers(1, 5))
def test_qs36_ranges_are_bit_identical_however_a_step_is_cut(steps: list[list[float]], ranks: int) -> None:
    alone, gang = RangeObserver(), RangeObserver()
    for values in steps:
        x = torch.tensor(values)
        step(alone, x)
        step(gang, *x.tensor_split(ranks))  # some shards are empty
    assert extent(alone) == extent(gang)


def test_qs36_a_step_that_nobody_saw_anything_in_changes_nothing() -> None:
    observer = RangeObserver()
    step(observer, torch.tensor([1.0, 3.0]))
    step(observer, torch.empty(0), torch.empty(0))
    observer.take(torch.tensor([NOTHING, 5.0]))
    assert extent(observer) == (1.0, 3.0, 1)


def test_qs36_a_discarded_step_leaves_no_trace() -> None:
    observer = RangeObserver()
    observers = Observers(nn.Sequential(observer))
    observer(torch.tensor([-100.0, 100.0]))
    observers.forget()
    observer(torch.tensor([-1.0, 1.0]))
    observers.take(observers.seen())
    assert extent(observer) == (-1.0, 1.0, 1)


def test_numbers_that_are_not_finite_are_not_learnt() -> None:
    observer = RangeObserver()
    step(observer, torch.tensor([float("nan"), 1.0]), torch.tensor([-float("inf"), 2.0]))
    assert not observer.ready
    step(observer, torch.tensor([float("nan"), 1.0]), torch.tensor([-1.0, 2.0]))
    assert extent(observer) == (-1.0, 2.0, 1)


def test_qs18_evaluation_mode_does_not_stop_observation_and_the_switch_does() -> None:
    observer = RangeObserver().eval()
    step(observer, torch.tensor([-1.0, 2.0]))
    assert observer.ready
    observer.observing = False
    step(observer, torch.tensor([-9.0, 9.0]))
    assert extent(observer) == (-1.0, 2.0, 1)


def test_qs40_the_constant_of_calibration_is_that_of_the_mean_at_first() -> None:
    assert [averaging_constant(n, 0.01, True) for n in (1, 2, 50, 100, 101, 500)] == [1.0, 0.5, 0.02, 0.01, 0.01, 0.01]
    assert [averaging_constant(n) for n in (1, 2, 500)] == [1.0, 0.01, 0.01]
    assert averaging_constant(200, 0.02, True) == 0.02


@pytest.mark.parametrize(("batches", "followed"), [(32, 0.275), (300, 0.95)])
def test_qs17_a_fixed_constant_follows_a_shift_slowly(batches: int, followed: float) -> None:
    observer = RangeObserver()
    step(observer, torch.tensor([0.0, 0.0]))
    for _ in range(batches):
        step(observer, torch.tensor([0.0, 1.0]))
    assert float(observer.high) == pytest.approx(followed, abs=2e-3)


@given(STEPS)
def test_qs40_a_calibration_of_up_to_100_batches_is_their_mean_for_any_world_size(steps: list[list[float]]) -> None:
    alone, gang = RangeObserver(), RangeObserver()
    alone.restart(calibrating=True)
    gang.restart(calibrating=True)
    for values in steps:
        step(alone, torch.tensor(values))
        step(gang, *torch.tensor(values).tensor_split(3))
    assert extent(alone) == extent(gang)
    assert float(alone.high) == pytest.approx(sum(max(v) for v in steps) / len(steps), abs=1e-4)
    assert float(alone.low) == pytest.approx(sum(min(v) for v in steps) / len(steps), abs=1e-4)


def test_restart_forgets_and_the_next_step_sets_the_range() -> None:
    observer = RangeObserver()
    step(observer, torch.tensor([-5.0, 5.0]))
    observer.restart()
    assert not observer.ready
    step(observer, torch.tensor([-1.0, 1.0]))
    assert extent(observer) == (-1.0, 1.0, 1)


@pytest.mark.parametrize("calibrating", [False, True])
def test_qs41_a_rank_that_joins_with_the_state_averages_as_the_others_do(calibrating: bool) -> None:
    observer, joined = RangeObserver(), RangeObserver()
    observer.restart(calibrating=calibrating)
    step(observer, torch.tensor([-5.0, 4.0]))
    joined.load_state_dict(observer.state_dict())
    step(observer, torch.tensor([-1.0, 1.0]))
    step(joined, torch.tensor([-1.0, 1.0]))
    assert extent(joined) == extent(observer)
    assert float(observer.low) == pytest.approx(-3.0 if calibrating else -4.96)
    assert set(observer.state_dict()) == {"low", "high", "updates", "calibrating"}
    assert observer.low.dtype == torch.float32 and observer.updates.dtype == torch.int64


def test_observers_are_found_by_name() -> None:
    assert list(range_observers(nn.Sequential(nn.ReLU(), RangeObserver()))) == ["1"]


@pytest.mark.parametrize("averaging", [0.0, -0.1, 1.5])
def test_an_impossible_constant_is_refused(averaging: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        RangeObserver(averaging)
