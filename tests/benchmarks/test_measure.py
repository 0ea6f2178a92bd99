"""What the recovery benchmark counts, on logs written by hand."""

from __future__ import annotations

import pytest

from benchmarks.measure import Kill, Steady, recovery, spread
from benchmarks.steplog import Commit

KILL = Kill(t=100.0, pid=13, rank=3, members=frozenset({10, 11, 12, 13}))


def step(number: int, begun: float, t: float, pids: range | list[int], world: int = 4) -> list[Commit]:
    """One step committed by `pids` at the same time, whose ranks follow their order."""
    return [Commit(t, begun, pid, rank, world, number) for rank, pid in enumerate(pids)]


def test_survivors_go_on_and_a_new_process_fills_the_world() -> None:
    commits = [
        *step(7, 99.9, 99.95, range(10, 14)),
        *step(8, 99.95, 100.01, [10, 11]),  # in flight at the kill: began before it
        *step(9, 100.2, 100.25, [10, 11], world=3),
        *step(9, 100.2, 100.4, [12], world=3),
        *step(10, 102.0, 102.1, [10, 11, 12, 99]),
    ]
    result = recovery(reversed(commits), KILL)
    assert (result.first, result.survivors, result.full) == pytest.approx((0.25, 0.4, 2.1))
    assert (result.rank, result.steps_lost, result.kept) == (3, 0, 3)


def test_a_restart_keeps_nobody_and_computes_steps_again() -> None:
    before = [line for number in range(50, 61) for line in step(number, 99.0, 99.5, range(10, 14))]
    after = [line for number in range(51, 64) for line in step(number, 105.0, 105.5, range(20, 24))]
    result = recovery(before + after, KILL)
    assert (result.first, result.survivors, result.full) == (5.5, 5.5, 5.5)
    assert result.steps_lost == 10
    assert result.kept == 0


def test_lost_steps_count_before_they_are_computed_again() -> None:
    before = [line for number in range(50, 61) for line in step(number, 99.0, 99.5, range(10, 14))]
    assert recovery([*before, *step(51, 105.0, 105.5, range(20, 24))], KILL).steps_lost == 10


def test_a_step_that_only_the_dead_rank_had_committed_counts_as_lost() -> None:
    commits = [*step(8, 99.9, 99.99, [13]), *step(8, 100.3, 100.4, [10, 11, 12], world=3)]
    assert recovery(commits, KILL).steps_lost == 1


def test_a_step_that_a_survivor_commits_late_is_not_lost() -> None:
    commits = [*step(8, 99.9, 99.99, [10]), *step(8, 99.9, 100.02, [11, 12])]
    assert recovery(commits, KILL).steps_lost == 0


def test_a_survivor_that_hangs_delays_the_survivors_but_not_the_first_step() -> None:
    commits = [
        *step(9, 100.2, 100.3, [10, 11], world=2),
        *step(10, 103.0, 103.1, [10, 11, 99], world=3),
        *step(11, 165.0, 165.2, [10, 11, 12, 99]),
    ]
    result = recovery(commits, KILL)
    assert result.first == pytest.approx(0.3)
    assert result.survivors == pytest.approx(65.2)  # though three processes had committed at 3.1 s
    assert recovery(commits[:-4], KILL).kept == 2


def test_a_full_world_needs_distinct_processes_in_one_step() -> None:
    commits = [*step(9, 101.0, 101.1, [10, 11, 12]), *step(10, 102.0, 102.1, [10, 11, 99])]
    assert recovery(commits, KILL).full is None


def test_nothing_after_the_kill_is_no_recovery() -> None:
    result = recovery(step(7, 99.0, 99.5, range(10, 14)), KILL)
    assert (result.first, result.survivors, result.full, result.kept) == (None, None, None, 0)


def running(pids: list[int], first: int, last: int, world: int = 4) -> list[Commit]:
    """Steps `first` to `last` at ten per second from time 0."""
    return [line for number in range(first, last + 1) for line in step(number, 0.0, number / 10, pids, world)]


def test_steady_after_enough_steps_and_seconds() -> None:
    steady = Steady(world=4, steps=20, seconds=3.0)
    steady.add(running([10, 11, 12, 13], 1, 25))
    assert steady.members(now=2.6) is None
    steady.add(running([10, 11, 12, 13], 26, 40))
    assert steady.members(now=4.0) == {0: 10, 1: 11, 2: 12, 3: 13}
    assert steady.step_seconds() == pytest.approx(0.1)


def test_a_world_that_stands_still_is_not_steady() -> None:
    steady = Steady(world=4, steps=20, seconds=3.0)
    steady.add(running([10, 11, 12, 13], 1, 40))
    assert steady.members(now=5.5) is None


@pytest.mark.parametrize("world_between", [3, 4])
def test_a_replaced_process_starts_its_count_again(world_between: int) -> None:
    steady = Steady(world=4, steps=20, seconds=3.0)
    steady.add(running([10, 11, 12, 13], 1, 40))
    steady.add(running([10, 11, 12], 41, 43, world=world_between))
    steady.add(running([10, 11, 12, 99], 44, 60))
    assert steady.members(now=6.0) is None
    steady.add(running([10, 11, 12, 99], 61, 80))
    assert steady.members(now=8.0) == {0: 10, 1: 11, 2: 12, 3: 99}


def test_spread_counts_what_never_happened_as_longer_than_the_limit() -> None:
    assert spread([0.2, 0.1, 0.4], 120) == "0.20 (0.10 to 0.40)"
    assert spread([0.2, None, 0.4], 120) == "0.40 (0.20 to > 120)"
    assert spread([0.2, None], 120) == "> 120 (0.20 to > 120)"
