"""Section 7 and 8: every transition, every guard; section 12's acceptance as far as it needs no process."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from orchestrator.governor.codes import NOISY, Code, Scope, Weight
from orchestrator.governor.config import GovernorConfig, Mode, SignalConfig
from orchestrator.governor.events import Asked, Beat, Evidence, Fenced, HostTested, Joined, Late, Left, Tick, Wish
from orchestrator.governor.hosts import HostState
from orchestrator.governor.readings import Observation
from orchestrator.governor.verdicts import Act
from tests.orchestrator.governor.fleet import Change, Fleet, slower

WARM = 12
"""Evaluations after which the pools of 16 hosts are full."""

SICK: dict[Code, Change] = {
    Code.STRAGGLER: slower(3.0),
    Code.SLOWDOWN: lambda each: replace(each, baseline=(each.baseline or 0.0) / 3),
    Code.GRAD_DIRECTION: lambda each: replace(each, cosine=0.05),
    Code.GRAD_NORM: lambda each: replace(each, norm=30.0),
    Code.LOSS_OUTLIER: lambda each: replace(each, loss=9.0),
    Code.NET_SLOW: lambda each: replace(each, throughput=1e7),
    Code.NET_LOSS: lambda each: replace(each, net_loss=0.1),
    Code.THERMAL: lambda each: replace(each, temperature=99.0),
}


def warm(hosts: int = 16, config: GovernorConfig | None = None) -> Fleet:
    fleet = Fleet(hosts) if config is None else Fleet(hosts, config)
    fleet.evaluate(WARM)
    assert fleet.verdicts == []
    return fleet


# ---------------------------------------------------------------- noisy evidence


@pytest.mark.parametrize("code", NOISY)
def test_gm26_gm27_two_alerts_apart_remove_a_host_for_each_noisy_code(code: Code) -> None:
    fleet = warm()
    fleet.evaluate(1, {"h5": SICK[code]})
    assert fleet.record("h5").state is HostState.SUSPECT
    fleet.evaluate(1, {"h5": SICK[code]})
    assert fleet.record("h5").state is HostState.SUSPECT  # 10 s later it is the same alert
    fleet.evaluate(1, {"h5": SICK[code]})
    assert fleet.record("h5").state is HostState.COOLING
    relief = [Act.RELIEVE] if code is Code.THERMAL else []
    assert fleet.acts("h5") == [Act.SUSPECT, *relief, Act.QUARANTINE, Act.EVICT]
    assert all(code in reasons for _, reasons in fleet.said("h5"))
    assert all(each.target == "h5" for each in fleet.verdicts)


def test_gm26_a_suspect_host_that_is_well_for_long_enough_is_healthy_again() -> None:
    fleet = warm()
    fleet.evaluate(1, {"h5": SICK[Code.THERMAL]})
    fleet.evaluate(30)
    assert fleet.record("h5").state is HostState.SUSPECT
    fleet.evaluate(1)
    assert fleet.record("h5").state is HostState.HEALTHY
    assert fleet.acts("h5") == [Act.SUSPECT, Act.RELIEVE, Act.TRUST_AGAIN]


def test_gm21_heat_is_relieved_at_its_first_alert_before_it_may_count_twice() -> None:
    """Once for as long as it lasts; and in a mode of its own."""
    fleet = warm(config=GovernorConfig())  # noisy: shadow
    for temperature in (84.1, 99.0, 80.0, 75.0, 84.1):
        fleet.evaluate(1, {"h5": partial(replace, temperature=temperature)})
    relieved = [each for each in fleet.verdicts if each.act is Act.RELIEVE]
    assert [each.reasons for each in relieved] == [(Code.THERMAL,)] * 2
    assert all(each.is_in_force and each.target == "h5" for each in relieved)
    assert relieved[0].time == fleet.verdicts[0].time


def test_gm27_an_alert_is_forgotten_after_a_while() -> None:
    fleet = warm()

    def warm_enough(each: Observation) -> Observation:
        return replace(each, temperature=82.0)  # no alert, and not well

    for _ in range(4):
        fleet.evaluate(1, {"h5": SICK[Code.THERMAL]})
        fleet.evaluate(30, {"h5": warm_enough})
    assert fleet.record("h5").state is HostState.SUSPECT
    assert Act.QUARANTINE not in fleet.acts("h5")


def test_gm12_all_reasons_are_kept() -> None:
    fleet = warm()
    fleet.evaluate(3, {"h5": lambda each: SICK[Code.THERMAL](SICK[Code.GRAD_NORM](each))})
    removing = [reasons for act, reasons in fleet.said("h5") if act is not Act.RELIEVE]
    assert len(removing) == 3 and all({Code.THERMAL, Code.GRAD_NORM} <= set(reasons) for reasons in removing)


def test_gm41_in_shadow_mode_a_rule_says_what_it_would_do_and_does_nothing() -> None:
    fleet = warm(config=GovernorConfig())
    fleet.evaluate(5, {"h5": SICK[Code.GRAD_NORM]})
    assert fleet.record("h5").state is HostState.HEALTHY
    assert fleet.acts("h5")[:2] == [Act.SUSPECT, Act.QUARANTINE]
    assert not any(each.is_in_force for each in fleet.verdicts)


def test_gm41_each_noisy_rule_has_a_mode_of_its_own() -> None:
    fleet = warm(config=GovernorConfig(signals={Code.THERMAL: SignalConfig(mode=Mode.ENFORCE)}))
    fleet.evaluate(3, {"h5": SICK[Code.THERMAL], "h6": SICK[Code.GRAD_NORM]})
    assert fleet.states(["h5", "h6"]) == [HostState.COOLING, HostState.HEALTHY]


def test_section12f_a_straggler_is_out_within_a_minute_and_a_mild_one_never() -> None:
    fleet = warm()
    fleet.evaluate(6, {"h5": slower(1.5)})
    assert fleet.record("h5").state is HostState.COOLING
    mild = warm()
    mild.evaluate(300, {"h5": slower(1.25)})
    assert mild.record("h5").state is HostState.HEALTHY
    assert mild.verdicts == []


def test_section12g_all_slowed_together_lose_nobody() -> None:
    fleet = warm()
    fleet.evaluate(100, dict.fromkeys(fleet.hosts, slower(1.5)))
    assert fleet.verdicts == []


def test_gm15_directions_that_are_noise_say_nothing() -> None:
    fleet = Fleet(16)

    def lost(each: Observation) -> Observation:
        return replace(each, cosine=0.06)

    everybody: dict[str, Change] = dict.fromkeys(fleet.hosts, lost)
    fleet.evaluate(WARM, everybody)
    fleet.evaluate(5, everybody | {"h5": lambda each: replace(each, cosine=-0.5)})
    assert fleet.verdicts == []


# ---------------------------------------------------------------- groups


def test_gm29_what_many_of_a_group_have_is_the_groups() -> None:
    fleet = Fleet(128)
    fleet.evaluate(2)
    hot = {f"h{i}": SICK[Code.THERMAL] for i in range(16)}  # of 64
    fleet.evaluate(4, hot)
    assert fleet.states(hot) == [HostState.HEALTHY] * 16
    assert {each.target for each in fleet.verdicts if each.act is Act.RELIEVE} == set(hot)
    (found,) = [each for each in fleet.verdicts if each.act is not Act.RELIEVE]
    assert (found.target, found.act, found.scope) == ("g0", Act.REGROUP, Scope.GROUP)
    assert found.reasons == (Code.GROUP_CORRELATED, Code.THERMAL)
    assert found.weight is Weight.NOISY_GROUP


def test_gm29_what_many_have_of_links_is_in_the_links_of_the_group() -> None:
    fleet = Fleet(128)
    fleet.evaluate(2)
    lossy = {f"h{i}": SICK[Code.NET_LOSS] for i in range(20)}
    fleet.evaluate(4, lossy)
    assert fleet.states(lossy) == [HostState.HEALTHY] * 20
    assert [(each.target, each.act, each.reasons) for each in fleet.verdicts] == [
        ("g0", Act.REGROUP, (Code.GROUP_LINK, Code.NET_LOSS))
    ]


def test_gm29_what_a_few_have_is_their_own() -> None:
    fleet = Fleet(128)
    fleet.evaluate(2)
    fleet.evaluate(3, {f"h{i}": SICK[Code.THERMAL] for i in range(12)})
    assert HostState.COOLING in fleet.states(f"h{i}" for i in range(12))


# ---------------------------------------------------------------- guards


def test_gm31_one_of_a_group_at_a_time_and_a_few_of_the_fleet() -> None:
    fleet = warm()
    sick = {"h5": SICK[Code.GRAD_NORM], "h6": slower(1.7)}
    fleet.evaluate(8, sick)
    assert fleet.states(sick) == [HostState.COOLING, HostState.SUSPECT]  # the lower score first
    assert any(each.guard == "cap" for each in fleet.verdicts if each.target == "h6")
    fleet.evaluate(60, {"h6": slower(1.7)})
    assert Act.EVICT in fleet.acts("h6")


def test_gm32_many_at_once_stop_evictions() -> None:
    fleet = warm()
    for host in ("h1", "h2", "h3"):
        fleet.tell(Evidence(fleet.now, host, Code.PROC_EXIT))
    assert [(each.act, each.reasons) for each in fleet.verdicts if each.scope is Scope.JOB] == [
        (Act.PAUSE, (Code.MASS_FAILURE,))
    ]
    assert all(Act.EVICT in fleet.acts(host) for host in ("h1", "h2", "h3"))  # the dead leave
    fleet.evaluate(3, {"h5": SICK[Code.GRAD_NORM]})
    assert fleet.record("h5").state is HostState.QUARANTINED
    assert next(each.guard for each in fleet.verdicts if each.target == "h5" and each.act is Act.EVICT) == "mass_failure"
    fleet.evaluate(6)
    assert fleet.record("h5").state is HostState.COOLING  # the minute is over


def test_gm33_nobody_is_removed_below_the_minimum() -> None:
    fleet = Fleet(4)
    fleet.evaluate(40)
    fleet.tell(Left(fleet.now, "h3"))
    fleet.tell(Left(fleet.now, "h2"))
    fleet.evaluate(3, {"h1": SICK[Code.THERMAL]})
    assert fleet.record("h1").state is HostState.SUSPECT
    assert fleet.verdicts[-1].guard == "min_hosts"


def test_gm33_too_few_hosts_pause_the_job_once() -> None:
    fleet = Fleet(4)
    fleet.broken |= {"h0", "h1", "h2"}
    for host in ("h0", "h1", "h2"):
        fleet.now += 100
        fleet.tell(Evidence(fleet.now, host, Code.HEARTBEAT_DEAD))
        fleet.tell(Left(fleet.now, host))
    fleet.wait(10)
    assert [each.reasons for each in fleet.verdicts if each.scope is Scope.JOB] == [(Code.MIN_HOSTS,)]


def test_gm34_a_slow_host_stays_where_the_job_would_be_no_faster() -> None:
    """Without one of four, three compute a third more."""
    fleet = Fleet(4)
    fleet.evaluate(40)
    fleet.evaluate(3, {"h1": slower(1.40)})
    assert fleet.record("h1").state is HostState.QUARANTINED
    assert fleet.verdicts[-1].guard == "gain"
    fleet.evaluate(7)
    assert fleet.acts("h1")[-2:] == [Act.TEST, Act.ADMIT]
    assert fleet.record("h1").state is HostState.PROBATION


def test_gm34_a_host_that_fails_its_test_meanwhile_is_evicted() -> None:
    fleet = Fleet(4)
    fleet.broken.add("h1")
    fleet.evaluate(40)
    fleet.evaluate(3, {"h1": slower(1.40)})
    fleet.evaluate(7)
    assert fleet.said("h1")[-1][1][0] is Code.HOST_TEST_FAILED
    assert fleet.record("h1").state is HostState.COOLING


# ---------------------------------------------------------------- certain evidence


@pytest.mark.parametrize("code", [code for code in Code if code.weight is Weight.HIGH and code.scope is Scope.NODE])
def test_gm12_certain_evidence_evicts_in_the_same_tick(code: Code) -> None:
    fleet = warm()
    (verdict,) = fleet.tell(Evidence(fleet.now, "h5", code))
    assert (verdict.act, verdict.reasons, verdict.is_in_force) == (Act.EVICT, (code,), True)
    assert verdict.rolls_back == (code in (Code.SDC_DIGEST, Code.REDUCE_CHECK))
    assert fleet.record("h5").evictions[-1].code is code


def test_gm12_a_warning_never_hides_a_termination() -> None:
    fleet = warm()
    fleet.evaluate(1, {"h5": SICK[Code.THERMAL]})
    (verdict,) = fleet.tell(Evidence(fleet.now, "h5", Code.HANG_CULPRIT))
    assert verdict.reasons == (Code.HANG_CULPRIT, Code.THERMAL)
    assert verdict.act is Act.EVICT


def test_gm6_evidence_against_who_is_gone_is_nothing() -> None:
    fleet = warm()
    fleet.tell(Evidence(fleet.now, "h5", Code.HANG_CULPRIT))
    assert fleet.tell(Evidence(fleet.now, "h5", Code.HANG_CULPRIT)) == []
    assert fleet.tell(Evidence(fleet.now, "nobody", Code.HANG_CULPRIT)) == []


def test_gm18_a_late_heartbeat_is_suspect_until_three_come_in_time() -> None:
    fleet = warm()
    fleet.tell(Late(fleet.now, "h5"))
    for _ in range(2):
        fleet.tell(Beat(fleet.now, "h5"))
        assert fleet.record("h5").state is HostState.SUSPECT
    fleet.tell(Beat(fleet.now, "h5"))
    assert fleet.record("h5").state is HostState.HEALTHY
    assert fleet.record("h5").alerts == ()  # it is no alert


# ---------------------------------------------------------------- return


def test_gm36_an_evicted_host_cools_down_is_tested_and_earns_its_way_back() -> None:
    fleet = warm()
    fleet.evaluate(3, {"h5": SICK[Code.GRAD_NORM]})
    record = fleet.record("h5")
    assert record.returns_at is not None
    assert 60 <= record.returns_at - fleet.now <= 120
    assert record.trust <= 0.5
    fleet.wait(120)
    assert fleet.record("h5").state is HostState.PROBATION
    assert fleet.acts("h5")[-2:] == [Act.TEST, Act.ADMIT]
    fleet.evaluate(31)
    assert fleet.record("h5").state is HostState.PROBATION
    fleet.evaluate(2)  # trust takes 32 clean ones
    assert fleet.record("h5").state is HostState.HEALTHY


def test_gm36_the_first_alert_on_probation_removes_it_again() -> None:
    fleet = warm()
    fleet.evaluate(3, {"h5": SICK[Code.GRAD_NORM]})
    fleet.evaluate(70)
    fleet.tell(Evidence(fleet.now, "h5", Code.DEVICE_LOST))
    fleet.wait(1)
    assert fleet.record("h5").state is HostState.PROBATION
    fleet.evaluate(1, {"h5": SICK[Code.GRAD_NORM]})
    assert fleet.record("h5").state is HostState.COOLING


def test_gm36_a_host_that_fails_its_test_cools_down_for_longer() -> None:
    fleet = warm()
    fleet.broken.add("h5")
    fleet.evaluate(3, {"h5": SICK[Code.GRAD_NORM]})
    for _ in range(3):
        record = fleet.record("h5")
        assert record.state is HostState.COOLING
        assert record.returns_at is not None
        fleet.wait(record.returns_at - fleet.now + 0.01)
    found = fleet.record("h5")
    assert len(found.evictions) == 4
    assert found.returns_at is not None
    assert 480 <= found.returns_at - fleet.now <= 540


def test_gm36_an_excluded_host_waits_for_an_operator() -> None:
    fleet = warm()
    fleet.broken.add("h5")
    fleet.evaluate(3, {"h5": SICK[Code.GRAD_NORM]})
    fleet.wait(40_000)  # tested and failed again and again
    for _ in range(10):
        fleet.wait(3700)
    assert fleet.record("h5").excluded
    fleet.broken.clear()
    count = len(fleet.verdicts)
    fleet.wait(100_000)
    assert len(fleet.verdicts) == count
    fleet.tell(Asked(fleet.now, "h5", Wish.READMIT))
    assert fleet.record("h5").state is HostState.PROBATION


def test_gm36a_a_host_that_was_lost_may_come_back_at_once() -> None:
    fleet = warm()
    fleet.tell(Evidence(fleet.now, "h5", Code.PROC_EXIT))
    fleet.wait(0.1)
    assert fleet.record("h5").state is HostState.PROBATION


def test_gm23_trust_and_evictions_survive_a_replaced_process() -> None:
    fleet = warm()
    fleet.tell(Evidence(fleet.now, "h5", Code.SDC_DIGEST))
    before = fleet.record("h5")
    fleet.tell(Joined(fleet.now, "h5", "g0", first=False))
    after = fleet.record("h5")
    assert (after.trust, after.evictions, after.state) == (before.trust, before.evictions, HostState.PROBATION)


def test_gm38_who_leaves_as_planned_is_charged_nothing() -> None:
    fleet = warm()
    assert fleet.tell(Left(fleet.now, "h5")) == []
    assert "h5" not in fleet.state.hosts


def test_operators_may_evict_and_what_they_ask_of_strangers_changes_nothing() -> None:
    fleet = warm()
    before = fleet.state
    for wish in Wish:
        assert fleet.tell(Asked(fleet.now, "nobody", wish)) == []
    assert fleet.tell(Asked(fleet.now, "h5", Wish.READMIT)) == []  # it is not away
    assert fleet.state == before
    fleet.tell(Asked(fleet.now, "h5", Wish.EVICT))
    assert fleet.said("h5")[0] == (Act.EVICT, (Code.OPERATOR_EVICT,))
    fleet.wait(1e6)
    assert fleet.record("h5").state is HostState.COOLING
    fleet.tell(Asked(fleet.now, "h5", Wish.READMIT))
    assert fleet.record("h5").state is HostState.PROBATION


def test_events_that_do_not_fit_the_state_change_nothing() -> None:
    fleet = warm()
    before = fleet.state
    for event in (Fenced(fleet.now, "h5"), HostTested(fleet.now, "h5", passed=False), Beat(fleet.now, "h5")):
        assert fleet.tell(event) == []
    assert fleet.state == before


def test_gm10_a_clock_that_jumps_back_stands_still() -> None:
    fleet = warm()
    fleet.tell(Tick(fleet.now - 1000))
    assert fleet.state.time == fleet.now


def test_gm22_a_host_of_which_nothing_is_known_has_no_score_and_no_alerts() -> None:
    fleet = warm()
    fleet.evaluate(5, {"h5": lambda each: Observation()})
    assert fleet.record("h5").score.reason is Code.TELEMETRY_GAP
    assert fleet.verdicts == []
