"""CC-18: a plan that promises little is compared with `none` now and then, so nobody is worse off for long than without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.workers.compression.controller.conftest import SLOW, all_are, measured, mlp
from workers.compression.choice import Plan
from workers.compression.controller.layout import Measured
from workers.compression.controller.lessons import COMPARE_STEPS, MOST_COMPARE_STEPS
from workers.compression.controller.link import Line
from workers.compression.controller.policy import DEFAULT, decide
from workers.compression.controller.records import CHANGE, Record
from workers.compression.controller.state import ControllerState, initial_state

BUCKETS = mlp()
GIGABIT = Line(1e-4, 8e-9)
"""Over which `none` costs some 60 ms of these buckets."""


def train(
    windows: int, seconds: Callable[[int, Plan], float], measure: Measured
) -> tuple[list[ControllerState], list[Record]]:
    """So many windows, whose steps take `seconds` of the window, from 1, and of the plan in force; the states before each
    of them and the last one."""
    states, records = [initial_state(DEFAULT, 2, 100)], []
    for number in range(1, windows + 1):
        took = seconds(number, states[-1].plan)
        after, found = decide(states[-1], replace(measure, step_seconds=took), number * DEFAULT.every, BUCKETS)
        states.append(after)
        records += found
    return states, records


def compared_at(records: list[Record]) -> list[int]:
    return sorted({record["step"] for record in records if record["kind"] == CHANGE and record["reason"] == "compares"})


@pytest.mark.parametrize("busy", [2, 5, 20])
def test_cc18_a_plan_that_was_chosen_in_a_busy_moment_is_found_out(busy: int) -> None:
    """In the first windows all steps are long, so that any plan looks good; then those with `none` are the shortest."""

    def seconds(number: int, plan: Plan) -> float:
        return 0.35 if number <= busy else 0.20 if all_are(plan) else 0.23

    states, _ = train(100, seconds, measured(GIGABIT))
    assert not all_are(states[2].plan)
    worse = [number for number, state in enumerate(states[1:], start=1) if number > busy and not all_are(state.plan)]
    assert len(worse) <= 2 * COMPARE_STEPS / DEFAULT.every
    assert all_are(states[-1].plan)


def test_cc18_a_plan_that_is_faster_stays_and_is_compared_less_and_less() -> None:
    states, records = train(250, lambda number, plan: 0.20 if all_are(plan) else 0.16, measured(GIGABIT))
    steps = compared_at(records)
    first = next(number for number, state in enumerate(states) if not all_are(state.plan)) * DEFAULT.every
    waits = [after - before - DEFAULT.every for before, after in zip([first - DEFAULT.every, *steps], steps, strict=False)]
    assert waits == [COMPARE_STEPS, 4 * COMPARE_STEPS, MOST_COMPARE_STEPS, MOST_COMPARE_STEPS]
    for step in steps:
        during, after = states[step // DEFAULT.every], states[step // DEFAULT.every + 1]
        assert all_are(during.plan)
        assert after.plan == states[step // DEFAULT.every - 1].plan
        assert after.dearer == 1


def test_cc18_a_plan_that_promises_much_is_not_given_up_to_compare() -> None:
    """A window of `none` would take too long."""
    states, records = train(100, lambda number, plan: 5.0 if all_are(plan) else 0.1, measured(SLOW))
    assert not compared_at(records)
    assert sum(all_are(state.plan) for state in states[1:]) <= 1


def test_cc18_what_is_to_be_compared_survives_a_restart() -> None:
    states, _ = train(5, lambda number, plan: 0.20 if all_are(plan) else 0.16, measured(GIGABIT))
    assert states[-1].compare_after > 0
    assert ControllerState.from_dict(states[-1].as_dict()) == states[-1]
