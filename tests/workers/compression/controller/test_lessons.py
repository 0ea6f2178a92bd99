"""CC-18: a plan that promises little is compared with `none` now and then, so nobody is worse off for long than without."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.workers.compression.controller.conftest import SLOW, all_are, measured, mlp
from workers.compression.choice import NONE, Plan
from workers.compression.controller.candidates import RIVAL
from workers.compression.controller.layout import Measured
from workers.compression.controller.lessons import COMPARE_STEPS, MOST_COMPARE_STEPS, is_barred
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
        took, line = seconds(number, states[-1].plan), measure.lines["hosts"]
        probe = line.seconds_per_byte if states[-1].probing and line is not None else None
        window = replace(measure, step_seconds=took, probe=probe)
        after, found = decide(states[-1], window, number * DEFAULT.every, BUCKETS)
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


def rivals(states: list[ControllerState]) -> list[int]:
    """The numbers of the windows in which all went with `RIVAL`."""
    return [number for number, state in enumerate(states[:-1], start=1) if all_are(state.plan, RIVAL)]


def test_cc18_where_codecs_wait_for_cores_the_rival_of_none_is_tried_and_kept() -> None:
    """Whatever is encoded, steps take about as long as with `none`; only what is summed in a ring makes them shorter."""

    def seconds(_: int, plan: Plan) -> float:
        return 0.20 if all_are(plan) else 0.17 if all_are(plan, RIVAL) else 0.19

    states, records = train(200, seconds, measured(GIGABIT))
    first = min(rivals(states))
    assert first <= 5 + COMPARE_STEPS / DEFAULT.every
    assert {record["reason"] for record in records if record["kind"] == CHANGE and record["step"] == (first - 1) * 20} == {
        "tries"
    }
    assert len(rivals(states)) >= 0.85 * (200 - first)
    assert states[-1].rival_saves == pytest.approx(0.03) and states[-1].dearer > 1


def test_cc18_a_rival_that_is_no_faster_is_out_for_longer_and_longer() -> None:
    """And the plan that was compared comes back after it."""

    def seconds(_: int, plan: Plan) -> float:
        return 0.20 if all_are(plan) else 0.21 if all_are(plan, RIVAL) else 0.185

    states, records = train(200, seconds, measured(GIGABIT))
    tried = rivals(states)
    assert 1 <= len(tried) <= 3
    for number in tried:
        before, after = states[number - 3], states[number]
        assert all_are(states[number - 2].plan) and not after.rival_saves
        assert after.plan == before.plan and not all_are(after.plan)
        assert all(is_barred(bucket, RIVAL, after.step + 400) for bucket in after.buckets)
    assert sum(all_are(state.plan) for state in states[1:]) <= len(compared_at(records)) + 1


def test_cc18_what_beats_none_by_more_than_its_rival_could_is_not_tried_against_it() -> None:
    states, records = train(100, lambda number, plan: 0.20 if all_are(plan) else 0.12, measured(GIGABIT))
    assert compared_at(records) and not rivals(states)


def test_cc18_a_link_that_collapses_under_the_rival_is_encoded_for_anew() -> None:
    """What was measured over the fast link is no measure any more."""

    def seconds(_: int, plan: Plan) -> float:
        return 0.20 if all_are(plan) else 0.17 if all_are(plan, RIVAL) else 0.19

    states, _ = train(40, seconds, measured(GIGABIT))
    assert all_are(states[-1].plan, RIVAL)
    slow = measured(SLOW, step_seconds=3.0, latest_seconds=3.0)
    after, records = decide(states[-1], slow, 41 * DEFAULT.every, BUCKETS)
    assert {record["reason"] for record in records if record["kind"] == CHANGE} == {"collapse"}
    assert not after.rival_saves and after.doubt is None and after.plan[1] not in (NONE, RIVAL)


@pytest.mark.parametrize("windows", range(1, 20))
def test_cc18_what_is_tried_survives_a_restart(windows: int) -> None:
    """In any window: the state says all that is to be known."""

    def seconds(_: int, plan: Plan) -> float:
        return 0.20 if all_are(plan) else 0.17 if all_are(plan, RIVAL) else 0.19

    states, _ = train(windows, seconds, measured(GIGABIT))
    assert ControllerState.from_dict(json.loads(json.dumps(states[-1].as_dict()))) == states[-1]


def tried(seconds: Callable[[int, Plan], float], measure: Measured) -> tuple[ControllerState, ControllerState]:
    """Of the first window that goes with `RIVAL`: the state before it, and the one at its end."""
    states, _ = train(20, seconds, measure)
    first = min(rivals(states))
    return states[first - 1], states[first]


def test_cc18_the_fastest_of_those_compared_is_back_whatever_is_predicted() -> None:
    """By now decoding is said to take so long that nobody would choose the plan anew."""

    def seconds(_: int, plan: Plan) -> float:
        return 0.20 if all_are(plan) else 0.19 if all_are(plan, RIVAL) else 0.175

    before, _ = tried(seconds, measured(GIGABIT))
    assert before.doubt is not None
    dear = replace(measured(GIGABIT), decode=(1e-6,) * len(measured(GIGABIT).decode), step_seconds=0.19)
    after, records = decide(before, dear, before.step + DEFAULT.every, BUCKETS)
    assert after.plan == before.doubt.plan and after.chosen and after.doubt is None
    assert {record["reason"] for record in records if record["kind"] == CHANGE} == {"wins"}


def test_cc18_a_rival_that_lost_is_left_for_the_plan_that_won_though_it_promises_little_more() -> None:
    def seconds(_: int, plan: Plan) -> float:
        return 0.20 if all_are(plan) else 0.21 if all_are(plan, RIVAL) else 0.175

    before, after = tried(seconds, measured(GIGABIT))
    assert before.doubt is not None and after.plan == before.doubt.plan
    assert all(is_barred(bucket, RIVAL, after.step) for bucket in after.buckets)


def test_cc18_a_collapse_under_a_good_plan_is_no_reason_for_the_rival() -> None:
    """It was measured over the link as it was; what is in force is the best over the slow one, too."""
    slow = measured(SLOW, step_seconds=3.0, latest_seconds=3.0)
    best, _ = decide(initial_state(DEFAULT, 2, 100), slow, DEFAULT.every, BUCKETS)
    fast = GIGABIT.seconds_per_byte
    before = replace(best, chosen=True, seconds_per_byte=fast, none_step_seconds=0.2, none_seconds_per_byte=fast)
    before = replace(before, rival_saves=0.03)
    after, records = decide(before, slow, 2 * DEFAULT.every, BUCKETS)
    assert after.collapses == 1 and after.plan == best.plan and not all_are(best.plan)
    assert not [record for record in records if record["kind"] == CHANGE]


def test_cc18_a_collapse_in_the_middle_of_a_trial_judges_nobody() -> None:
    def seconds(_: int, plan: Plan) -> float:
        return 0.20 if all_are(plan) else 0.17 if all_are(plan, RIVAL) else 0.19

    before, _ = tried(seconds, measured(GIGABIT))
    slow = measured(SLOW, step_seconds=3.0, latest_seconds=3.0)
    after, _ = decide(before, slow, before.step + DEFAULT.every, BUCKETS)
    assert after.doubt is None and not after.rival_saves and after.lessons == before.lessons
    assert not any(bucket.barred for bucket in after.buckets)


def test_cc18_with_other_hosts_all_is_measured_anew() -> None:
    def seconds(_: int, plan: Plan) -> float:
        return 0.20 if all_are(plan) else 0.17 if all_are(plan, RIVAL) else 0.19

    states, _ = train(40, seconds, measured(GIGABIT))
    assert states[-1].rival_saves and states[-1].none_step_seconds
    after, _ = decide(states[-1], replace(measured(GIGABIT), step_seconds=0.3), 41 * DEFAULT.every, mlp(hosts=2))
    assert (after.hosts, after.rival_saves, after.none_step_seconds, after.doubt) == (2, 0.0, None, None)
    state, records = after, []
    for number in range(42, 48):
        state, found = decide(state, replace(measured(GIGABIT), step_seconds=0.3), number * DEFAULT.every, mlp(hosts=2))
        records += found
    assert compared_at(records) == [46 * DEFAULT.every], "what is in force is compared with the others"


def test_cc19_a_rival_that_would_break_the_budget_is_not_tried() -> None:
    def seconds(_: int, plan: Plan) -> float:
        return 0.20 if all_are(plan) else 0.17 if all_are(plan, RIVAL) else 0.19

    rounding = {(bucket, str(RIVAL)): 0.2 for bucket in range(2)}
    states, _ = train(40, seconds, measured(GIGABIT, overrides=rounding))
    assert not rivals(states)
