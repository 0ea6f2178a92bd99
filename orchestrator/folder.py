"""The job's folder before a start: moved aside, gone on with, or refused."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from orchestrator import status
from orchestrator.errors import ExitCode, UserError
from orchestrator.jobspec import JobSpec


def prepare(spec: JobSpec, *, cluster: str | None, resume: bool, exact: bool) -> Path:
    """Make the folder ready and write `job.json`; returns its absolute path.

    A fresh start moves an old folder aside. Raises UserError: relative storage on a cluster, a folder that cannot be
    written, a job of that name that runs, nothing to resume from.
    """
    if cluster is not None and not spec.storage.is_absolute():
        raise UserError(
            f"storage is '{spec.storage}', but the hosts of a cluster do not share this folder; write an absolute path "
            "on storage that every host sees, for example --set storage=/mnt/shared/runs"
        )
    folder = (spec.storage / spec.name).absolute()
    try:
        _refuse_running(spec.name, folder)
        if resume:
            _check_resume(spec, folder, exact)
        else:
            _move_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for stale in ("result.json", "report.json", "traceback.txt", "coordinator.json"):
            (folder / stale).unlink(missing_ok=True)
        settings = {"resume": resume, "exact": exact, "started": time.time(), "started_in": str(Path.cwd())}
        content = {**spec.model_dump(mode="json"), **settings}
        (folder / "job.json").write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"the job's folder {folder} cannot be written ({error.strerror or error}); "
            "choose another place with --set storage=…",
            ExitCode.STORAGE,
        ) from None
    return folder


def _refuse_running(name: str, folder: Path) -> None:
    if status.fetch(folder) is not None and not _ended(folder):
        raise UserError(
            f"a job named {name} is running in {folder}; choose another name with --set name=…, or stop it with: "
            f"quantarion stop {name}",
            ExitCode.RUNNING,
        )


def _ended(folder: Path) -> bool:
    answer = status.fetch(folder)
    return answer is None or answer["phase"] in ("finished", "failed")


def _move_aside(folder: Path) -> None:
    """`runs/demo` becomes `runs/demo.1` (or the next free number): nothing is ever deleted."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    os.rename(folder, aside)


def _check_resume(spec: JobSpec, folder: Path, exact: bool) -> None:
    from workers.checkpoint import newest_valid

    root = folder / "checkpoints"
    skipped: list[str] = []
    entry = newest_valid(root, "exact" if exact else None, lambda damaged: skipped.append(damaged.reason))
    if entry is not None:
        return
    damaged = f"; {len(skipped)} damaged: {skipped[0]}" if skipped else ""
    raise UserError(
        f"nothing to resume from: {root} holds no sound {'exact ' if exact else ''}checkpoint of {spec.name}{damaged}; "
        "start afresh without --resume",
        ExitCode.RESUME,
    )
