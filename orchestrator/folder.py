"""The job's folder at a start: gone on with, or moved aside; and put back as it was where the start comes to nothing."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator import status
from orchestrator.errors import ExitCode, UserError, command
from orchestrator.jobspec import JobSpec
from orchestrator.records import STEP_KEYS, STEPS, Generation, generation_of

SET_ASIDE = ("result.json", "report.json", "traceback.txt", "coordinator.json")
"""What belongs to one run and not to the one that resumes it."""
KEPT = ".before"
"""Folder in a resumed job's: where these and the old `job.json` lie until the new run has committed a step."""


class JobFolder:
    """The folder of one job, held by the process that starts it: inside `with` no other start of its name comes through.

    Until `take` it is as an earlier run has left it, and it is so again after `give_back`. Killed at any moment, a start
    loses nothing: what it has moved lies beside the folder (`runs/demo.1`), or in `.before` in it.
    """

    def __init__(self, spec: JobSpec, *, cluster: str | None, resume: bool, exact: bool) -> None:
        self.spec, self.resume, self.exact, self._cluster = spec, resume, exact, cluster
        self.path = (spec.storage / spec.name).absolute()
        self.aside: Path | None = None
        self.taken = False
        self._before: Generation = (0, 0)
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Raises UserError: relative storage on a cluster, a folder that cannot be written, a job of that name that
        runs, nothing to resume from.
        """
        if self._cluster is not None and not self.spec.storage.is_absolute():
            raise UserError(
                f"storage is '{self.spec.storage}', but the hosts of a cluster do not share this folder; write an absolute "
                "path on storage that every host sees, for example --set storage=/mnt/shared/runs"
            )
        try:
            self._refuse_running()
            if self.resume:
                _check_resume(self.path, self.spec.name, self.exact)
            with suppress(FileNotFoundError):
                os.scandir(self.path).close()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._acquire()
        except OSError as error:
            raise self._unwritable(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            with suppress(OSError):
                self._lock_path.unlink()
            os.close(self._lock)
            self._lock = None

    def take(self) -> None:
        """Make the folder ready and write `job.json`; a fresh start moves an old folder aside.

        Raises UserError: the folder cannot be written; a job of that name has begun to run meanwhile.
        """
        self._refuse_running()
        try:
            self._before = _newest(self.path) if self.resume else (0, 0)
            (self._set_aside if self.resume else self._move_aside)()
        except OSError as error:
            self._undo()
            raise self._unwritable(error) from None
        self.taken = True

    def give_back(self) -> Path | None:
        """Undo `take` where the job has committed no step since.

        Returns the folder that the start's logs lie in from now on, where that is another one than `path`.
        """
        if not self.taken:
            return None
        if _newest(self.path) > self._before:
            self.keep()
            return None
        if self.resume:
            self._undo()
        elif not self.path.exists() or os.listdir(self.path) == ["job.json"]:  # nothing has run in it
            shutil.rmtree(self.path, ignore_errors=True)
            self._undo()
            self.taken = False
        elif self.aside is not None and _newest(self.aside) > (0, 0):
            between = _free(self.path)
            os.rename(self.path, between)
            os.rename(self.aside, self.path)
            os.rename(between, self.aside)
            return self.aside
        return None

    def keep(self) -> None:
        """The new run stands: forget what `give_back` needs."""
        if self.resume:
            shutil.rmtree(self.path / KEPT, ignore_errors=True)

    def _undo(self) -> None:
        with suppress(FileNotFoundError):
            if self.resume:
                for name in sorted(os.listdir(self.path / KEPT)):
                    os.replace(self.path / KEPT / name, self.path / name)
                self.keep()
            elif self.aside is not None:
                os.rename(self.aside, self.path)

    def _move_aside(self) -> None:
        """`runs/demo` becomes `runs/demo.1` (or the next free number): nothing is ever deleted."""
        fresh = self.path.with_name(f".{self.path.name}.new")
        fresh.mkdir(exist_ok=True)
        self._write_job(fresh)
        if self.path.exists() and any(self.path.iterdir()):
            aside = _free(self.path)
            os.rename(self.path, aside)
            self.aside = aside
        os.rename(fresh, self.path)

    def _set_aside(self) -> None:
        kept = self.path / KEPT
        kept.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            shutil.copyfile(self.path / "job.json", kept / "job.json")
        self._write_job(self.path)
        for name in SET_ASIDE:
            with suppress(FileNotFoundError):
                os.replace(self.path / name, kept / name)

    def _write_job(self, folder: Path) -> None:
        settings = {"resume": self.resume, "exact": self.exact, "started": time.time(), "started_in": str(Path.cwd())}
        content = {**self.spec.model_dump(mode="json"), **settings}
        partial = folder / ".job.json.partial"
        partial.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(partial, folder / "job.json")

    def _refuse_running(self) -> None:
        answer = status.fetch(self.path)
        if answer is not None and answer["phase"] not in ("finished", "failed"):
            raise self._running("is running")

    def _running(self, what: str) -> UserError:
        stop = command("stop", self.spec.name, storage=self.spec.storage)
        return UserError(
            f"a job named {self.spec.name} {what} in {self.path}; choose another name with --set name=…, or stop it with: "
            f"{stop}",
            ExitCode.RUNNING,
        )

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"the job's folder {self.path} cannot be written ({error.strerror or error}); "
            "choose another place with --set storage=…",
            ExitCode.STORAGE,
        )

    @property
    def _lock_path(self) -> Path:
        """Beside the folder, which may be moved."""
        return self.path.with_name(f".{self.path.name}.lock")

    def _acquire(self) -> int:
        """The file descriptor that holds the lock; the kernel frees it however this process ends."""
        while True:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise self._running("is being started") from None
            except OSError:  # storage without locks
                return lock
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), self._lock_path.stat()):
                    return lock
            os.close(lock)  # its holder removed it between the two calls


def prepare(spec: JobSpec, *, cluster: str | None, resume: bool, exact: bool) -> Path:
    """A folder that is taken at once and for good; its absolute path. Raises UserError as JobFolder does."""
    with JobFolder(spec, cluster=cluster, resume=resume, exact=exact) as folder:
        folder.take()
        folder.keep()
        return folder.path


def _free(folder: Path) -> Path:
    """`demo.1`, or with the next number that is not taken."""
    number = 1
    while (path := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return path


def _newest(folder: Path) -> Generation:
    """The newest generation that has committed a step there."""
    return max(map(generation_of, status.tail(folder / STEPS, STEP_KEYS)), default=(0, 0))


def _check_resume(folder: Path, name: str, exact: bool) -> None:
    from workers.checkpoint import newest_valid

    root = folder / "checkpoints"
    skipped: list[str] = []
    entry = newest_valid(root, "exact" if exact else None, lambda damaged: skipped.append(damaged.reason))
    if entry is not None:
        return
    damaged = f"; {len(skipped)} damaged: {skipped[0]}" if skipped else ""
    moved = [each for each in folder.parent.glob(f"{folder.name}.[0-9]*") if any(each.glob("checkpoints/step-*"))]
    earlier = f", or move {max(moved, key=lambda each: each.stat().st_mtime)} there, an earlier run" if moved else ""
    raise UserError(
        f"nothing to resume from: {root} holds no sound {'exact ' if exact else ''}checkpoint of {name}{damaged}; "
        f"start afresh without --resume{earlier}",
        ExitCode.RESUME,
    )
