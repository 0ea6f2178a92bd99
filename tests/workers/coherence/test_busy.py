"""GM-14: the time that a rank is busy."""

from __future__ import annotations

import math

from workers.coherence.busy import IGNORED, STEPS, BusyTime


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step(busy: BusyTime, clock: Clock, works: float, waits: float, samples: int = 4) -> None:
    busy.begin()
    clock.now += works
    busy.arrive(samples)
    clock.now += waits


def test_gm14_what_a_rank_waits_for_others_does_not_count() -> None:
    clock = Clock()
    busy = BusyTime(clock)
    for waits in range(IGNORED + 3):
        step(busy, clock, works=2.0, waits=100.0 * waits)
    assert busy.per_sample == 0.5


def test_gm14_the_first_steps_of_a_generation_do_not_count() -> None:
    clock = Clock()
    busy = BusyTime(clock)
    for _ in range(IGNORED):
        step(busy, clock, works=50.0, waits=0.0)
    assert math.isnan(busy.per_sample)
    step(busy, clock, works=1.0, waits=0.0)
    assert busy.per_sample == 0.25
    busy.begin_generation()
    for _ in range(IGNORED):
        step(busy, clock, works=50.0, waits=0.0)
    assert busy.per_sample == 0.25


def test_gm14_an_evaluation_between_two_steps_does_not_count() -> None:
    clock = Clock()
    busy = BusyTime(clock)
    for _ in range(IGNORED + 1):
        step(busy, clock, works=1.0, waits=0.0)
    busy.begin()
    clock.now += 9.0
    busy.interrupt()
    clock.now += 9.0
    busy.arrive(4)
    assert busy.per_sample == 0.25


def test_gm14_it_follows_the_last_steps_and_a_single_long_one_is_no_matter() -> None:
    clock = Clock()
    busy = BusyTime(clock)
    for works in [1.0] * (IGNORED + 3) + [3.0] * (STEPS - 1) + [80.0]:
        step(busy, clock, works, waits=0.0)
    assert busy.per_sample == 0.75


def test_gm14_a_step_without_samples_says_nothing() -> None:
    clock = Clock()
    busy = BusyTime(clock)
    for _ in range(IGNORED + 1):
        step(busy, clock, works=1.0, waits=0.0)
    step(busy, clock, works=70.0, waits=0.0, samples=0)
    assert busy.per_sample == 0.25
