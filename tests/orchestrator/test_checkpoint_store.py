"""CK-5, CK-9: which run of a store a start goes on with, and what is refused before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import checkpoint_store
from orchestrator.errors import ExitCode, UserError
from orchestrator.folder import JobFolder
from orchestrator.jobspec import JobSpec
from orchestrator.journal import Journal
from workers.checkpoint import Remote, save, set_aside
from workers.state import Captured

NUMBERS = count()


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], JobSpec]:
    """A job whose store is in this process's memory, which no JobSpec may name."""
    url = f"memory://store-{next(NUMBERS)}"

    def make() -> JobSpec:
        spec = JobSpec.model_validate({"name": "mine", "storage": str(tmp_path / "runs")})
        return spec.model_copy(update={"checkpoint": spec.checkpoint.model_copy(update={"store": url})})

    return make


def start(spec: JobSpec, *, resume: bool) -> Path:
    with JobFolder(spec, cluster=None, resume=resume, exact=False) as folder:
        folder.take()
        folder.keep()
        return folder.path


def run_of(folder: Path) -> Remote:
    return Remote(json.loads((folder / "job.json").read_text())["checkpoints"])


def saved(run: Remote, step: int, generation: tuple[int, int] = (1, 1)) -> Remote:
    arguments: dict[str, Any] = {"job": "mine", "lineage": 1, "world": 1, "fence": lambda: True}
    return save(Captured({"x": torch.ones(3)}), run, step=step, generation=generation, **arguments).path


def test_each_fresh_run_has_a_place_of_its_own(spec: Callable[[], JobSpec]) -> None:
    first = run_of(start(spec(), resume=False))
    saved(first, 10)
    second = run_of(start(spec(), resume=False))
    assert first.parent == second.parent and first != second
    assert first.name.startswith("run-") and first.parent.name == "mine" and second.objects() == {}


def test_a_resume_goes_on_with_the_run_of_its_folder(spec: Callable[[], JobSpec]) -> None:
    folder = start(spec(), resume=False)
    mine = run_of(folder)
    saved(mine, 10)
    saved(mine.parent / "run-99990101-000000-ffffffff", 99)  # somebody else's, later
    assert run_of(start(spec(), resume=True)) == mine
    assert checkpoint_store.has_some(folder)


def test_a_resume_without_the_folder_takes_the_last_run_with_a_checkpoint(spec: Callable[[], JobSpec]) -> None:
    """Its generations go on from those that the store knows of, so that no name is used again."""
    job = Remote(f"{spec().checkpoint.store}/mine")
    saved(job / "run-20260101-000000-00000000", 50)
    later = job / "run-20260102-000000-00000000"
    saved(later, 10, (3, 2))
    saved(later, 20, (7, 1))
    set_aside(later, after=10)
    (job / "run-20260103-000000-00000000" / "probe").create(b"")  # which came to nothing
    folder = start(spec(), resume=True)
    assert run_of(folder) == later
    assert Journal(folder, launch=1.0).incarnation == 8


def test_a_resume_without_anything_says_where_it_looked(spec: Callable[[], JobSpec]) -> None:
    with pytest.raises(UserError, match=r"nothing to resume from: memory://store-\d+/mine holds no sound") as refusal:
        start(spec(), resume=True)
    assert refusal.value.exit_code == ExitCode.RESUME


def test_a_store_that_replaces_what_is_there_is_refused(
    spec: Callable[[], JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Remote, "create", lambda self, content: True)
    with pytest.raises(UserError, match="If-None-Match") as refusal:
        start(spec(), resume=False)
    assert refusal.value.exit_code == ExitCode.STORAGE and not (spec().storage / "mine").exists()


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ({"store": "runs"}, "is no object store"),
        ({"store": "s3://"}, "is no object store"),
        ({"store": "memory://x"}, "is no object store that outlives its hosts"),
        ({"store": "file:///mnt/x"}, "is no object store"),
        ({"store": "s3://b", "store_options": {"secret": "x"}}, "'secret' would be kept in the job's folder"),
        ({"store": "s3://b", "store_options": {"key": "x"}}, "'key' would be kept in the job's folder"),
        (
            {"store": "s3://b", "store_options": {"client_kwargs": {"aws_secret_access_key": "x"}}},
            "'aws_secret_access_key' would be kept",
        ),
    ],
)
def test_what_is_no_store_is_refused(checkpoint: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        JobSpec.model_validate({"name": "mine", "checkpoint": checkpoint})
