"""`quantarion checkpoint save`: what is asked, and what the events say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quantarion.v1 import operator_pb2 as pb

from orchestrator import save_command
from orchestrator.errors import ExitCode, UserError
from orchestrator.save_command import Request, checkpoint
from tests.orchestrator.fake_operator import FakeOperator, append, make_job, served

EVENTS = "events.jsonl"


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"t": 1.0, "kind": kind, **fields}


def saved(step: int, tier: str = "exact") -> dict[str, Any]:
    sizes = {"bytes": 1_230_000, "raw_bytes": 2_000_000, "seconds": 0.05}
    return event("checkpoint", path=f"checkpoints/step-{step}-gen-1.1", tier=tier, step=step, **sizes)


def operator_of(folder: Path, *then: dict[str, Any]) -> FakeOperator:
    """It accepts, and then that happens."""
    operator = FakeOperator(pb.StatusReply(job=folder.name, phase="training", step=10))
    asked = event("operator", command="checkpoint", accepted=True, guard="", step=12)
    operator.asked = lambda request: append(folder / EVENTS, {**asked, "id": request}, *then)
    return operator


def outcome(step: int, *events: dict[str, Any]) -> Request:
    request = Request("mine", step)
    for each in events:
        request.take(each)
    return request


MINE = event("operator", id="mine", command="checkpoint")


@pytest.mark.parametrize(
    ("events", "step"),
    [
        ([saved(12), MINE], None),  # of before it was asked for, on a line that was left
        ([MINE, saved(11), saved(12, "qins"), event("operator", id="other")], None),
        ([MINE, saved(12)], 12),
        ([MINE, saved(11), saved(14)], 14),
        ([MINE, event("checkpoint_failed", error="stale", stale=True), saved(13)], 13),
        ([MINE, event("finished", step=10, message="", exit_code=0), saved(10)], 10),
        ([MINE, saved(9), event("failed", step=10, message="", exit_code=1)], None),
    ],
)
def test_the_state_after_the_step_counts_or_a_later_one_or_the_last(events: list[dict[str, Any]], step: int | None) -> None:
    found = outcome(12, *events).outcome
    assert (found and found["step"]) == step


def test_without_waiting_it_only_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    with served(operator_of(folder)) as address:
        make_job(tmp_path, "demo", address=address)
        assert checkpoint("demo", tmp_path, wait=False) == 0
    assert capsys.readouterr().out == "demo: the state after step 12 is saved\n"


def test_with_wait_it_says_where_the_checkpoint_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    with served(operator_of(folder, saved(12))) as address:
        make_job(tmp_path, "demo", address=address)
        append(folder / EVENTS, saved(12), event("operator", id="older", step=12), event("checkpoint_failed", error="full"))
        assert checkpoint("demo", tmp_path, wait=True) == 0
    assert capsys.readouterr().out.endswith("demo: checkpoint of step 12: 1.2 MB in 0.05 s, checkpoints/step-12-gen-1.1\n")


def test_a_disk_that_is_full_is_exit_code_4(tmp_path: Path) -> None:
    full = event("checkpoint_failed", error="cannot write x: the disk is full", stale=False)
    with served(operator_of(tmp_path / "demo", full)) as address:
        make_job(tmp_path, "demo", address=address)
        with pytest.raises(UserError, match="demo cannot save its state, and goes on: cannot write x: the disk") as refusal:
            checkpoint("demo", tmp_path, wait=True)
    assert refusal.value.exit_code == ExitCode.STORAGE


def test_a_job_that_ends_before_is_exit_code_6(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with served(operator_of(folder)) as address:
        make_job(tmp_path, "demo", address=address)
        append(folder / "control" / "journal.jsonl", {"entry": "started"}, {"entry": "ended", "exit_code": 130})
        with pytest.raises(UserError, match="demo has ended and not saved the state after step 12") as refusal:
            checkpoint("demo", tmp_path, wait=True)
    assert refusal.value.exit_code == ExitCode.RAY


def test_a_coordinator_that_does_not_come_back_is_exit_code_6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    monkeypatch.setattr(save_command, "SILENCE_SECONDS", -1.0)
    with served(operator_of(folder)) as address:
        make_job(tmp_path, "demo", address=address)
        with pytest.raises(UserError, match="the coordinator of demo has not answered") as refusal:
            checkpoint("demo", tmp_path, wait=True)
    assert refusal.value.exit_code == ExitCode.RAY


def test_a_guard_that_refuses_is_exit_code_2(tmp_path: Path) -> None:
    operator = operator_of(tmp_path / "demo")
    operator.checkpoint = pb.OperatorReply(message="the state after step 9 is being saved already", guard="already")
    with served(operator) as address:
        make_job(tmp_path, "demo", address=address)
        with pytest.raises(UserError, match=r"demo refuses \(already\): the state after step 9") as refusal:
            checkpoint("demo", tmp_path, wait=True)
    assert refusal.value.exit_code == ExitCode.USAGE
    with pytest.raises(UserError, match="There is no job 'other'") as unknown:
        checkpoint("other", tmp_path, wait=True)
    assert unknown.value.exit_code == ExitCode.USAGE
