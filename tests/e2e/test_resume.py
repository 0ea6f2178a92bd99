"""kill -9 of everything, what `doctor` makes of the remains, and a resume on the same and on other ranks.

The run that is killed is the uninterrupted one that a resumed run is compared with: between its last checkpoint and the
kill nothing has happened to it.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.records import Record, read_steps
from tests.e2e.gang import Gang, is_alive, wait_for
from workers.checkpoint import list_checkpoints

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

NAME = "resumed"
EVERY = 40
COMPARED = 20
ONE_HOST = ("--set", "hosts.max=1", "--set", "spares_per_host=0")
LITTERING = ("--set", f"task.script={Path(__file__).with_name('littering.py')}")


@dataclass(frozen=True)
class Dead:
    """What is left of a run that was killed whole."""

    gang: Gang
    checkpoint: int  # step of the newest one
    line: dict[int, Record]  # step to what it had committed there
    strays: list[int]  # pids of what the ranks had started
    copy: Path  # storage with the job's folder as the kill left it


@pytest.fixture(scope="module")
def dead(start: Callable[..., Gang], paced_job: Path, tmp_path_factory: pytest.TempPathFactory) -> Dead:
    gang = start(paced_job, *ONE_HOST, *LITTERING, "--set", f"checkpoint.every={EVERY}", name=NAME)

    def well_after_a_checkpoint() -> bool:
        step = gang.last_step()
        saved = {entry.step for entry in list_checkpoints(gang.folder / "checkpoints")}  # beside the steps, so maybe later
        return step > EVERY and step % EVERY > COMPARED and step - step % EVERY in saved

    gang.until("a step well after a checkpoint", well_after_a_checkpoint)
    return _kill_whole(gang, tmp_path_factory.mktemp("copy"))


def test_doctor_sweeps_what_a_dead_job_left(dead: Dead) -> None:
    assert len(dead.strays) == 2 and all(map(is_alive, dead.strays))
    doctor = dead.gang.command("doctor", "--storage", dead.gang.storage)
    assert doctor.returncode == 0, doctor.stdout
    for stray in dead.strays:
        assert f"ended process {stray}, left by a dead run of {dead.gang.folder}" in doctor.stdout
    assert dead.gang.left_over() == []


def test_an_exact_resume_goes_on_bit_for_bit(dead: Dead, start: Callable[..., Gang], paced_job: Path) -> None:
    resumed = start(paced_job, *ONE_HOST, *LITTERING, "--resume", "--exact", name=NAME)
    resumed.until_step(max(dead.line) + 5)
    resumed.signal(signal.SIGTERM)
    assert resumed.end() == 130, resumed.describe()
    assert resumed.left_over() == []
    assert "SIGTERM: the step is finished and saved" in resumed.output and "Ctrl-C" not in resumed.output
    told = [line.partition("] ")[2] for line in resumed.output.splitlines() if "] step " in line or "] resuming " in line]
    assert told[0] == f"resuming from step {dead.checkpoint} (step-{dead.checkpoint}-gen-1.1)"
    line = {int(step["step"]): step for step in resumed.steps()}
    compared = [step for step in sorted(dead.line) if step > dead.checkpoint]
    assert len(compared) >= COMPARED
    assert [line[step]["loss"] for step in compared] == [dead.line[step]["loss"] for step in compared]
    assert all(line[step]["generation"] > dead.line[step]["generation"] for step in compared)
    assert resumed.events("checkpoint")[-1]["step"] == max(line)
    _audit(resumed)


def test_a_resume_on_other_ranks_keeps_the_accounts(dead: Dead, start: Callable[..., Gang], paced_job: Path) -> None:
    other = ("--set", "hosts.max=2", "--set", "spares_per_host=0")
    resumed = start(paced_job, *other, "--resume", name=NAME, storage=dead.copy)
    resumed.until_step(max(dead.line) + 5)
    assert len(resumed.members()) == 4
    hung = resumed.members()[3]
    os.kill(hung, signal.SIGSTOP)  # so the step cannot be finished
    resumed.signal(signal.SIGINT)
    resumed.until("the first answer", lambda: "press Ctrl-C again" in resumed.output)
    resumed.signal(signal.SIGINT)
    assert resumed.end() == 130, resumed.describe()
    assert "ending at once" in resumed.output and "Traceback" not in resumed.output
    assert resumed.left_over() == []
    line = {int(step["step"]): step for step in resumed.steps()}
    for step in (step for step in dead.line if step > dead.checkpoint):
        assert line[step]["ranks"] == 4
        assert line[step]["loss"] == pytest.approx(dead.line[step]["loss"], rel=1e-3)
    _audit(resumed)


@pytest.mark.long
def test_a_hundred_losses_are_those_of_a_run_that_nothing_happened_to(
    start: Callable[..., Gang], paced_job: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same, against a second run from the beginning to the end."""
    epochs = ("--set", "phases.fp32_epochs=8", "--set", "checkpoint.every=25")  # 160 steps
    whole = start(paced_job, *ONE_HOST, *epochs, name="whole")
    assert whole.end() == 0, whole.describe()
    gang = start(paced_job, *ONE_HOST, *epochs, name="broken")
    gang.until_step(30)
    gang.until("a checkpoint", lambda: list_checkpoints(gang.folder / "checkpoints"))
    killed = _kill_whole(gang, tmp_path_factory.mktemp("copy"))
    assert gang.command("doctor", "--storage", gang.storage).returncode == 0
    resumed = start(paced_job, *ONE_HOST, *epochs, "--resume", "--exact", name="broken")
    assert resumed.end() == 0, resumed.describe()
    assert killed.checkpoint <= 60
    assert [step["loss"] for step in resumed.steps()] == [step["loss"] for step in whole.steps()]
    _audit(resumed)


def _kill_whole(gang: Gang, copy: Path) -> Dead:
    """kill -9 of the driver, its guardian, Ray, the coordinator, the agent and the ranks."""
    assert len(gang.guardians()) == 1
    strays = [each.pid for each in gang.everything() if each.name() == "sleep"]
    victims = [each for each in gang.everything() if each.pid not in strays]
    for victim in victims:
        victim.kill()
    gang.process.wait()
    wait_for("the end of all that was killed", lambda: not any(is_alive(victim.pid) for victim in victims))
    shutil.copytree(gang.folder, copy / gang.name)
    newest = list_checkpoints(gang.folder / "checkpoints")[0].step
    line = {int(step["step"]): step for step in read_steps(gang.folder)}
    return Dead(gang, newest, line, strays, copy)


def _audit(gang: Gang) -> None:
    audited = gang.command("audit", gang.folder)
    assert audited.returncode == 0 and "audit: each sample once" in audited.stdout, audited.stdout
