"""What the launcher decides and says; whole runs are in tests/e2e."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from quantarion.v1 import operator_pb2

from orchestrator import launch
from orchestrator.jobspec import JobSpec
from orchestrator.launch import _has_phases, _Head, _StopRequest, recorded_end, stop_sentence
from orchestrator.view import View
from tests.orchestrator.fake_operator import FakeOperator, append, make_job, served

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("signals", "sentence"),
    [
        ([INT], "Ctrl-C: the step is finished and saved; press Ctrl-C again to end at once, without saving"),
        ([TERM], "SIGTERM: the step is finished and saved; send SIGTERM again to end at once, without saving"),
        ([INT, INT], "Ctrl-C: ending at once, without saving"),
        ([INT, TERM], "SIGTERM: ending at once, without saving"),
    ],
)
def test_a_signal_is_called_what_it_was(signals: list[int], sentence: str) -> None:
    assert stop_sentence(signals, saves=True) == sentence


def test_nothing_is_promised_before_the_first_step() -> None:
    assert stop_sentence([TERM], saves=False) == "SIGTERM: ending, there is no step to be saved"


def test_a_signal_is_repeated_until_the_coordinator_has_heard_it(tmp_path: Path) -> None:
    operator = FakeOperator(operator_pb2.StatusReply(job="demo", phase="training", step=3))
    folder = make_job(tmp_path, "demo")
    request = _StopRequest(folder, View(folder))

    def follow(*signals: int) -> None:
        request.follow(signals)
        if request._asking is not None:
            request._asking.join()

    follow(TERM)  # there is no coordinator yet
    with served(operator) as address:
        make_job(tmp_path / "other", "demo", address=address)
        (tmp_path / "other" / "demo" / "coordinator.json").rename(folder / "coordinator.json")
        follow(TERM)
        follow(TERM)
        follow(TERM, INT)
        follow(TERM, INT)
    assert [(stop.reason, stop.now) for stop in operator.stops] == [("SIGTERM", False), ("Ctrl-C", True)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, True),
        ({"task": {"script": "train.py"}}, False),
        ({"task": {"script": "train.py"}, "phases": {"fp32_epochs": 5}}, False),
        ({"task": {"script": "train.py"}, "phases": {"fp32_epochs": 5, "qat_epochs": 0}}, False),
        ({"task": {"script": "train.py"}, "phases": {"fp32_epochs": 5, "qat_epochs": 2}}, True),
    ],
)
def test_a_script_has_phases_only_where_they_are_written(values: dict[str, object], expected: bool) -> None:
    assert _has_phases(JobSpec.model_validate({"name": "demo", **values})) is expected


def test_the_end_on_record_is_that_of_this_run(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    assert recorded_end(tmp_path) is None
    append(events, {"t": 1.0, "kind": "finished", "message": "", "exit_code": 130})
    assert recorded_end(tmp_path) == {"t": 1.0, "kind": "finished", "message": "", "exit_code": 130}
    append(events, {"t": 2.0, "kind": "coordinator_started"}, {"t": 3.0, "kind": "phase"})
    assert recorded_end(tmp_path) is None
    append(events, {"t": 4.0, "kind": "failed", "message": "no", "exit_code": 3}, {"t": 5.0, "kind": "worker_exit"})
    end = recorded_end(tmp_path)
    assert end is not None and end["exit_code"] == 3


def test_a_head_that_is_away_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Ray ends this process for it."""
    now = 100.0
    monkeypatch.setattr(launch.time, "monotonic", lambda: now)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        head = _Head(address)
        now += 1000.0
        assert head.look() is None
    now += launch.HEAD_SILENCE_SECONDS
    assert head.look() is None
    now += 1.0
    assert head.look() == f"The head of the Ray cluster at {address} has not answered for 30 s."
