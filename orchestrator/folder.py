"""The job's folder at a start: gone on with, or moved aside; and put back as it was where the start comes to nothing."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator import checkpoint_store, status
from orchestrator.errors import ExitCode, UserError, command
from orchestrator.jobspec import JobSpec
from orchestrator.records import STEP_KEYS, STEPS, Generation, generation_of, read_object

SET_ASIDE = ("result.json", "report.json", "traceback.txt", "coordinator.json")
"""What belongs to one run and not to the one that resumes it."""
KEPT = ".before"
"""Folder in a resumed job's: these and the old `job.json` lie there until the start has ended.

Where a start was killed, the next one settles it: by `GENERATION` in it, the newest one that had committed a step then."""
GENERATION = "generation.json"
ANOTHER_NAME = "choose another name with --set name=…"


class JobFolder:
    """The folder of one job, held by the process that starts it: inside `with` no other start of its name comes through.

    Until `take` it is as an earlier run has left it. After `give_back` a fresh start leaves that run's whole folder in its
    place. A resume puts back `job.json` and what that run had of `SET_ASIDE`; what it has added to `control/`,
    `events.jsonl`, `samples/` and `logs/` stays, and so does a `traceback.txt` where that run had none. Killed at any
    moment, a start loses nothing: what it has moved lies beside the folder (`runs/demo.1`), or in `.before` in it, which
    the next start settles.

    Attributes:
        path: of the folder, absolute.
        logs: the folder that the logs of this start lie in: `path`, or after `give_back` perhaps another one.
        aside: where a fresh start has moved the folder that it found.
        taken: `take` was called, and not all of it undone.
    """

    def __init__(self, spec: JobSpec, *, cluster: str | None, resume: bool, exact: bool) -> None:
        self.spec, self.resume, self.exact, self._cluster = spec, resume, exact, cluster
        self.path = self.logs = (spec.storage / spec.name).absolute()
        self.aside: Path | None = None
        self.taken = False
        self._checkpoints: str | None = None
        self._incarnation = 0  # the latest one that a store has checkpoints of
        self._before: Generation = (0, 0)
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Raises UserError: relative storage on a cluster, a folder that cannot be written, a job of that name that
        runs, nothing to resume from.
        """
        refuse_relative(self.spec, self._cluster)
        try:
            refuse_running(self.path, ANOTHER_NAME)
            if self.resume:
                self._checkpoints, self._incarnation = _check_resume(self.path, self.spec, self.exact)
            elif self.spec.checkpoint.store is not None:
                self._checkpoints = checkpoint_store.fresh(self.spec)
            with suppress(FileNotFoundError):
                os.scandir(self.path).close()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _acquire(self.path, ANOTHER_NAME)
        except OSError as error:
            raise self._unwritable(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            _release(self.path, self._lock)
            self._lock = None

    def take(self) -> None:
        """Settle what a killed start has left, make the folder ready and write `job.json`; a fresh start moves an old
        folder aside.

        Raises UserError: the folder cannot be written; a job of that name has begun to run meanwhile.
        """
        refuse_running(self.path, ANOTHER_NAME)
        try:
            _settle(self.path)
            self._before = _newest(self.path) if self.resume else (0, 0)
            try:
                (self._set_aside if self.resume else self._move_aside)()
            except OSError:
                with suppress(OSError):
                    self._undo()
                raise
        except OSError as error:
            raise self._unwritable(error) from None
        self.taken = True

    def give_back(self) -> bool:
        """Undo `take` where the job has committed no step since; True where an earlier run has its folder again."""
        if not self.taken:
            return False
        if _newest(self.path) > self._before:
            self.keep()
            return False
        if self.resume:
            self._undo()
            return True
        if not self.path.exists() or os.listdir(self.path) == ["job.json"]:  # nothing has run in it
            shutil.rmtree(self.path, ignore_errors=True)
            self._undo()
            self.taken = False
            return self.aside is not None
        if self.aside is None or _newest(self.aside) == (0, 0):
            return False
        between = _free(self.path)
        os.rename(self.path, between)
        os.rename(self.aside, self.path)
        os.rename(between, self.aside)
        self.logs = self.aside
        return True

    def keep(self) -> None:
        """The new run stands: forget what `give_back` needs."""
        if self.resume:
            shutil.rmtree(self.path / KEPT, ignore_errors=True)

    def _undo(self) -> None:
        if self.resume:
            _put_back(self.path)
            return
        shutil.rmtree(self._fresh, ignore_errors=True)
        if self.aside is not None:
            with suppress(FileNotFoundError):
                os.rename(self.aside, self.path)

    def _move_aside(self) -> None:
        """`runs/demo` becomes `runs/demo.1` (or the next free number): nothing is ever deleted."""
        self._fresh.mkdir(exist_ok=True)
        self._write_job(self._fresh)
        if self.path.exists() and any(self.path.iterdir()):
            aside = _free(self.path)
            os.rename(self.path, aside)
            self.aside = aside
        os.rename(self._fresh, self.path)

    def _set_aside(self) -> None:
        kept = self.path / KEPT
        kept.mkdir(parents=True, exist_ok=True)  # all may be lost but what lies in a store
        _write(kept / GENERATION, json.dumps({"generation": self._before}))
        with suppress(FileNotFoundError):
            _write(kept / "job.json", (self.path / "job.json").read_text())
        self._write_job(self.path)
        if self._incarnation:  # the next one is later, also where this folder was lost: names of checkpoints never meet
            (self.path / "control").mkdir(exist_ok=True)
            (self.path / "control" / f"incarnation-{self._incarnation}").touch()
        for name in SET_ASIDE:
            with suppress(FileNotFoundError):
                os.replace(self.path / name, kept / name)

    def _write_job(self, folder: Path) -> None:
        settings = {"resume": self.resume, "exact": self.exact, "started": time.time(), "started_in": str(Path.cwd())}
        content = {**self.spec.model_dump(mode="json"), **settings, "checkpoints": self._checkpoints}
        _write(folder / "job.json", json.dumps(content, indent=2) + "\n")

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"the job's folder {self.path} cannot be written ({error.strerror or error}); "
            "choose another place with --set storage=…",
            ExitCode.STORAGE,
        )

    @property
    def _fresh(self) -> Path:
        """A new folder until it has its name."""
        return self.path.with_name(f".{self.path.name}.new")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Inside `with` no job starts in the folder at `path`. Raises UserError where one runs there, or is being started."""
    refuse_running(path)
    lock = _acquire(path)
    try:
        refuse_running(path)
        yield
    finally:
        _release(path, lock)


def refuse_running(path: Path, *ways: str) -> None:
    """Raise UserError where a job runs in the folder at `path`; `ways` are what to do beside stopping it."""
    answer = status.fetch(path)
    if answer is not None and answer["phase"] not in ("finished", "failed"):
        stop = command("stop", path.name, storage=path.parent)
        advice = ", or ".join([*ways, f"stop it with: {stop}"])
        raise UserError(f"a job named {path.name} is running in {path}; {advice}", ExitCode.RUNNING)


def _lock_path(path: Path) -> Path:
    """Beside the folder, which may be moved."""
    return path.with_name(f".{path.name}.lock")


def _acquire(path: Path, *ways: str) -> int:
    """The file descriptor that holds the lock; the kernel frees it however this process ends."""
    while True:
        lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            *others, last = ["wait until that process has ended", "press Ctrl-C there", *ways]
            raise UserError(
                f"a job named {path.name} is being started, runs or is ending in another process, which holds {path}; "
                f"{', '.join(others)}, or {last}",
                ExitCode.RUNNING,
            ) from None
        except OSError:  # storage without locks
            return lock
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), _lock_path(path).stat()):
                return lock
        os.close(lock)  # its holder removed it between the two calls


def _release(path: Path, lock: int) -> None:
    with suppress(OSError):
        _lock_path(path).unlink()
    os.close(lock)


def prepare(spec: JobSpec, *, cluster: str | None, resume: bool, exact: bool) -> Path:
    """A folder that is taken at once and for good; its absolute path. Raises UserError as JobFolder does."""
    with JobFolder(spec, cluster=cluster, resume=resume, exact=exact) as folder:
        folder.take()
        folder.keep()
        return folder.path


def refuse_relative(spec: JobSpec, cluster: str | None) -> None:
    """Raises UserError: relative storage on a cluster."""
    if cluster is not None and not spec.storage.is_absolute():
        raise UserError(
            f"storage is '{spec.storage}', but the hosts of a cluster do not share this folder; write an absolute "
            "path on storage that every host sees, for example --set storage=/mnt/shared/runs"
        )


def _free(folder: Path) -> Path:
    """`demo.1`, or with the next number that is not taken."""
    number = 1
    while (path := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return path


def _settle(folder: Path) -> None:
    """A resume that was killed has left `.before`: it stands where it has committed a step, else it is undone."""
    kept = folder / KEPT
    if not kept.is_dir():
        return
    before = generation_of({"generation": (0, 0), **read_object(kept / GENERATION)})  # without it nothing was moved yet
    if _newest(folder) > before:
        shutil.rmtree(kept)
    else:
        _put_back(folder)


def _put_back(folder: Path) -> None:
    """Undo a resume, however far it has come."""
    for name in ("job.json", *SET_ASIDE):
        with suppress(FileNotFoundError):
            os.replace(folder / KEPT / name, folder / name)
    shutil.rmtree(folder / KEPT, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def _newest(folder: Path) -> Generation:
    """The newest generation that has committed a step there."""
    return max(map(generation_of, status.tail(folder / STEPS, STEP_KEYS)), default=(0, 0))


def _check_resume(folder: Path, spec: JobSpec, exact: bool) -> tuple[str | None, int]:
    """The URL of its checkpoints, if they lie in a store, and the latest incarnation that has some there."""
    from workers.checkpoint import CheckpointError, newest_valid

    name, skipped = spec.name, list[str]()
    try:
        root = folder / "checkpoints" if spec.checkpoint.store is None else checkpoint_store.last(spec, folder)
        entry = newest_valid(root, "exact" if exact else None, lambda damaged: skipped.append(damaged.reason))
        incarnation = 0 if isinstance(root, Path) else checkpoint_store.incarnation(root)
    except CheckpointError as error:
        raise UserError(str(error), ExitCode.STORAGE) from None
    if entry is not None:
        return (None, 0) if isinstance(root, Path) else (str(root), incarnation)
    damaged = f"; {len(skipped)} damaged: {skipped[0]}" if skipped else ""
    moved = [each for each in folder.parent.glob(f"{folder.name}.[0-9]*") if any(each.glob("checkpoints/step-*"))]
    earlier = f", or move {max(moved, key=lambda each: each.stat().st_mtime)} there, an earlier run" if moved else ""
    raise UserError(
        f"nothing to resume from: {root} holds no sound {'exact ' if exact else ''}checkpoint of {name}{damaged}; "
        f"start afresh without --resume{earlier}",
        ExitCode.RESUME,
    )
