"""What the launcher decides and says; whole runs are in tests/e2e."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from quantarion.v1 import operator_pb2

from orchestrator import folder as folders
from orchestrator import launch
from orchestrator.errors import ExitCode, UserError
from orchestrator.folder import JobFolder
from orchestrator.jobspec import JobSpec
from orchestrator.launch import _has_phases, _Head, _StopRequest, stop_sentence
from orchestrator.view import View
from tests.orchestrator.fake_operator import FakeOperator, append, make_job, served
from workers.memory_file import memory_folder, memory_path
from workers.paths import runtime_dir

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


def test_cc2_the_memory_of_the_ranks_is_removed_with_the_sockets_and_pages(tmp_path: Path) -> None:
    spec = JobSpec.model_validate({"name": "demo", "storage": str(tmp_path), "task": {"script": "train.py"}})
    with JobFolder(spec, cluster=None, resume=False, exact=False) as folder:
        runtime = runtime_dir("demo", folder.path)
        left = [runtime / "w1.page", memory_path(memory_folder(runtime), "w1")]
        for path in left:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        launch._remove_runtime(folder)
    assert not any(path.parent.exists() for path in left)


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


Start = Callable[..., int | str]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Runs `train` on a job `demo` without Ray: a script for `_run`, then the exit code or the sentence it ended with."""
    monkeypatch.setattr(folders, "_check_resume", lambda *_: (None, 0))
    monkeypatch.setattr(launch, "_draw_picture", lambda _: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_ID", raising=False)
    spec = JobSpec.model_validate({"name": "demo", "storage": tmp_path})

    def start(
        code: int, *, steps: int = 0, checkpoint: bool = False, resume: bool = False, verified: bool | None = None
    ) -> int | str:
        def run(folder: JobFolder, *_: object) -> int:
            folder.take()
            (folder.path / "control").mkdir(exist_ok=True)
            append(folder.path / "events.jsonl", {"t": 1.0, "kind": "coordinator_started"})
            append(folder.path / "steps.jsonl", *({"step": n + 1, "generation": [1, 1]} for n in range(steps)))
            (folder.path / "result.json").write_text(json.dumps({"verified": verified}))
            if checkpoint:
                (folder.path / "checkpoints" / f"step-{steps}-gen-1.1").mkdir(parents=True)
            append(folder.path / "control" / "journal.jsonl", {"entry": "ended", "exit_code": code})
            if code in (ExitCode.FAILED, ExitCode.REQUEUE):
                raise UserError("it is lost", code)
            return code

        monkeypatch.setattr(launch, "_run", run)
        monkeypatch.setattr(sys, "argv", ["quantarion", "train", "demo.yaml", *(["--resume"] if resume else [])])
        try:
            return launch.train(spec, address=None, resume=resume, exact=False, report=None)
        except UserError as error:
            return str(error)

    return start


@pytest.mark.parametrize(("verified", "ended", "code"), [(True, 0, 0), (None, 0, 0), (False, 0, 10), (False, 130, 130)])
def test_ta19_train_ends_with_10_where_the_model_is_not_verified(
    start: Start, verified: bool | None, ended: int, code: int
) -> None:
    assert start(ended, steps=3, verified=verified) == code


GO_ON = "train demo.yaml --resume"


def test_how_to_go_on_is_said_where_there_is_a_checkpoint(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(ExitCode.FAILED) == "it is lost"
    assert start(ExitCode.FAILED, steps=3) == "it is lost"
    assert start(ExitCode.STOPPED, steps=3) == 130
    assert "go on" not in capsys.readouterr().out
    for code in (ExitCode.FAILED, ExitCode.REQUEUE):
        failed = start(code, steps=3, checkpoint=True)
        assert isinstance(failed, str) and failed.startswith("it is lost; go on with: ") and failed.endswith(GO_ON)
    assert start(ExitCode.STOPPED, steps=3, checkpoint=True) == 130
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("go on")]
    assert line.startswith("go on with: ") and line.endswith(GO_ON)


def test_after_a_swap_it_is_the_run_before_that_can_be_gone_on_with(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(ExitCode.STOPPED, steps=3, checkpoint=True)
    failed = start(ExitCode.FAILED)
    assert isinstance(failed, str) and failed.startswith("it is lost; go on with the run before: ")
    assert f"{tmp_path / 'demo'} is as the run before has left it; the logs of this one are in" in capsys.readouterr().out
    start(ExitCode.STOPPED)
    assert "\ngo on with the run before: " in capsys.readouterr().out


def test_with_a_run_before_that_is_done_there_is_nothing_to_go_on_with(start: Start) -> None:
    assert start(ExitCode.DONE, steps=3, checkpoint=True) == 0
    assert start(ExitCode.FAILED) == "it is lost"


def test_a_stopped_resume_without_a_step_leaves_the_report_and_says_so(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(ExitCode.STOPPED, steps=3, checkpoint=True)
    report, job = ((tmp_path / "demo" / name).read_text() for name in ("report.json", "job.json"))
    capsys.readouterr()
    assert start(ExitCode.STOPPED, resume=True) == 130
    assert ((tmp_path / "demo" / "report.json").read_text(), (tmp_path / "demo" / "job.json").read_text()) == (report, job)
    restored, go_on, last = capsys.readouterr().out.splitlines()[-3:]
    assert restored.startswith(f"{tmp_path / 'demo'} has job.json, result.json and report.json of the run before again; ")
    assert go_on.startswith("go on with: ") and go_on.endswith(GO_ON)
    assert last == "stopped: 0 steps since the run before"


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
