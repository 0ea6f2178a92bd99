"""The job's folder at a start: nothing of an earlier run is lost, whatever the start comes to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from quantarion.v1 import operator_pb2

from orchestrator import folder as folders
from orchestrator.errors import ExitCode, UserError
from orchestrator.folder import JobFolder, prepare
from orchestrator.jobspec import JobSpec
from tests.orchestrator.fake_operator import FakeOperator, append, make_job, served

FILES = ("job.json", "report.json", "result.json", "coordinator.json", "steps.jsonl")


def spec(storage: Path, **values: object) -> JobSpec:
    return JobSpec.model_validate({"name": "demo", "storage": storage, **values})


def start(storage: Path, *, resume: bool = False, **values: object) -> JobFolder:
    return JobFolder(spec(storage, **values), cluster=None, resume=resume, exact=False)


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that has ended after three steps, with a checkpoint that is taken for sound."""
    path = make_job(tmp_path, "demo", address="127.0.0.1:1")
    for name in ("report.json", "result.json"):
        (path / name).write_text('{"of": "the run before"}')
    append(path / "steps.jsonl", *({"step": step, "generation": [1, 1]} for step in (1, 2, 3)))
    monkeypatch.setattr(folders, "_check_resume", lambda *_: (None, 0))
    return path


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def begin(folder: Path) -> None:
    """What a start writes before its first step."""
    append(folder / "events.jsonl", {"t": 1.0, "kind": "coordinator_started"})
    (folder / "coordinator.json").write_text("{}")


def test_a_fresh_start_moves_an_old_folder_aside(earlier: Path) -> None:
    before = content(earlier)
    for number in (1, 2):
        with start(earlier.parent, seed=number) as folder:
            folder.take()
            begin(folder.path)
            append(folder.path / "steps.jsonl", {"step": 1, "generation": [1, 1]})
            assert not folder.give_back()  # it has a step, so it stands
            assert folder.logs == earlier
    assert content(earlier.with_name("demo.1")) == before
    assert json.loads((earlier.with_name("demo.2") / "job.json").read_text())["seed"] == 1
    assert json.loads((earlier / "job.json").read_text())["seed"] == 2
    assert sorted(path.name for path in earlier.parent.iterdir()) == ["demo", "demo.1", "demo.2"]


@pytest.mark.parametrize("resume", [False, True])
def test_before_it_is_taken_a_folder_is_as_it_was(earlier: Path, resume: bool) -> None:
    before = content(earlier)
    with start(earlier.parent, resume=resume) as folder:
        assert content(earlier) == before
        assert not folder.give_back()
    assert content(earlier) == before
    assert [path.name for path in earlier.parent.iterdir()] == ["demo"]


def test_a_start_without_a_step_is_swapped_back(earlier: Path) -> None:
    before = content(earlier)
    with start(earlier.parent) as folder:
        folder.take()
        begin(folder.path)
        assert folder.give_back()
        assert folder.logs == earlier.with_name("demo.1")
    assert content(earlier) == before
    assert "events.jsonl" in content(earlier.with_name("demo.1"))
    assert sorted(path.name for path in earlier.parent.iterdir()) == ["demo", "demo.1"]


def test_a_start_in_which_nothing_ran_leaves_nothing(earlier: Path) -> None:
    before = content(earlier)
    for storage in (earlier.parent, earlier.parent / "empty"):
        with start(storage) as folder:
            folder.take()
            assert folder.give_back() is (storage == earlier.parent)
            assert not folder.taken
    assert content(earlier) == before
    assert sorted(path.name for path in earlier.parent.iterdir()) == ["demo", "empty"]
    assert list((earlier.parent / "empty").iterdir()) == []


def test_a_second_start_without_a_step_is_the_one_to_look_at(tmp_path: Path) -> None:
    for seed in (1, 2):
        with start(tmp_path, seed=seed) as folder:
            folder.take()
            begin(folder.path)
            assert not folder.give_back()
    assert json.loads((tmp_path / "demo" / "job.json").read_text())["seed"] == 2
    assert json.loads((tmp_path / "demo.1" / "job.json").read_text())["seed"] == 1


def test_a_resume_without_a_step_keeps_the_report_of_the_run_before(earlier: Path) -> None:
    before = content(earlier)
    with start(earlier.parent, resume=True, seed=9) as folder:
        folder.take()
        assert json.loads((earlier / "job.json").read_text())["seed"] == 9
        assert not (earlier / "report.json").exists()
        begin(earlier)
        append(earlier / "steps.jsonl", {"step": 3, "generation": [1, 1]})  # backfilled, not new
        assert folder.give_back()
        assert folder.logs == earlier
    after = content(earlier)
    assert {name: after[name] for name in FILES[:-1]} == {name: before[name] for name in FILES[:-1]}
    assert sorted(after) == sorted([*before, "events.jsonl"])


def test_a_resume_with_a_step_stands(earlier: Path) -> None:
    with start(earlier.parent, resume=True, seed=9) as folder:
        folder.take()
        append(earlier / "steps.jsonl", {"step": 4, "generation": [2, 1]})
        assert not folder.give_back()
    assert json.loads((earlier / "job.json").read_text())["seed"] == 9
    assert not (earlier / "result.json").exists() and not (earlier / folders.KEPT).exists()


def killed_resume(storage: Path, seed: int) -> Path:
    """What a resume leaves that is killed at any time after `take`."""
    with start(storage, resume=True, seed=seed) as folder:
        folder.take()
        begin(folder.path)
        return folder.path


def test_a_resume_that_was_killed_after_its_first_step_stands(earlier: Path) -> None:
    """Not the report of the run before it, which is of another state."""
    killed_resume(earlier.parent, seed=2)
    append(earlier / "steps.jsonl", {"step": 4, "generation": [2, 1]})
    with start(earlier.parent, resume=True, seed=3) as folder:
        folder.take()
        assert folder.give_back()
    assert json.loads((earlier / "job.json").read_text())["seed"] == 2
    assert not (earlier / "report.json").exists() and not (earlier / folders.KEPT).exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_resume_that_was_killed_before_its_first_step_is_undone_by_the_next_start(earlier: Path, resume: bool) -> None:
    before = content(earlier)
    killed_resume(earlier.parent, seed=2)
    killed_resume(earlier.parent, seed=3)
    with start(earlier.parent, resume=resume, seed=4) as folder:
        folder.take()
        begin(folder.path)
        assert folder.give_back()
    after = content(earlier)
    assert {name: after[name] for name in before} == before
    assert sorted(after) == sorted([*before, "events.jsonl"])


@pytest.mark.parametrize("moment", range(7))
def test_a_resume_that_is_killed_while_it_takes_the_folder_is_undone(
    earlier: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """After any of its renames."""

    class Killed(BaseException):
        pass

    before, replace, left = content(earlier), os.replace, moment

    def kill(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        replace(source, target)

    with start(earlier.parent, resume=True, seed=9) as folder, monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(Killed):
            folder.take()
    with start(earlier.parent, resume=True, seed=9) as folder:
        folder.take()
        assert folder.give_back()
    assert content(earlier) == before


def test_a_start_that_is_killed_loses_nothing(earlier: Path) -> None:
    """Neither what it has moved aside, nor the name."""
    before = content(earlier)
    program = (
        "import os, sys\n"
        "from orchestrator.folder import JobFolder\nfrom orchestrator.jobspec import JobSpec\n"
        "spec = JobSpec.model_validate({'name': 'demo', 'storage': sys.argv[1]})\n"
        "with JobFolder(spec, cluster=None, resume=False, exact=False) as folder:\n"
        "    folder.take()\n    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(earlier.parent)], cwd=Path(__file__).parents[2], check=False
    )
    assert killed.returncode == -9
    assert content(earlier.with_name("demo.1")) == before
    prepare(spec(earlier.parent), cluster=None, resume=False, exact=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_cannot_be_taken_is_as_it_was(earlier: Path, monkeypatch: pytest.MonkeyPatch, resume: bool) -> None:
    """The storage refuses the last of the renames."""
    before, replace, rename = content(earlier), os.replace, os.rename

    def refuse(source: Path, target: Path) -> None:
        if (source.name == "report.json" and target.parent.name == folders.KEPT) or source.name == ".demo.new":
            raise OSError(28, "No space left on device")
        (replace if resume else rename)(source, target)

    with start(earlier.parent, resume=resume) as folder:
        monkeypatch.setattr(os, "replace" if resume else "rename", refuse)
        with pytest.raises(UserError, match="No space left") as refusal:
            folder.take()
        assert refusal.value.exit_code == ExitCode.STORAGE
    assert content(earlier) == before
    assert [path.name for path in earlier.parent.iterdir()] == ["demo"]


def test_what_a_start_leaves_that_is_killed_before_it_has_moved_anything_is_used_again(earlier: Path) -> None:
    fresh = earlier.with_name(".demo.new")
    fresh.mkdir()
    (fresh / "job.json").write_text("{}")
    with start(earlier.parent, seed=7) as folder:
        folder.take()
    assert json.loads((earlier / "job.json").read_text())["seed"] == 7
    assert not fresh.exists()


def test_two_starts_of_one_name_do_not_meet(earlier: Path) -> None:
    with start(earlier.parent) as first:
        with pytest.raises(UserError) as refusal, start(earlier.parent):
            pass
        assert refusal.value.exit_code == ExitCode.RUNNING
        assert str(refusal.value) == (
            f"a job named demo is being started, runs or is ending in another process, which holds {earlier}; wait until "
            "that process has ended, press Ctrl-C there, or choose another name with --set name=…"
        )
        first.take()
        with pytest.raises(UserError), start(earlier.parent):
            pass
    with start(earlier.parent):
        pass


@pytest.mark.parametrize("resume", [False, True])
def test_a_running_job_is_left_alone(earlier: Path, resume: bool) -> None:
    reply = operator_pb2.StatusReply(job="demo", phase="training", step=12)
    with served(FakeOperator(reply)) as address, start(earlier.parent, resume=resume) as late:
        (earlier / "coordinator.json").write_text(json.dumps({"incarnation": 1, "address": address, "pid": os.getpid()}))
        before = content(earlier)
        with (
            pytest.raises(UserError, match="a job named demo is running in") as refusal,
            start(earlier.parent, resume=resume),
        ):
            pass
        assert refusal.value.exit_code == ExitCode.RUNNING
        assert str(refusal.value).endswith(f" stop demo --storage {earlier.parent}")
        with pytest.raises(UserError, match="is running"):
            late.take()
        assert not late.give_back()
    assert content(earlier) == before


def test_storage_that_is_no_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file")
    (tmp_path / "file").write_text("a file")
    for storage in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="--set storage=") as refusal, start(storage):
            pass
        assert refusal.value.exit_code == ExitCode.STORAGE


def test_a_folder_that_somebody_removed_is_put_back(earlier: Path) -> None:
    before = content(earlier)
    with start(earlier.parent) as folder:
        folder.take()
        shutil.rmtree(folder.path)
        assert folder.give_back()
    assert content(earlier) == before


def test_a_resume_from_nothing_names_the_earlier_run(tmp_path: Path) -> None:
    (make_job(tmp_path, "demo.1") / "checkpoints" / "step-3-gen-1.1").mkdir(parents=True)
    make_job(tmp_path, "demo.2")
    with pytest.raises(UserError, match="nothing to resume from") as refusal, start(tmp_path, resume=True):
        pass
    assert refusal.value.exit_code == ExitCode.RESUME
    assert str(refusal.value).endswith(
        f"start afresh without --resume, or move {tmp_path / 'demo.1'} there, an earlier run"
    )
