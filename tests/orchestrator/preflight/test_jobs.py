"""GM-40: a job of the gate ends once it has shown enough, or its time is over; and the host test before all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quantarion.v1 import operator_pb2

from orchestrator.errors import ExitCode, UserError
from orchestrator.launch import Interrupts, Site
from orchestrator.preflight import host_tests, jobs
from orchestrator.preflight.verdicts import Outcome
from tests.orchestrator.fake_operator import FakeOperator, make_job, served


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LOOK_SECONDS", 0.01)


def watch(
    folder: Path,
    is_shown: Callable[[Path], bool] = lambda folder: False,
    *,
    deadline: float = math.inf,
    signals: tuple[int, ...] = (),
    lost: str | None = None,
) -> int | None:
    nowhere: Any = None
    interrupts = Interrupts()
    interrupts.signals += signals
    return jobs._watch(folder, Site(nowhere, lambda: lost, {}, lambda: None), is_shown, deadline, interrupts)


def training(**values: Any) -> FakeOperator:
    """A coordinator whose job ends some questions after it was asked to."""
    reply = operator_pb2.StatusReply(**{"job": "demo", "phase": "training", "step": 3, "exit_code": 130, **values})
    return FakeOperator(reply, then=["stopping", "stopping", "finished"])


@pytest.mark.parametrize("why", ["shown", "late", "interrupted"])
def test_gm40_a_job_is_ended_once(tmp_path: Path, why: str) -> None:
    operator, looks = training(), list[Path]()

    def is_shown(folder: Path) -> bool:
        looks.append(folder)
        return why == "shown" and len(looks) == 3

    with served(operator) as address:
        folder = make_job(tmp_path, "demo", address=address)
        deadline = time.monotonic() if why == "late" else math.inf
        assert watch(folder, is_shown, deadline=deadline, signals=(2,) if why == "interrupted" else ()) == 130
    assert [(stop.now, stop.reason) for stop in operator.stops] == [(True, "the pre-flight gate has seen enough")]
    assert all(question.driver for question in operator.questions[:1])
    assert len(looks) == (3 if why == "shown" else 0)


def test_pf7_a_job_that_ends_by_itself_is_not_asked_to(tmp_path: Path) -> None:
    operator = training(phase="failed", exit_code=9)
    with served(operator) as address:
        assert watch(make_job(tmp_path, "demo", address=address)) == 9
    assert operator.stops == []


def test_gm40_a_job_without_a_coordinator_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SILENCE_SECONDS", 0.05)
    assert watch(make_job(tmp_path, "demo")) is None


def test_gm40_a_job_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "STOP_SECONDS", 0.05)
    operator = training()
    operator.then = ["stopping"]
    with served(operator) as address:
        assert watch(make_job(tmp_path, "demo", address=address), lambda folder: True) is None
    assert len(operator.stops) == 1


def test_gm40_without_the_cluster_the_gate_is_over(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the head is gone$") as refused:
        watch(make_job(tmp_path, "demo"), lost="the head is gone.")
    assert refused.value.exit_code == ExitCode.FAILED


def test_gm40_the_host_test_of_this_machine() -> None:
    assert host_tests.here() == ""


def test_gm40_a_host_test_that_does_not_end_is_no_passed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_tests, "LIMIT_SECONDS", 0.0)
    assert host_tests.here().startswith("the host test could not be done: ")


def test_gm40_each_host_that_has_failed_is_named() -> None:
    assert host_tests.judged({"a": "", "b": ""}).reason == "2 hosts compute, keep and store what they should"
    assert host_tests.judged({"this machine": ""}).outcome is Outcome.PASSED
    found = host_tests.judged({"b": "its disk", "a": "", "c": "its memory"})
    assert (found.outcome, found.reason) == (Outcome.FAILED, "b: its disk; c: its memory")
