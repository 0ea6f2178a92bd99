"""CC-17: latency and bandwidth from real transfers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.compression.controller.link import (
    ASSUMED_LATENCY,
    ENOUGH,
    RECENT,
    SMALL,
    SUDDEN,
    WINDOW,
    Line,
    Link,
    Point,
    fit_line,
    median,
    weighted_median,
)

LINES = st.builds(Line, st.floats(1e-5, 1e-2), st.floats(1e-9, 1e-6))
SIZES = (20_000, 100_000, 500_000, 4_000_000)


def send(link: Link, sizes: list[int], line: Line, at: float = 0.0, *, factors: list[float] | None = None) -> float:
    """Transfers one after the other with a pause; returns when the last one has ended."""
    for size, factor in zip(sizes, factors or [1.0] * len(sizes), strict=True):
        end = at + line.seconds(size) * factor
        link.transfer(size, at, end)
        at = end + 1e-3
    return at


def close(found: Line | None, line: Line, relative: float = 1e-3) -> bool:
    """At sizes around those that were sent."""
    assert found is not None
    return all(found.seconds(size) == pytest.approx(line.seconds(size), rel=relative) for size in (SIZES[0], SIZES[-1]))


@given(LINES)
def test_cc17_a_line_is_found_exactly(line: Line) -> None:
    link = Link()
    send(link, list(SIZES) * 5, line)
    assert close(link.fit(), line)


@given(LINES, st.integers(0, 2**32))
def test_cc17_it_is_the_least_squares_line_where_noise_is_even_and_stays_it_with_outliers(line: Line, seed: int) -> None:
    """In float64: within a few per cent of numpy's least squares of the clean points, a fifth of them ten times slower."""
    random = np.random.default_rng(seed)
    sizes = random.choice(SIZES, 50)
    clean = np.array([line.seconds(size) for size in sizes]) * random.uniform(0.99, 1.01, 50)
    slope, latency = np.polyfit(sizes, clean, 1)
    factors = np.ones(50)
    factors[random.choice(50, 10, replace=False)] = 10
    points = [Point(float(size), float(time)) for size, time in zip(sizes, clean * factors, strict=True)]
    found = fit_line(points, 0.0)
    assert found.seconds(SIZES[-1]) == pytest.approx(latency + slope * SIZES[-1], rel=0.05)


def test_cc17_neither_part_is_ever_negative() -> None:
    falling = fit_line([Point(1000.0 * i, 1.0 / i) for i in range(1, 10)], 0.0)
    assert falling.seconds_per_byte == 0 and falling.latency > 0
    through_zero = fit_line([Point(1e6 * i, 1e-2 * i**2) for i in range(1, 10)], 0.0)
    assert through_zero.latency == 0 and through_zero.seconds_per_byte > 0


def test_cc17_of_one_size_the_latency_is_that_of_small_transfers() -> None:
    line = Line(3e-3, 1e-7)
    link, alone = Link(), Link()
    at = send(link, [100], line)
    send(link, [1_000_000] * 60, line, at)
    send(alone, [1_000_000] * 60, line)
    found, guessed = link.fit(), alone.fit()
    assert found is not None and guessed is not None
    assert found.latency == pytest.approx(line.seconds(100)) and found.seconds_per_byte == pytest.approx(1e-7, rel=0.01)
    assert guessed.latency == ASSUMED_LATENCY and guessed.seconds(1_000_000) == pytest.approx(line.seconds(1_000_000))


def test_cc17_nothing_is_claimed_of_too_few_transfers() -> None:
    link = Link()
    assert link.fit() is None
    send(link, [1000] * 3, Line(1e-3, 1e-7))
    assert link.fit() is None


def test_cc17_only_the_last_50_transfers_count() -> None:
    link = Link()
    at = send(link, list(SIZES) * 50, Line(1e-2, 1e-6))
    send(link, (list(SIZES) * 50)[:WINDOW], Line(1e-3, 1e-8), at)
    assert close(link.fit(), Line(1e-3, 1e-8))


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_cc17_a_link_that_has_changed_is_not_averaged_with_what_it_was(factor: float) -> None:
    before, after = Line(1e-3, 1e-8), Line(1e-3, 1e-8 * factor)
    link = Link()
    at = send(link, list(SIZES) * 10, before)
    send(link, list(SIZES) * (RECENT // len(SIZES)), after, at)
    assert close(link.fit(), after)


def test_cc17_transfers_that_wait_for_the_link_begin_when_it_is_free() -> None:
    """Issued together, done one after the other: no transfer is charged with the time of those before."""
    line, link, at = Line(0.0, 1e-7), Link(), 0.0
    for _ in range(10):
        begin = at
        for size in SIZES:
            at += line.seconds(size)
            link.transfer(size, begin, at)
        at += 1.0
    found, mean = link.fit(), sum(SIZES) / len(SIZES)
    assert found is not None and found.seconds(mean) == pytest.approx(line.seconds(mean), rel=1e-6)


@given(st.integers(1, 20), st.integers(1000, 10**6))
def test_cc17_transfers_that_share_the_link_are_not_counted_twice(pairs: int, size: int) -> None:
    """Two at a time, both twice as slow, ending together: their busy time is that of both, one behind the other."""
    line, link = Line(0.0, 1e-7), Link()
    for i in range(pairs + 2):
        link.transfer(size, 10.0 * i, 10.0 * i + 2 * line.seconds(size))
        link.transfer(size, 10.0 * i, 10.0 * i + 2 * line.seconds(size))
    found = link.fit()
    assert found is not None and found.seconds(size) == pytest.approx(line.seconds(size), rel=1e-6)


def test_cc21_a_slowdown_is_against_the_line_last_settled() -> None:
    link = Link()
    assert link.slowdown() == 1.0
    at = send(link, list(SIZES) * 10, Line(1e-3, 1e-8))
    assert link.slowdown() == 1.0
    link.settle()
    assert link.slowdown() == pytest.approx(1.0)
    at = send(link, [4_000_000], Line(1e-3, 1e-6), at)
    assert link.slowdown() < 2, "one slow transfer is no slow link"
    send(link, [4_000_000] * RECENT, Line(1e-3, 1e-6), at)
    assert link.slowdown() > 30
    link.settle()
    assert link.slowdown() == pytest.approx(1.0, rel=0.1)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_medians_agree_with_each_other_and_with_half(values: list[float]) -> None:
    middle = median(values)
    assert sum(value < middle for value in values) <= len(values) / 2 >= sum(value > middle for value in values)
    assert weighted_median(values, [1.0] * len(values)) == middle


@pytest.mark.parametrize(
    ("count", "factor", "seen"),
    [(3, 20.0, True), (2, 20.0, False), (2, 100.0, True), (1, 1000.0, False), (3, 2.5, False)],
    ids=["three", "two_may_be_held_up", "two_of_a_second", "one_may_be_held_up", "noise"],
)
def test_cc21_a_few_transfers_show_that_a_link_has_all_but_gone(count: int, factor: float, seen: bool) -> None:
    link, at = Link(), 0.0
    for i in range(30 + count):
        seconds = (1e-4 + 1e-8 * 1_000_000) * (factor if i >= 30 else 1.0)
        if i == 30:
            link.settle()
        link.transfer(1_000_000, at, at + seconds)
        at += 10.0 + seconds
    line = link.fit()
    assert line is not None
    assert (link.slowdown() > 3) is seen
    assert (line.seconds(1_000_000) > 0.5 * factor * (1e-4 + 1e-2)) is seen


def test_cc17_a_long_transfer_takes_in_all_that_came_and_went_while_it_was_under_way() -> None:
    """Two small ones, the second of which began when the first was there, and a large one that ended last."""
    link = Link()
    for step in range(10):
        at = 2.0 * step
        link.transfer(5_000, at + 0.1, at + 0.8)
        link.transfer(3_000, at + 0.8, at + 0.9)
        link.transfer(2_000_000, at, at + 1.7)
        link.transfer(100, at + 1.7, at + 1.701)
    found = link.fit()
    assert found is not None
    assert found.seconds(2_000_000) == pytest.approx(1.7, rel=0.01)
    assert found.latency < 0.01


def test_cc21_small_transfers_do_not_hide_that_a_link_has_all_but_gone() -> None:
    """They take as long as before."""
    link = Link()
    at = 0.0
    for seconds in (0.002, 2.0):
        for _ in range(12 if seconds < 1 else 3):
            for nbytes, took in ((2_000_000, seconds), (100, 1e-4)):
                link.transfer(nbytes, at, at + took)
                at += took + 0.01
        if seconds < 1:
            link.settle()
    assert link.slowdown() > 100
    found = link.settle()
    assert found is not None and found.seconds(2_000_000) == pytest.approx(2.0, rel=0.05)


def test_cc17_a_long_transfer_takes_in_all_others_however_many_they_were() -> None:
    link = Link()
    for step in range(6):
        at = 3.0 * step
        for i in range(8):
            link.transfer(5_000, at + 0.1 + 0.1 * i, at + 0.9 + 0.1 * i)
        link.transfer(20_000_000, at, at + 2.0)
    found = link.fit()
    assert found is not None and found.seconds(20_000_000) == pytest.approx(2.0, rel=0.1)


def test_cc21_a_collapse_shows_however_many_transfers_a_step_has() -> None:
    """Ten of them together, so that the last fifty are five bursts."""
    link, at = Link(), 0.0
    for seconds, steps in ((0.01, 12), (2.0, 3)):
        for _ in range(steps):
            for i in range(10):
                link.transfer(500_000, at + 0.001 * i, at + seconds * (i + 1) / 10)
            at += seconds + 0.01
        if seconds < 1:
            link.settle()
    assert link.slowdown() > 50


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 100, 4096, SMALL, 20_000, 10**6]),
            st.floats(-1e-3, 2e-3),
            st.sampled_from([0.0, 1e-4, 1e-3, 1e-1]),
            st.integers(1, 3),
        ),
        min_size=RECENT,
        max_size=80,
    )
)
def test_cc21_what_tells_of_a_collapse_is_found_from_the_end(transfers: list[tuple[int, float, float, int]]) -> None:
    """As if all of them were looked at; and the number of transfers is kept."""
    link, clock = Link(), 1.0
    for nbytes, late, lasts, count in transfers:
        begin = clock + late
        clock = max(begin, clock) + lasts
        link.transfer(nbytes, begin, clock, count)
    points = [Point(b.nbytes / b.transfers, b.seconds / b.transfers) for b in link._bursts if b.seconds > 0]
    large = [point for point in points if point.nbytes > SMALL]
    assert link._last_telling() == (large if len(large) >= ENOUGH + SUDDEN else points)[-RECENT:]
    assert link._transfers == sum(burst.transfers for burst in link._bursts)
