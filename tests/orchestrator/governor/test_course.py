"""GM-20, section 7: a loss that jumps for all hosts, and a job that falls behind."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from orchestrator.governor.codes import Code, Scope, Weight
from orchestrator.governor.config import GovernorConfig, Mode
from orchestrator.governor.course import ENOUGH_WINDOWS, IN_A_ROW, PACED, WINDOWS, Course, after
from orchestrator.governor.hosts import HostState
from orchestrator.governor.readings import Observation
from orchestrator.governor.verdicts import Act, Verdict
from tests.orchestrator.governor.fleet import ENFORCED, Change, Fleet


def of_the_job(fleet: Fleet, code: Code) -> list[Verdict]:
    return [each for each in fleet.verdicts if each.target == "job" and each.reasons == (code,)]


def all_with(fleet: Fleet, change: Change) -> dict[str, Change]:
    return dict.fromkeys(fleet.hosts, change)


def higher_loss(times: float) -> Change:
    return lambda each: replace(each, loss=(each.loss or 0.0) * times)


def longer_gradient(times: float) -> Change:
    return lambda each: replace(each, norm=(each.norm or 0.0) * times)


# ---------------------------------------------------------------------- a jump


@pytest.mark.parametrize("change", [higher_loss(6), longer_gradient(6)])
def test_gm20_a_jump_of_all_is_said_once_and_all_hosts_test_themselves(change: Change) -> None:
    fleet = Fleet(16)
    fleet.evaluate(ENOUGH_WINDOWS)
    fleet.evaluate(4, all_with(fleet, change))
    (said,) = of_the_job(fleet, Code.LOSS_SPIKE)
    assert (said.act, said.scope, said.weight) == (Act.TEST, Scope.JOB, Weight.JOB)
    assert sorted(fleet.tests) == sorted(fleet.hosts)
    assert all(fleet.record(host).state is HostState.HEALTHY for host in fleet.hosts)
    fleet.evaluate(2)
    fleet.evaluate(2, all_with(fleet, change))
    assert len(of_the_job(fleet, Code.LOSS_SPIKE)) == 2, "it was back in between"


def test_gm20_a_host_that_fails_its_test_after_a_jump_is_evicted() -> None:
    fleet = Fleet(16)
    fleet.evaluate(ENOUGH_WINDOWS)
    fleet.broken.add("h3")
    fleet.evaluate(IN_A_ROW, all_with(fleet, higher_loss(6)))
    assert (Act.EVICT, (Code.HOST_TEST_FAILED,)) in fleet.said("h3")
    assert not fleet.record("h3").state.is_live
    assert all(fleet.record(host).state is HostState.HEALTHY for host in fleet.hosts if host != "h3")


def test_gm20_a_host_that_falls_silent_while_it_is_tested_is_judged_by_the_test_all_the_same() -> None:
    fleet = Fleet(16)
    fleet.evaluate(ENOUGH_WINDOWS)
    fleet.answers = False
    fleet.evaluate(IN_A_ROW, all_with(fleet, higher_loss(6)))
    fleet.late("h3")
    assert fleet.record("h3").state is HostState.SUSPECT and fleet.record("h3").is_tested
    fleet.test("h3", passed=False)
    assert not fleet.record("h3").state.is_live


@pytest.mark.parametrize("mode", [Mode.SHADOW, Mode.ADVISE])
def test_gm41_a_jump_that_is_not_acted_on_tests_nobody(mode: Mode) -> None:
    fleet = Fleet(16, GovernorConfig(certain=mode))
    fleet.evaluate(ENOUGH_WINDOWS)
    fleet.evaluate(IN_A_ROW, all_with(fleet, higher_loss(6)))
    (said,) = of_the_job(fleet, Code.LOSS_SPIKE)
    assert said.mode is mode and not fleet.tests and not fleet.state.hosts.tested


def test_gm20_what_one_host_has_is_no_jump_of_the_job() -> None:
    fleet = Fleet(16)
    fleet.evaluate(ENOUGH_WINDOWS)
    fleet.evaluate(IN_A_ROW, {"h3": higher_loss(50)})
    assert not of_the_job(fleet, Code.LOSS_SPIKE)


def test_gm20_a_loss_that_falls_or_climbs_slowly_is_no_jump() -> None:
    course = Course()
    for loss in [*(9.0 * 0.7**n for n in range(30)), *(9.0 * 0.7**30 * 1.15**n for n in range(80))]:
        course = after(course, [Observation(loss=loss)], 0.0, 0, None)
        assert not course.has_jumped
    assert len(course.losses) == WINDOWS


def test_gm20_a_batch_that_is_hard_by_chance_is_no_jump() -> None:
    """What a small model that fits has, on one host: losses that differ by half, and now and then one that is far
    beyond."""
    chance, course, far = random.Random(1), Course(), 0
    for _ in range(5000):
        course = after(course, [Observation(loss=0.01 * chance.lognormvariate(0, 0.5))], 0.0, 0, None)
        far += course.high > 0
        assert not course.has_jumped
    assert far > 0


def test_gm20_where_nothing_is_known_nothing_changes() -> None:
    course = Course(losses=(1.0,) * 5, high=IN_A_ROW)
    assert after(course, [Observation(), Observation()], 0.0, 0, None).has_jumped
    assert after(Course(losses=(1.0,) * 3), [Observation(loss=100.0)], 0.0, 0, None).high == 1
    assert not after(Course(losses=(1.0, 1.0)), [Observation(loss=100.0)], 0.0, 0, None).high, "too few windows"
    assert not after(Course(losses=(0.0,) * 5), [Observation(loss=1.0)], 0.0, 0, None).high, "no ratio to nothing"


def test_gm20_after_a_lasting_jump_there_may_be_another() -> None:
    course, jumps = Course(), list[int]()
    for window in range(60):
        before, level = course, 1.0 if window < 10 else 9.0 if window < 40 else 80.0
        course = after(course, [Observation(loss=level)], 0.0, 0, None)
        jumps += [window] if course.has_jumped and not before.has_jumped else []
    assert jumps == [10 + IN_A_ROW - 1, 40 + IN_A_ROW - 1]


def test_gm20_gm32_where_many_fail_after_a_jump_a_person_is_called_and_the_others_stay() -> None:
    """As where all of them write to one disk, and it is full."""
    fleet = Fleet(16)
    fleet.evaluate(ENOUGH_WINDOWS)
    fleet.broken |= set(fleet.hosts)
    fleet.evaluate(IN_A_ROW, all_with(fleet, higher_loss(6)))
    assert of_the_job(fleet, Code.MASS_FAILURE)
    assert len(fleet.hosts) == 16 - 3
    refused = [each for each in fleet.verdicts if each.act is Act.EVICT and each.guard == "mass_failure"]
    assert len(refused) == 13


# ---------------------------------------------------------------------- the pace


def test_section7_a_job_that_falls_behind_says_so_once() -> None:
    """`Fleet` commits a step a second."""
    for wanted, times in ((1.0, 0), (1.06, 1), (None, 0)):
        config = ENFORCED.model_copy(update={"steps_per_second": wanted})
        fleet = Fleet(8, config)
        fleet.evaluate(4 * PACED)
        said = of_the_job(fleet, Code.THROUGHPUT_UNDERRUN)
        assert len(said) == times
        assert all((each.act, each.weight) == (Act.INFORM, Weight.ADVISORY) for each in said)


def test_section7_who_has_caught_up_may_fall_behind_again() -> None:
    fleet = Fleet(8, ENFORCED.model_copy(update={"steps_per_second": 1.0}))
    fleet.evaluate(PACED + 1)
    for _ in range(2):
        fleet.evaluate(PACED, every=10.5)  # 95.2 %: enough for who was not behind
        fleet.evaluate(PACED, every=12.0)
        assert fleet.state.course.is_behind
        fleet.evaluate(PACED, every=10.5)
        assert fleet.state.course.is_behind, "not before 97 %"
        fleet.evaluate(PACED)
        assert not fleet.state.course.is_behind
    assert len(of_the_job(fleet, Code.THROUGHPUT_UNDERRUN)) == 2
