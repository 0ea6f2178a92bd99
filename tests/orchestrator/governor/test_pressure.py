"""GM-21: hosts that are short of memory, disk or processors are relieved, and nothing else happens to them."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from pydantic import ValidationError

from orchestrator.governor.codes import RESOURCES, Code, Weight
from orchestrator.governor.config import GovernorConfig, Mode, ResourceConfig
from orchestrator.governor.events import Evidence, Joined, Observed, as_dict
from orchestrator.governor.hosts import HostState
from orchestrator.governor.log import Governor, Outset, replay
from orchestrator.governor.pressure import Shortage, shortages
from orchestrator.governor.readings import Observation
from orchestrator.governor.signals import RESOURCE_LIMITS
from orchestrator.governor.verdicts import Act
from tests.orchestrator.governor.fleet import ENFORCED, Change, Fleet

SHORT: dict[Code, Change] = {
    Code.RESOURCE_MEMORY: lambda each: replace(each, memory=0.99),
    Code.RESOURCE_DISK: lambda each: replace(each, disk=0.99),
    Code.RESOURCE_LOAD: lambda each: replace(each, load=5.0),
}
DISK = Shortage("a", Code.RESOURCE_DISK)


def after(before: tuple[Shortage, ...], **resources: float) -> tuple[Shortage, ...]:
    return shortages(before, {"a": Observation(**resources)}, RESOURCE_LIMITS, {"a", "b"})


def test_gm21_a_shortage_begins_beyond_alert_and_ends_at_good() -> None:
    assert after((), disk=0.90) == ()
    assert after((), disk=0.9001) == (DISK,)
    assert after((DISK,), disk=0.81) == (DISK,)
    assert after((DISK,), disk=0.80) == ()


def test_gm21_where_nothing_is_known_it_stays_as_it_is() -> None:
    assert after((DISK,)) == (DISK,) and after(()) == ()
    elsewhere = Shortage("b", Code.RESOURCE_LOAD)
    assert after((elsewhere,), disk=0.95, memory=0.95) == (DISK, Shortage("a", Code.RESOURCE_MEMORY), elsewhere)


def test_gm21_who_is_gone_is_short_of_nothing() -> None:
    assert shortages((DISK,), {"a": Observation(disk=0.99)}, RESOURCE_LIMITS, {"b"}) == ()


@pytest.mark.parametrize("code", RESOURCES)
def test_gm21_a_shortage_is_said_once_and_neither_suspects_nor_evicts(code: Code) -> None:
    fleet = Fleet(16)
    fleet.evaluate(40)
    before = fleet.record("h5")
    fleet.evaluate(100, {"h5": SHORT[code]})
    assert fleet.said("h5") == [(Act.RELIEVE, (code,))]
    assert fleet.verdicts[0].weight is Weight.ADVISORY and fleet.verdicts[0].is_in_force
    assert fleet.state.shortages == (Shortage("h5", code),)
    assert fleet.record("h5").state is HostState.HEALTHY and fleet.record("h5").alerts == ()
    assert fleet.record("h5").trust > before.trust


@pytest.mark.parametrize("code", RESOURCES)
def test_gm22_the_score_of_a_host_is_the_same_with_and_without_a_shortage(code: Code) -> None:
    """Else a full disk would order hosts for removal, and keep one that has come back on probation."""
    fleets = Fleet(16), Fleet(16)
    for fleet, changes in zip(fleets, ({}, {"h5": SHORT[code]}), strict=True):
        fleet.evaluate(30, changes)
    assert fleets[0].record("h5").score == fleets[1].record("h5").score
    assert fleets[0].state.hosts == fleets[1].state.hosts


def test_gm21_who_is_evicted_is_short_of_nothing_any_more() -> None:
    fleet = Fleet(4)
    fleet.evaluate(1, {"h1": SHORT[Code.RESOURCE_DISK]})
    assert fleet.state.shortages == (Shortage("h1", Code.RESOURCE_DISK),)
    fleet.tell(Evidence(fleet.now, "h1", Code.OPERATOR_EVICT))
    fleet.evaluate(1)
    assert not fleet.state.shortages


def test_gm41_relief_has_a_mode_of_its_own() -> None:
    fleet = Fleet(4, GovernorConfig(relief=Mode.SHADOW))
    fleet.evaluate(1, {"h1": SHORT[Code.RESOURCE_DISK]})
    assert [(each.act, each.mode) for each in fleet.verdicts] == [(Act.RELIEVE, Mode.SHADOW)]


def test_gm21_limits_can_be_written() -> None:
    config = GovernorConfig.model_validate({"resources": {"RESOURCE_DISK": {"alert": 0.5, "good": 0.4}}})
    assert config.resource(Code.RESOURCE_DISK) == (0.4, 0.5, 0.97)
    assert config.resource(Code.RESOURCE_LOAD) == RESOURCE_LIMITS[Code.RESOURCE_LOAD]
    fleet = Fleet(4, config)
    fleet.evaluate(1, {"h1": lambda each: replace(each, disk=0.6)})
    assert fleet.said("h1") == [(Act.RELIEVE, (Code.RESOURCE_DISK,))]


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        (
            {"THERMAL": {"alert": 0.5}},
            "governor.resources has THERMAL, which has no limits; write one of RESOURCE_MEMORY, ",
        ),
        (
            {"RESOURCE_DISK": {"alert": 0.99}},
            "governor.resources.RESOURCE_DISK has good 0.8, alert 0.99 and bad 0.97, but ",
        ),
        ({"RESOURCE_DISK": {"mode": "enforce"}}, "Extra inputs are not permitted"),
    ],
)
def test_gm21_limits_that_cannot_be_meant_are_refused(resources: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        GovernorConfig.model_validate({"resources": resources})
    assert sentence in str(refused.value)


def test_gm10_shortages_replay_and_logs_from_before_there_were_any_do_too() -> None:
    log = io.StringIO()
    governor = Governor(Outset(ENFORCED, 4), log)
    governor.tell(Joined(0.0, "a", "", first=True))
    for number, disk in enumerate((0.5, 0.95, 0.85, 0.7, 0.95)):
        governor.tell(Observed(10.0 * number, {"a": Observation(disk=disk, busy=0.01)}, number))
    lines = log.getvalue().splitlines(keepends=True)
    found = replay(lines)
    assert (found.difference, found.verdicts) == (None, 2)
    head = lines[0].replace('"relief":"enforce",', "").replace('"resources":{},', "")
    assert "relief" not in head and "resources" not in head
    observed = '{"event":"observed","observations":{"a":{"busy":0.01}},"steps":1,"time":10.0}\n'
    older = replay([head, lines[1], observed])
    assert (older.difference, older.events) == (None, 2)


def test_gm10_what_is_not_known_is_not_logged() -> None:
    plain = as_dict(Observed(1.0, {"a": Observation(memory=0.5)}, 1))
    assert plain["observations"] == {"a": {"memory": 0.5}}


def test_policy_of_a_config_without_changes_is_as_delivered() -> None:
    assert GovernorConfig().relief is Mode.ENFORCE and GovernorConfig().resources == {}
    assert ResourceConfig().limits(RESOURCE_LIMITS[Code.RESOURCE_DISK]) == RESOURCE_LIMITS[Code.RESOURCE_DISK]
