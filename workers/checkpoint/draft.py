"""A checkpoint that is being written: nobody sees it, and then all of it at once (CK-5)."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

from workers.checkpoint.errors import CheckpointError
from workers.checkpoint.places import MANIFEST, Where, spool
from workers.checkpoint.remote import Remote


class Draft(Protocol):
    """Of one attempt; all methods raise OSError. `folder` is where its files are made, on this machine; `syncs`: that is
    where they stay."""

    folder: Path
    syncs: bool

    def shard(self, index: int) -> str:
        """The name of a file of tensors."""

    def keep(self, path: Path) -> None:
        """This file, of `folder`, is complete: it has to outlast a crash. It may be gone from there afterwards."""

    def finish(self, manifest: bytes) -> None:
        """All files are kept; all that is left is to show it."""

    def show(self) -> bool:
        """Make it visible; False where a checkpoint of that name is there already."""

    def close(self) -> None:
        """Leave nothing of it behind, if it was not shown. Raises nothing."""


def draft(target: Where) -> Draft:
    """Of a checkpoint that is to be at `target`, whose parent is there."""
    return RemoteDraft(target) if isinstance(target, Remote) else FolderDraft(target)


class FolderDraft:
    """A hidden folder beside `target`, renamed at last."""

    syncs = True

    def __init__(self, target: Path) -> None:
        self._target = target
        self.folder = target.with_name(f".tmp-{target.name}-{secrets.token_hex(4)}")
        self.folder.mkdir()

    def shard(self, index: int) -> str:
        return f"shard-{index:05d}.qins"

    def keep(self, path: Path) -> None:
        sync(path, os.O_RDWR)

    def finish(self, manifest: bytes) -> None:
        with (self.folder / MANIFEST).open("xb") as file:
            file.write(manifest)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self.folder)

    def show(self) -> bool:
        try:
            self.folder.rename(self._target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
        _sync_folder(self._target.parent)
        return True

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class RemoteDraft:
    """Objects at their place, of names that no other attempt has, and at last the manifest that lists them, put on the
    condition that there is none. Of the files one at a time lies on this machine."""

    syncs = False

    def __init__(self, target: Remote) -> None:
        self._target, self._token = target, secrets.token_hex(4)
        self._uploaded: list[str] = []
        self._manifest = b""
        self._may_be_seen = False
        self._spool = ExitStack()
        self.folder = self._spool.enter_context(spool())

    def shard(self, index: int) -> str:
        return f"shard-{index:05d}-{self._token}.qins"

    def keep(self, path: Path) -> None:
        self._uploaded.append(path.name)  # whatever becomes of the upload
        (self._target / path.name).upload(path)
        path.unlink()

    def finish(self, manifest: bytes) -> None:
        self._manifest = manifest

    def show(self) -> bool:
        self._may_be_seen = True  # also where no answer comes
        self._may_be_seen = (self._target / MANIFEST).create(self._manifest)
        return self._may_be_seen

    def close(self) -> None:
        self._spool.close()
        if not self._may_be_seen:
            with suppress(OSError):  # they are swept as stale
                self._target.remove(self._uploaded)


def reveal(hidden: Path, target: Path) -> None:
    """Give a file, which is synced, the name `target` beside it. Raises CheckpointError where there is one; OSError."""
    try:
        os.link(hidden, target)  # a rename would replace it
        hidden.unlink()
    except FileExistsError:
        raise exists_already(target) from None
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise exists_already(target) from None
        hidden.rename(target)
    sync(target.parent)


def exists_already(target: Path) -> CheckpointError:
    """The sentence for what is not replaced."""
    return CheckpointError(f"{target} exists already; remove it or choose another name")


def sync(path: Path, flags: int = os.O_RDONLY) -> None:
    """A file or folder onto the disk. Raises OSError."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    sync(path, os.O_RDONLY | os.O_DIRECTORY)
