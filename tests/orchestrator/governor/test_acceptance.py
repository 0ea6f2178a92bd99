"""Section 12 (a): every transition and every code fires; (b) a day of normal hosts evicts none, and its log says the same
again. (c), (d): `tests/protocol/test_storm.py`, `test_interleavings.py`; (e): `tests/gang/test_governor.py`; (f), (g):
`test_policy.py`.
"""

from __future__ import annotations

import ast
import random
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from orchestrator.governor.codes import NOISY, RESOURCES, Code, Scope, Weight
from orchestrator.governor.events import Beat, Evidence, Joined, Late, Observed
from orchestrator.governor.hosts import HostRecord, HostState
from orchestrator.governor.log import Governor, LogFile, Outset, replay
from orchestrator.governor.policy import _Turn
from orchestrator.governor.readings import Observation
from orchestrator.governor.verdicts import Act
from tests.orchestrator.governor.fleet import ENFORCED, Change, Fleet, normal, slower
from tests.orchestrator.governor.test_policy import SICK, warm

TESTS = Path(__file__).parents[2]

H, S, P, Q, E, C = (
    HostState.HEALTHY,
    HostState.SUSPECT,
    HostState.PROBATION,
    HostState.QUARANTINED,
    HostState.EVICTED,
    HostState.COOLING,
)
TRANSITIONS = {
    (None, H),
    (None, P),
    (H, S),
    (S, H),
    (S, Q),
    (P, Q),
    (H, E),
    (S, E),
    (P, E),
    (Q, E),
    (Q, P),
    (E, C),
    (C, P),
    (P, H),
}
"""The table of section 7. A host that fails its test while it cools down is evicted again, so that it waits for longer."""

SHORT: dict[Code, Change] = {
    Code.RESOURCE_MEMORY: lambda each: replace(each, memory=0.99),
    Code.RESOURCE_DISK: lambda each: replace(each, disk=0.99),
    Code.RESOURCE_LOAD: lambda each: replace(each, load=9.0),
}

NOT_SAID_BY_THE_POLICY = {
    Code.JOIN_MISMATCH: "orchestrator/test_sameness.py",
    Code.NONFINITE_JOB: "gang/test_governor.py",
    Code.DIGEST_SPLIT: "gang/test_digests.py",
    Code.QUORUM_LOST: "protocol/test_quorum.py",
    Code.TOPOLOGY_SPLIT: "orchestrator/test_gauging.py",
    Code.GROUP_LEADER_LOST: "orchestrator/test_leaders.py",
    Code.DRAIN: "gang/test_drains.py",
}
"""Who decides is the membership or the coordinator; a test there asserts on an event that has the code."""


def stories() -> list[Fleet]:
    """Of everything that there is, once."""
    told = list[Fleet]()
    for code in NOISY:  # suspect, quarantined, evicted, cooling, probation, healthy
        told.append(fleet := warm())
        fleet.evaluate(3, {"h5": SICK[code]})
        fleet.evaluate(60)
    told.append(fleet := warm())  # suspect, and well again; late, and in time again
    fleet.evaluate(1, {"h5": SICK[Code.THERMAL]})
    fleet.evaluate(31)
    fleet.late("h6")
    for _ in range(3):
        fleet.tell(Beat(fleet.now, "h6"))
    for code in (code for code in Code if code.weight is Weight.HIGH and code.scope is Scope.NODE):
        told.append(fleet := warm())
        fleet.tell(Evidence(fleet.now, "h5", code))
    told.append(fleet := warm())  # gone for certain while it was suspect, and while it was on probation; two alerts there
    fleet.tell(Late(fleet.now, "h5"))
    fleet.tell(Evidence(fleet.now, "h5", Code.HEARTBEAT_DEAD))
    fleet.wait(1)
    fleet.tell(Evidence(fleet.now, "h5", Code.DEVICE_LOST))
    fleet.wait(1)
    fleet.evaluate(1, {"h5": SICK[Code.GRAD_NORM]})
    fleet.tell(Joined(fleet.now, "another", "g0", first=False))
    told.append(fleet := Fleet(4))  # it stays where the job would be no faster, once it has passed its test
    fleet.evaluate(40)
    fleet.evaluate(10, {"h1": slower(1.40)})
    for code in (Code.THERMAL, Code.NET_LOSS):  # what a group has
        told.append(fleet := Fleet(128))
        fleet.evaluate(2)
        fleet.evaluate(2, {f"h{i}": SICK[code] for i in range(16)})
    for code in RESOURCES:
        told.append(fleet := warm())
        fleet.evaluate(1, {"h5": SHORT[code]})
    told.append(fleet := warm())  # many at once
    for host in ("h1", "h2", "h3"):
        fleet.tell(Evidence(fleet.now, host, Code.PROC_EXIT))
    told.append(fleet := Fleet(4))  # too few
    fleet.broken |= {"h0", "h1", "h2"}
    for host in ("h0", "h1", "h2"):
        fleet.now += 100
        fleet.tell(Evidence(fleet.now, host, Code.HEARTBEAT_DEAD))
    fleet.wait(10)
    told.append(fleet := warm())  # the loss of all, and too few steps
    fleet.evaluate(2, dict.fromkeys(fleet.hosts, lambda each: replace(each, loss=99.0)))
    told.append(fleet := Fleet(4, ENFORCED.model_copy(update={"steps_per_second": 9.0})))
    fleet.evaluate(10)
    told.append(fleet := warm())
    fleet.evaluate(1, {"h5": lambda each: Observation()})
    return told


def test_section12a_every_transition_and_every_code_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set[tuple[HostState | None, HostState]]()
    enter, join = _Turn._enter, _Turn.join

    def entered(turn: _Turn, record: HostRecord, state: HostState, **others: Any) -> None:
        seen.add((turn.hosts[record.host].state, state))
        enter(turn, record, state, **others)

    def joined(turn: _Turn, event: Joined) -> None:
        join(turn, event)
        seen.add((None, turn.hosts[event.host].state))

    monkeypatch.setattr(_Turn, "_enter", entered)
    monkeypatch.setattr(_Turn, "join", joined)
    told = stories()
    assert TRANSITIONS - seen == set()
    assert seen - TRANSITIONS <= {(C, E), *((state, state) for state in HostState)}
    verdicts = list(chain.from_iterable(fleet.verdicts for fleet in told))
    codes = {code for verdict in verdicts for code in verdict.reasons}
    reasons = {record.score.reason for fleet in told for record in fleet.state.hosts.values()}
    codes |= {Code.TELEMETRY_GAP} if Code.TELEMETRY_GAP in reasons else set()
    assert set(Code) - codes - NOT_SAID_BY_THE_POLICY.keys() == set()
    assert codes & NOT_SAID_BY_THE_POLICY.keys() == set()
    assert {verdict.act for verdict in verdicts} >= set(Act) - {Act.COOL, Act.ROLL_BACK}


@pytest.mark.parametrize("code", NOT_SAID_BY_THE_POLICY)
def test_section12a_what_the_policy_does_not_say_is_asserted_on_where_it_is_said(code: Code) -> None:
    """By a test function with an assertion in which the code's name stands."""
    tree = ast.parse((TESTS / NOT_SAID_BY_THE_POLICY[code]).read_text())
    asserts = (each for each in ast.walk(tree) if isinstance(each, ast.Assert))
    assert any(code.value in ast.unparse(each) for each in asserts)


@pytest.mark.parametrize("hours", [1, pytest.param(24, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_section12b_gm10_gm42_normal_hosts_lose_nobody_and_the_log_says_the_same_again(hours: int, tmp_path: Path) -> None:
    """888 of them, all rules enforced."""
    chance, path = random.Random(1), tmp_path / "governor.jsonl"
    governor = Governor(Outset(ENFORCED, 888, seed=1), LogFile(path))
    for number in range(888):
        governor.tell(Joined(0.0, f"h{number}", f"g{number % 14}", first=True))
    verdicts = []
    for window in range(1, hours * 360 + 1):
        observations = {f"h{number}": normal(chance) for number in range(888)}
        verdicts += governor.tell(Observed(10.0 * window, observations, 100 * window))
    assert [each for each in verdicts if each.act in (Act.QUARANTINE, Act.EVICT)] == []
    assert [each.target for each in verdicts if each.scope is Scope.JOB] == []
    with path.open() as lines:
        again = replay(lines)
    assert (again.events, again.difference) == (888 + hours * 360, None)
