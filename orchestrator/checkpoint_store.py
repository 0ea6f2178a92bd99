"""The object store of a job's checkpoints, where it has one: a folder for each fresh run, which a resume goes on with.

So a run never meets the checkpoints of another one, which may have gone the same steps in the same generations.
"""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import ExitCode, UserError
from orchestrator.jobspec import JobSpec

if TYPE_CHECKING:
    from workers.checkpoint.remote import Remote

_RUN = "run-"


def fresh(spec: JobSpec) -> str:
    """The URL of a new run, where something was written and removed again. Raises UserError where that is refused."""
    from workers.checkpoint import CheckpointError

    run = _job(spec) / f"{_RUN}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
    probe = run.in_a_hurry() / "probe"
    try:
        keeps = probe.create(b"one") and not probe.create(b"another")
        run.in_a_hurry().remove(["probe"])
    except (OSError, CheckpointError) as error:
        raise UserError(f"checkpoint.store: nothing can be written to {run}: {error}", ExitCode.STORAGE) from None
    if not keeps:
        raise UserError(
            f"checkpoint.store: {run} takes an object on the condition that there is none (If-None-Match), and replaces "
            "one; choose a store that keeps that condition, or has none",
            ExitCode.STORAGE,
        )
    return str(run)


def last(spec: JobSpec, folder: Path) -> Remote:
    """The run that the job's folder names, else the last one in the store with a checkpoint; else the place of all runs.

    Raises CheckpointError where the store refuses.
    """
    from workers.checkpoint.errors import storage_error
    from workers.checkpoint.places import MANIFEST, checkpoints_of
    from workers.checkpoint.remote import Remote

    job, known = _job(spec), checkpoints_of(folder)
    if isinstance(known, Remote) and known.parent == job:
        return job / known.name
    try:
        found = (name.split("/") for name in job.objects())
    except OSError as error:
        raise storage_error("list", job, error) from error
    runs = [parts[0] for parts in found if len(parts) == 3 and parts[0].startswith(_RUN) and parts[2] == MANIFEST]
    return job / max(runs) if runs else job


def incarnation(run: Remote) -> int:
    """The latest of those that have named checkpoints in a run, put aside or not; 0 where there are none.

    Raises CheckpointError where the store refuses.
    """
    from workers.checkpoint.errors import storage_error
    from workers.checkpoint.manifest import parse_folder

    try:
        labels = (parse_folder(name.split("/")[0]) for name in run.objects())
    except OSError as error:
        raise storage_error("list", run, error) from error
    return max((label.generation.incarnation for label in labels if label is not None), default=0)


def has_some(folder: Path) -> bool:
    """Whether the job with this folder has checkpoints, as far as that can be told."""
    try:
        is_remote = json.loads((folder / "job.json").read_bytes()).get("checkpoints") is not None
    except (OSError, ValueError, AttributeError):
        is_remote = False
    if not is_remote:
        return any((folder / "checkpoints").glob("step-*"))
    from workers.checkpoint import CheckpointError
    from workers.checkpoint.places import checkpoints_of, names

    try:
        root = checkpoints_of(folder)
        return bool(names(root if isinstance(root, Path) else root.in_a_hurry()))
    except CheckpointError:
        return False


def _job(spec: JobSpec) -> Remote:
    """The place of all runs of a job."""
    from workers.checkpoint.remote import Remote

    assert spec.checkpoint.store is not None
    return Remote(f"{spec.checkpoint.store.rstrip('/')}/{spec.name}", spec.checkpoint.store_options)
