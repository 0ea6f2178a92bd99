"""GM-36, GM-38 and the operator's commands: hosts that are drained, evicted, readmitted and scaled while a job trains.

Its coordinator asks agents and operators for certificates.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.gang import Gang

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SMALL = ("--set", "hosts.max=2", "--set", "ranks_per_host=1", "--set", "spares_per_host=0")
GUARDED = ("--set", "security.plaintext=never")


@pytest.fixture(scope="module")
def gang(start: Callable[..., Gang], paced_job: Path) -> Gang:
    """Two hosts of one rank that train."""
    gang = start(paced_job, *SMALL, *GUARDED, name="operated")
    gang.until_full(2, 0)
    return gang


def told(gang: Gang, *words: object) -> str:
    """What a command on the job answers; it is to be accepted."""
    done = gang.command(*words, "--storage", gang.storage)
    assert done.returncode == 0, done.stdout
    return done.stdout


def refused(gang: Gang, *words: object) -> str:
    done = gang.command(*words, "--storage", gang.storage)
    assert done.returncode == 2, done.stdout
    return done.stdout


def hosts(gang: Gang) -> dict[str, dict[str, object]]:
    return {host["host"]: host for host in json.loads(told(gang, "hosts", gang.name, "--json"))}


def until_alone(gang: Gang) -> None:
    """One rank trains, and goes on to."""
    gang.until("one rank", lambda: len(gang.members()) == 1)
    gang.until_more(20)
    assert len(gang.members()) == 1


def test_gm38_a_drained_host_leaves_at_a_step_and_comes_back_when_it_is_readmitted(gang: Gang) -> None:
    discarded = gang.status()["discarded"]  # type: ignore[index]
    assert "host-2 leaves after the step" in told(gang, "drain", gang.name, "host-2", "--reason", "new kernel")
    until_alone(gang)
    assert list(hosts(gang)) == ["host-1"] and gang.status()["discarded"] == discarded  # type: ignore[index]
    assert gang.events("host_leaves")[-1]["reason"] == "new kernel"
    assert "host-2 may be taken again" in told(gang, "readmit", gang.name, "host-2")
    gang.until_full(2, 0)
    assert hosts(gang)["host-2"]["evictions"] == 0


def test_gm36_an_evicted_host_comes_back_through_the_host_test(gang: Gang) -> None:
    assert "host-2 is removed" in told(gang, "evict", gang.name, "host-2", "--reason", "smells")
    until_alone(gang)
    found = hosts(gang)["host-2"]
    assert (found["standing"], found["excluded"], found["state"]) == ("cooling", True, "gone")
    assert "excluded until it is readmitted" in told(gang, "hosts", gang.name)
    since = gang.events()[-1]["t"]
    assert "host-2 is tested" in told(gang, "readmit", gang.name, "host-2")
    test = gang.until_event("host_test", since, host="host-2")
    assert test["passed"] and test["failures"] == []
    gang.until_full(2, 0)
    found = hosts(gang)["host-2"]
    assert (found["standing"], found["evictions"]) == ("probation", 1)


def test_a_running_job_is_scaled_down_and_up(gang: Gang) -> None:
    assert "up to 1 host from now on; to leave: host-2" in told(gang, "scale", gang.name, 1)
    until_alone(gang)
    assert "up to 2 hosts" in told(gang, "scale", gang.name, 2)
    gang.until_full(2, 0)


def test_ck1_an_operator_has_the_state_saved_and_waits_until_it_lies_on_disk(gang: Gang) -> None:
    answer = told(gang, "checkpoint", "save", gang.name, "--wait")
    last = gang.events("operator")[-1]
    assert (last["command"], last["accepted"]) == ("checkpoint", True)
    assert f"the state after step {last['step']} is saved" in answer and "checkpoint of step" in answer
    path = answer.split()[-1]
    assert (gang.folder / path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("drain", "host-9"), "(unknown_host): the job has no host 'host-9' (it has: host-1, host-2)"),
        (("evict", "host-9"), "(unknown_host): the job has no host 'host-9' (it has: host-1, host-2)"),
        (("readmit", "host-1"), "(already): host-1 is healthy, and not kept away"),
        (("readmit", "host-9"), "(unknown_host)"),
        (("scale", 2), "(already): the job runs on up to 2 hosts already"),
        (("scale", 49), "(global_batch): 49 hosts have more ranks than a batch has samples; ask for 48 or less"),
    ],
)
def test_what_a_guard_refuses_is_on_record_and_changes_nothing(gang: Gang, words: tuple[object, ...], answer: str) -> None:
    command, *rest = words
    before = gang.members()
    assert answer in refused(gang, command, gang.name, *rest)
    last = gang.events("operator")[-1]
    assert (last["command"], last["accepted"]) == (command, False) and f"({last['guard']})" in answer
    assert gang.members() == before


def test_certificates_are_shown_and_replaced_while_it_trains(gang: Gang) -> None:
    before = json.loads(told(gang, "certs", "show", gang.name, "--json"))
    assert {each["of"] for each in before["certificates"]} == {
        *("authority", "coordinator", "operator", "agent of host-1", "agent of host-2")
    }
    assert before["refused"] == {}
    members = gang.members()
    assert "replaced the certificates of coordinator, operator, agent of host-1" in told(gang, "certs", "rotate", gang.name)
    after = json.loads(told(gang, "certs", "show", gang.name, "--json"))
    prints = [{each["SHA-256"] for each in shown["certificates"] if each["of"] != "authority"} for shown in (before, after)]
    assert prints[0].isdisjoint(prints[1])
    gang.until_more(5)
    assert gang.members() == members and gang.events("agent_lost") == []


def test_gm33_the_last_host_cannot_be_sent_away(gang: Gang) -> None:
    told(gang, "drain", gang.name, "host-2")
    until_alone(gang)
    for command in ("drain", "evict"):
        answer = refused(gang, command, gang.name, "host-1")
        assert "(min_hosts): without host-1 there are 0 hosts, fewer than hosts.min, which is 1" in answer


def test_gm38_a_host_whose_agent_receives_sigterm_leaves_after_the_step(gang: Gang) -> None:
    told(gang, "readmit", gang.name, "host-2")
    gang.until_full(2, 0)
    gang.until_more(20)
    before = gang.status()["discarded"]  # type: ignore[index]
    pid = hosts(gang)["host-2"]["agent_pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGTERM)
    heard = gang.until_event("drain_notice", 0.0, host="host-2", source="agent")
    gang.until_event("host_left", heard["t"], host="host-2")
    until_alone(gang)
    assert gang.status()["discarded"] == before  # type: ignore[index]


def test_gm10_the_log_replays_and_every_sample_was_seen_once(gang: Gang) -> None:
    gang.signal(signal.SIGTERM)
    assert gang.end() == 130, gang.describe()
    replayed = gang.command("governor", "replay", gang.folder / "governor.jsonl")
    assert replayed.returncode == 0 and "all the same" in replayed.stdout, replayed.stdout
    audited = gang.command("audit", gang.folder)
    assert audited.returncode == 0 and "audit: each sample once" in audited.stdout, audited.stdout
    shown = told(gang, "events", gang.name)
    assert "host_leaves" in shown and "verdict" in shown
    assert gang.left_over() == []
