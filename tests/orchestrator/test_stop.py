"""`quantarion stop`: asks the right coordinator, waits for the end, and says what it waits for."""

from __future__ import annotations

from pathlib import Path

import pytest
from quantarion.v1 import operator_pb2

from orchestrator import stop
from orchestrator.errors import ExitCode, UserError
from tests.orchestrator.fake_operator import FakeOperator, append, make_job, served


def training(job: str) -> operator_pb2.StatusReply:
    return operator_pb2.StatusReply(job=job, phase="training", step=12)


@pytest.mark.parametrize("now", [False, True])
def test_it_asks_and_waits_for_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str], now: bool) -> None:
    operator = FakeOperator(training("demo"), then=["stopping", "stopping", "finished"])
    with served(operator) as address:
        make_job(tmp_path, "demo", address=address)
        assert stop.stop("demo", tmp_path, now) == 0
    assert [asked.now for asked in operator.stops] == [now]
    assert operator.then == []
    text = capsys.readouterr().out
    assert text.count("demo: stopping") == 1
    assert text.endswith("demo has ended at step 12\n")


def test_a_failure_on_the_way_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reply = training("demo")
    reply.message = "the disk is full"
    with served(FakeOperator(reply, then=["failed"])) as address:
        make_job(tmp_path, "demo", address=address)
        assert stop.stop("demo", tmp_path) == 0
    assert "the disk is full" in capsys.readouterr().out


def test_a_job_that_has_ended_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_job(tmp_path, "demo", address="127.0.0.1:1")
    append(folder / "control" / "journal.jsonl", {"entry": "started"}, {"entry": "ended", "exit_code": 0})
    assert stop.stop("demo", tmp_path) == 0
    assert capsys.readouterr().out == "demo is not running\n"


def test_the_job_that_took_over_the_port_is_never_stopped(tmp_path: Path) -> None:
    operator = FakeOperator(training("other"))
    with served(operator) as address:
        make_job(tmp_path, "demo", address=address)
        with pytest.raises(UserError) as refusal:
            stop.stop("demo", tmp_path)
    assert refusal.value.exit_code == ExitCode.RAY
    assert str(refusal.value).endswith(f" doctor --storage {tmp_path}")
    assert operator.stops == []


def test_a_job_that_does_not_end_is_reported(tmp_path: Path) -> None:
    with served(FakeOperator(training("demo"), then=["stopping"])) as address:
        make_job(tmp_path, "demo", address=address)
        with pytest.raises(UserError, match=rf" stop demo --now --storage {tmp_path}$"):
            stop.stop("demo", tmp_path, wait=0.0)


def test_a_job_whose_coordinator_has_not_started(tmp_path: Path) -> None:
    make_job(tmp_path, "demo")
    with pytest.raises(UserError, match="Ctrl-C"):
        stop.stop("demo", tmp_path)


def test_an_unknown_job(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        stop.stop("demo", tmp_path)
    assert refusal.value.exit_code == ExitCode.USAGE
