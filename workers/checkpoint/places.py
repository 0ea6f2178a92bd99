"""Where checkpoints lie, and what is done there: in a folder that hosts share, or in an object store (CK-5).

In a folder a checkpoint is written under a hidden name and shown by a rename. In a store its objects have their names from
the beginning, and it is there as soon as its manifest is.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from typing_extensions import TypeVar

from workers.checkpoint.errors import CheckpointError, StorageError, damaged, storage_error
from workers.checkpoint.remote import Remote

Where = Path | Remote
"""A folder or file on this machine, or such a place in an object store."""

Root = TypeVar("Root", Path, Remote, Where, default=Path)
"""Of a place: what is found there is a place of the same kind."""

MANIFEST = "manifest.json"

HIDDEN = ".tmp-step-"
"""Prefix of folders that are being written or deleted; no reader looks at them."""

ASIDE = "rolled-back-"
"""What is not to be found any more: the name of its folder begins so, or in a store that of its manifest."""

PINNED = "pinned"
"""A file beside the manifest of a checkpoint that is to stay."""

STALE_SECONDS = 3600.0


def place(text: str) -> Where:
    """What somebody has written: a URL of a store, or a path."""
    return Remote(text.rstrip("/")) if "://" in text else Path(text)


def checkpoints_of(job: Path) -> Where:
    """Where the job with this folder has its checkpoints, by its `job.json`.

    Raises CheckpointError where that is damaged, or cannot be read, and none lie in the folder.
    """
    try:
        return _by_settings(job)
    except StorageError:
        raise  # they may lie elsewhere
    except CheckpointError:
        if (job / "checkpoints").is_dir():
            return job / "checkpoints"
        raise


def _by_settings(job: Path) -> Where:
    path = job / "job.json"
    try:
        settings = json.loads(path.read_bytes())
        url, options = settings.get("checkpoints"), settings.get("checkpoint", {}).get("store_options", {})
    except FileNotFoundError:
        return job / "checkpoints"
    except OSError as error:
        raise storage_error("read", path, error) from error
    except (ValueError, AttributeError):
        raise damaged(path, "it is no JobSpec in JSON") from None
    return Remote(url, options) if url else job / "checkpoints"


def regular_size(where: Where) -> int:
    """Bytes of a regular file, or of an object.

    Raises CheckpointError for a link, pipe or folder, or where there is nothing.
    """
    try:
        if isinstance(where, Remote):
            return where.size()
        status = where.lstat()
    except FileNotFoundError:
        raise CheckpointError(f"{where} is missing, so this checkpoint cannot be read") from None
    except OSError as error:
        raise storage_error("read", where, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise damaged(where, "it is not a plain file")
    return status.st_size


def read_bytes(where: Where) -> bytes:
    """A file's or object's content. Raises StorageError."""
    try:
        return where.read() if isinstance(where, Remote) else where.read_bytes()
    except OSError as error:
        raise storage_error("read", where, error) from error


def is_folder(where: Where) -> bool:
    """Whether a checkpoint, whole or not, is there. Raises StorageError where that cannot be told."""
    try:
        if isinstance(where, Path):
            return where.is_dir()
        (where / MANIFEST).size()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error("read", where, error) from error
    return True


@contextmanager
def at_hand(where: Where) -> Iterator[Path]:
    """Inside `with` a file, or a copy of an object, on this machine. Raises StorageError."""
    if isinstance(where, Path):
        yield where
        return
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(spool()) / where.name
        except OSError as error:
            raise storage_error("write", Path(gettempdir()), error) from error
        try:
            where.download(copy)
        except OSError as error:
            raise storage_error("read", where, error) from error
        yield copy


@contextmanager
def spool() -> Iterator[Path]:
    """Inside `with` a temporary folder of this machine, for what goes to a store or comes from there. Raises OSError."""
    base = Path(gettempdir(), f"quantarion-{os.getuid()}")
    base.mkdir(mode=0o700, exist_ok=True)
    with TemporaryDirectory(prefix="spool-", dir=base, ignore_cleanup_errors=True) as folder:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # a folder there that no process has open is swept
        try:
            yield Path(folder)
        finally:
            os.close(held)


def names(root: Where) -> list[str]:
    """Of the folders in `root` that may be checkpoints; none where it is missing. Raises StorageError."""
    try:
        if isinstance(root, Remote):
            found = (name.split("/") for name in root.objects())
            return [parts[0] for parts in found if len(parts) == 2 and parts[1] == MANIFEST]
        with os.scandir(root) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error("list", root, error) from error


def delete(where: Where) -> None:
    """A checkpoint: out of sight at once, then gone; what a crash leaves is swept as stale. Raises StorageError."""
    try:
        if isinstance(where, Remote):
            where.remove([MANIFEST])
            where.remove(list(where.objects()))
            return
        hidden = where.with_name(f".tmp-{where.name}-{secrets.token_hex(4)}")
        where.rename(hidden)
        shutil.rmtree(hidden)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error("delete", where, error) from error


def put_aside(where: Root) -> Root:
    """A checkpoint to where nobody looks for some; where that is, in a store its manifest. Raises StorageError."""
    try:
        if isinstance(where, Remote):
            away = where / f"{ASIDE}{secrets.token_hex(4)}.json"
            away.create((where / MANIFEST).read())
            where.remove([MANIFEST])
            return away
        return where.rename(where.with_name(f"{ASIDE}{where.name}.{secrets.token_hex(4)}"))
    except OSError as error:
        raise storage_error("rename", where, error) from error


def pin(where: Where, stays: bool = True) -> None:
    """Whether the checkpoint there stays, however old it is. Raises StorageError."""
    marker = where / PINNED
    try:
        if isinstance(marker, Path):
            marker.touch() if stays else marker.unlink(missing_ok=True)
        elif stays:
            marker.create(b"")
        else:
            marker.parent.remove([PINNED])
    except OSError as error:
        raise storage_error("write", marker, error) from error


def is_pinned(where: Where) -> bool:
    """Whether `pin` was called for it. Raises StorageError where that cannot be told."""
    marker = where / PINNED
    try:
        if isinstance(marker, Path):
            return marker.exists()
        marker.size()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error("read", marker, error) from error
    return True


def sweep_stale(root: Where) -> None:
    """Remove unfinished checkpoints to which nothing was written for an hour: their writers are dead. Raises OSError.

    In a store by its clock: before what it has written last.
    """
    if isinstance(root, Remote):
        _sweep_store(root)
        return
    with os.scandir(root) as entries:
        for entry in entries:
            is_hidden = entry.name.startswith(HIDDEN) and entry.is_dir(follow_symlinks=False)
            if is_hidden and time.time() - _last_written(Path(entry.path)) > STALE_SECONDS:
                shutil.rmtree(entry.path, ignore_errors=True)


def _sweep_store(root: Remote) -> None:
    objects = root.objects()
    now = max(objects.values(), default=0.0)
    folders: dict[str, dict[str, float]] = {}
    for name, modified in objects.items():
        folder, _, rest = name.partition("/")
        folders.setdefault(folder, {})[rest] = modified
    for folder, files in folders.items():
        is_shown = any(name == MANIFEST or name.startswith(ASIDE) for name in files)
        if folder.startswith("step-") and not is_shown and now - max(files.values()) > STALE_SECONDS:
            root.remove([f"{folder}/{name}" for name in files])


def _last_written(folder: Path) -> float:
    times = [0.0]
    for path in (folder, *folder.glob("*")):
        try:
            times.append(path.lstat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times)
