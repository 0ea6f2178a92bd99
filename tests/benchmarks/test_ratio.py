"""The ratio of the overhead benchmark, and its interval."""

from __future__ import annotations

import math
import random

import pytest

from benchmarks.ratio import ratio_with_interval


def test_ratio_of_equal_pairs_has_no_width() -> None:
    ratio = ratio_with_interval([2.2, 3.3, 1.1], [2.0, 3.0, 1.0])
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.1, 1.1, 1.1))


def test_ratio_interval_is_students_t_on_the_logs() -> None:
    ratio = ratio_with_interval([math.e, 1.0, math.e**2], [1.0, 1.0, 1.0])
    half = 4.302653 / math.sqrt(3)  # the 97.5 % point with two degrees of freedom; the logs 1, 0, 2 deviate by 1
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((math.exp(1 - half), math.e, math.exp(1 + half)), rel=1e-5)


def test_ratio_interval_covers_the_truth_as_often_as_it_says() -> None:
    chance = random.Random(3)

    def covers() -> bool:
        blocks = [math.exp(chance.gauss(0.0, 0.3)) for _ in range(10)]  # the machine's drift, common to a pair
        ours = [1.05 * block * math.exp(chance.gauss(0.0, 0.05)) for block in blocks]
        ratio = ratio_with_interval(ours, blocks)
        return ratio.low <= 1.05 <= ratio.high

    assert 0.92 <= sum(covers() for _ in range(1000)) / 1000 <= 0.98


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_ratio_refuses_what_gives_no_interval(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more pairs"):
        ratio_with_interval(ours, theirs)
