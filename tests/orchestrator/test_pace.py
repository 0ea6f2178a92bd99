"""At which step a planned change of members closes, so that it discards nothing (EP-8)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pace import BEAT_SECONDS, ORDER_SECONDS, Pace


def pace(seconds: float, step: int = 10) -> Pace:
    """Of a job that has just been heard to have committed `step`."""
    return Pace(step=step, step_at=100.0, step_seconds=seconds)


@pytest.mark.parametrize(
    ("seconds", "since", "step"),
    [
        (0.1, 0.0, 13),
        (0.1, 0.3, 16),
        (0.5, 0.0, 12),
        (1.0, 0.1, 11),
        (1.0, 0.5, 12),
        (12.0, 0.0, 11),
        (12.0, 8.0, 11),
        (12.0, 10.0, 12),
    ],
)
def test_ep8_the_step_in_progress_is_named_where_an_order_comes_in_time_for_it(
    seconds: float, since: float, step: int
) -> None:
    assert pace(seconds).soon(100.0 + since) == step


def test_nothing_is_named_while_it_is_not_known_how_long_a_step_takes() -> None:
    assert Pace().soon(1.0) == 0 and Pace(step=3, step_at=1.0).soon(1.0) == 0


@given(st.floats(0.01, 60.0), st.floats(0.0, 1.0), st.floats(0.0, 100.0))
def test_ep8_no_rank_has_passed_the_step_when_the_order_comes(seconds: float, late: float, since: float) -> None:
    """The step was heard of up to half a second, or a step, after its commit."""
    committed_at = 100.0 - late * min(BEAT_SECONDS, seconds)
    arrives = 100.0 + since + ORDER_SECONDS
    passed = 10 + int((arrives - committed_at) / seconds)
    assert pace(seconds).soon(100.0 + since) > passed - 1e-9 * seconds


@given(st.floats(0.01, 60.0), st.floats(0.0, 100.0))
def test_a_change_is_at_most_so_far_away(seconds: float, since: float) -> None:
    now, each = 100.0 + since, pace(seconds)
    assert 0.0 <= each.until(each.soon(now), now) <= 2 * seconds + ORDER_SECONDS + 1e-6
