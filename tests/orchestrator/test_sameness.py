"""Hosts that would train with something else are not let in, and are told why (GM-9)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orchestrator.governor.codes import Code, Weight
from orchestrator.sameness import Sameness
from orchestrator.sentences import event_sentence
from orchestrator.streams import HostStream
from tests.orchestrator.real_coordinator import RealCoordinator

OWN = {"python": "3.11", "torch": "2.13.0", "quantarion": "a", "job": "b", "script": "c"}


@pytest.fixture
def told() -> list[dict[str, object]]:
    return []


@pytest.fixture
def sameness(told: list[dict[str, object]]) -> Sameness:
    return Sameness(OWN, told.append)


def test_gm9_a_host_that_has_the_same_may_join(sameness: Sameness, told: list[dict[str, object]]) -> None:
    assert sameness.objection("host-2", OWN) is None
    assert told == []


@pytest.mark.parametrize(
    ("has", "differs", "sentence"),
    [
        (
            {"torch": "2.12.0"},
            ["torch"],
            "may not join: it has torch 2.12.0 instead of 2.13.0; install the same on all hosts",
        ),
        (
            {"python": "3.10", "quantarion": "x"},
            ["python", "quantarion"],
            "may not join: it has Python 3.10 instead of 3.11, another Quantarion; install the same on all hosts",
        ),
        ({"job": ""}, ["job"], "may not join: it has no job.json; its storage is not the folder that the job lies in"),
        (
            {"script": "x"},
            ["script"],
            "may not join: it has another file as task.script; put the script where all hosts see the same file",
        ),
    ],
)
def test_gm9_what_differs_is_named_with_what_to_do(
    has: dict[str, str], differs: list[str], sentence: str, sameness: Sameness, told: list[dict[str, object]]
) -> None:
    assert sameness.objection("host-2", OWN | has) == sentence
    (event,) = told
    assert event == {"host": "host-2", "code": "JOIN_MISMATCH", "differs": differs, "message": f"host-2 {sentence}"}
    assert event_sentence({"kind": "join_refused", "t": 0.0, **event}) == f"host-2 {sentence}"


def test_gm9_who_says_nothing_may_not_join(sameness: Sameness) -> None:
    assert str(sameness.objection("host-2", {})).startswith("may not join: it does not say")


def test_gm9_an_agent_that_asks_again_and_again_is_on_record_once(
    sameness: Sameness, told: list[dict[str, object]]
) -> None:
    for _ in range(100):
        sameness.objection("host-2", OWN | {"torch": "2.12.0"})
    assert len(told) == 1
    assert sameness.objection("host-2", OWN) is None
    sameness.admitted.discard("host-2")
    sameness.objection("host-2", OWN | {"torch": "2.12.0"})
    assert len(told) == 2


def test_gm9_what_changes_on_disk_is_nothing_to_hosts_of_the_job(sameness: Sameness, told: list[dict[str, object]]) -> None:
    """Their processes have loaded it before; an agent that is started again reads it anew."""
    assert sameness.objection("host-2", OWN) is None
    assert sameness.objection("host-2", OWN | {"script": "edited"}) is None
    assert sameness.objection("host-3", OWN | {"script": "edited"}) is not None
    assert len(told) == 1


def test_gm9_where_the_coordinator_lacks_the_script_the_first_host_has_the_one_that_counts() -> None:
    sameness = Sameness(OWN | {"script": ""}, lambda fields: None)
    assert sameness.objection("host-1", OWN) is None
    assert sameness.objection("host-2", OWN | {"script": "d"}) is not None
    assert sameness.objection("host-3", OWN) is None


def test_gm9_a_mismatch_counts_against_nobody() -> None:
    assert Code.JOIN_MISMATCH.weight is Weight.ADVISORY


def test_gm9_a_host_with_another_torch_is_not_attached_and_nothing_has_changed(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RealCoordinator.opened(tmp_path) as job:
            hello = job.hello("host-2")
            hello.software["torch"] = "1.0.0"
            before = job.membership
            assert "torch 1.0.0" in str(job.attach(hello, HostStream("host-2")))
            assert job.membership == before and job.attached == []
            assert job.attach(job.hello("host-2"), HostStream("host-2")) is None

    asyncio.run(scenario())
