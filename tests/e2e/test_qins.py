"""CK-1, CK-9: a job that saves in QINS is killed whole, and goes on from either tier; damaged ones are passed over."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.records import Record
from orchestrator.report import REPORT
from tests.e2e.gang import Gang, is_alive, wait_for
from workers.checkpoint import Entry, list_checkpoints

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

NAME = "quarter"
EVERY, EXACT_EVERY, WHOLE_EVERY, KEEP = 16, 4, 3, 2
ONE_HOST = ("--set", "hosts.max=1", "--set", "spares_per_host=0")
QINS = (
    *("--set", "checkpoint.tier=qins", "--set", f"checkpoint.exact_every={EXACT_EVERY}"),
    *("--set", f"checkpoint.every={EVERY}", "--set", f"checkpoint.keep={KEEP}"),
    *("--set", f"checkpoint.whole_every={WHOLE_EVERY}"),
)


@dataclass(frozen=True)
class Dead:
    """What is left of a run that was killed whole: its storage, what it had committed, its checkpoints, newest first."""

    storage: Path
    line: dict[int, Record]
    found: list[Entry]

    def copy(self, storage: Path) -> Path:
        shutil.copytree(self.storage, storage, dirs_exist_ok=True)
        return storage


@pytest.fixture(scope="module")
def dead(start: Callable[..., Gang], paced_job: Path) -> Dead:
    gang = start(paced_job, *ONE_HOST, *QINS, name=NAME)
    root = gang.folder / "checkpoints"

    def exact_is_the_oldest() -> bool:
        tiers = [entry.tier for entry in list_checkpoints(root)]
        return tiers == ["qins"] * KEEP + ["exact"] and gang.last_step() % EVERY in range(3, EVERY // 2)

    gang.until("two checkpoints in QINS after an exact one", exact_is_the_oldest)
    victims = gang.everything()
    for victim in victims:
        victim.kill()
    gang.process.wait()
    wait_for("the end of all that was killed", lambda: not any(is_alive(victim.pid) for victim in victims))
    assert gang.command("doctor", "--storage", gang.storage).returncode == 0
    line = {int(step["step"]): step for step in gang.steps()}
    return Dead(gang.storage, line, list_checkpoints(root))


def test_ck6_the_only_exact_one_outlives_the_newer_ones(dead: Dead) -> None:
    newest, *between, exact = dead.found
    assert [entry.tier for entry in dead.found] == ["qins"] * (1 + len(between)) + ["exact"]
    assert KEEP <= 1 + len(between) <= KEEP + 1  # killed before the last deletion
    assert exact.step % (EVERY * EXACT_EVERY) == 0  # the first one, if nothing else keeps the machine busy
    assert newest.step >= exact.step + KEEP * EVERY
    assert newest.bases == (between[0].path.name,), "CK-2: the newest one is the difference to a whole one"
    assert newest.path.name == f"step-{newest.step}-gen-1.1-qins" and exact.path.name == f"step-{exact.step}-gen-1.1"


def test_ck9_a_resume_takes_the_newest_of_any_tier(
    dead: Dead, start: Callable[..., Gang], paced_job: Path, tmp_path: Path
) -> None:
    """CK-1: what follows differs, and by little. The stop saves the exact state."""
    resumed, line = _resumed(dead, start, paced_job, tmp_path)
    newest = dead.found[0]
    _has_resumed_from(resumed, newest)
    shared = [step for step in sorted(dead.line) if step > newest.step]
    ours, theirs = ([each[step]["loss"] for step in shared] for each in (line, dead.line))
    assert shared and ours != theirs
    assert ours == pytest.approx(theirs, rel=2e-2)
    last = resumed.events("checkpoint")[-1]
    assert (last["tier"], last["step"]) == ("exact", max(line))
    report = json.loads((resumed.folder / REPORT).read_text())
    assert report["checkpoint"]["tier"] == "exact" and report["checkpoint"]["path"] == last["path"]
    assert report["resumed"] == {"path": newest.path.name, "tier": "qins", "step": newest.step}
    assert f"{newest.path.name} (qins)" in resumed.output
    audited = resumed.command("audit", resumed.folder)
    assert audited.returncode == 0 and "audit: each sample once" in audited.stdout, audited.stdout


def test_ck9_exact_passes_the_newer_ones_by_and_goes_on_bit_for_bit(
    dead: Dead, start: Callable[..., Gang], paced_job: Path, tmp_path: Path
) -> None:
    resumed, line = _resumed(dead, start, paced_job, tmp_path, "--exact")
    exact = dead.found[-1]
    _has_resumed_from(resumed, exact)
    assert resumed.events("checkpoint_skipped") == []
    shared = [step for step in sorted(dead.line) if step > exact.step]
    assert len(shared) > 2 * EVERY
    assert [line[step]["loss"] for step in shared] == [dead.line[step]["loss"] for step in shared]


def test_ck9_a_damaged_one_in_qins_is_passed_over_loudly(
    dead: Dead, start: Callable[..., Gang], paced_job: Path, tmp_path: Path
) -> None:
    newest, before, *_ = dead.found
    shard = dead.copy(tmp_path) / NAME / "checkpoints" / newest.path.name / "shard-00000.qins"
    content = bytearray(shard.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    shard.write_bytes(content)
    resumed, _ = _resumed(dead, start, paced_job, tmp_path, copied=True)
    _has_resumed_from(resumed, before)
    [skipped] = resumed.events("checkpoint_skipped")
    assert newest.path.name in skipped["reason"] and "damaged" in skipped["reason"]


def test_ck9_a_checkpoint_of_another_task_is_one_sentence(
    dead: Dead, start: Callable[..., Gang], paced_job: Path, tmp_path: Path
) -> None:
    recipe = ("--set", "task.script=null", "--set", "task.recipe=mlp")
    gang = start(paced_job, *ONE_HOST, *recipe, "--resume", name=NAME, storage=dead.copy(tmp_path))
    assert gang.end() == 5, gang.describe()
    assert f'{dead.found[0].path.name} is of a job with task.recipe null, but the JobSpec says "mlp"' in gang.output
    assert "Traceback" not in gang.output


def _resumed(
    dead: Dead, start: Callable[..., Gang], job: Path, storage: Path, *arguments: str, copied: bool = False
) -> tuple[Gang, dict[int, Record]]:
    """A copy of the dead run, gone on with past where that was killed, then stopped; and its line."""
    if not copied:
        dead.copy(storage)
    gang = start(job, *ONE_HOST, *QINS, "--resume", *arguments, name=NAME, storage=storage)
    gang.until_step(max(dead.line) + 5)
    gang.signal(signal.SIGTERM)
    assert gang.end() == 130, gang.describe()
    assert gang.left_over() == []
    return gang, {int(step["step"]): step for step in gang.steps()}


def _has_resumed_from(gang: Gang, entry: Entry) -> None:
    [resumed] = gang.events("resumed")
    assert (resumed["path"], resumed["tier"], resumed["step"]) == (entry.path.name, entry.tier, entry.step)
    assert f"resuming from step {entry.step} ({entry.path.name})" in gang.output
