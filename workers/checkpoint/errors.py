"""What can go wrong with a checkpoint: each message is one sentence that names the place and the trouble."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.checkpoint.places import Where


LONGEST = 1500
"""Characters of a sentence: what stands in a file may be as long as it likes."""


class CheckpointError(Exception):
    """A checkpoint cannot be written or read. The message is one line of at most 1500 characters, whatever it quotes."""

    def __init__(self, message: str) -> None:
        shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
        half = LONGEST // 2
        super().__init__(shown if len(shown) <= LONGEST else f"{shown[: half - 1]} … {shown[-half + 2 :]}")


class StorageError(CheckpointError):
    """The folder, its disk or the store refused; the same call may succeed later. `__cause__` is the OSError."""


class StaleWriter(CheckpointError):
    """The writer's generation is over, so what it wrote was thrown away."""


class WrongModel(CheckpointError):
    """A sound checkpoint, but of another model."""


_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space there",
    errno.EDQUOT: "the disk quota is used up; free some space there",
    errno.EFBIG: "the file would be larger than allowed here; raise the file size limit (ulimit -f)",
    errno.EACCES: "access is denied; give this user the right to read and write there",
    errno.EPERM: "access is denied; give this user the right to read and write there",
    errno.EROFS: "the file system is read-only; mount it writable or choose another folder",
    errno.EEXIST: "part of that path is a file; choose another folder",
    errno.ENOTDIR: "part of that path is a file; choose another folder",
    errno.ENOENT: "part of that path has vanished; check that the storage is mounted",
    errno.ESTALE: "the mount was lost; check that the storage is mounted",
    errno.ENOTCONN: "the mount was lost; check that the storage is mounted",
    errno.EIO: "the disk reported an input/output error; check the disk or its mount",
}


def storage_error(action: str, path: Where, error: OSError) -> StorageError:
    """The sentence for `error`, met while trying to `action` ("write", "read", …) at `path`."""
    advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    refusal = StorageError(f"cannot {action} {path}: {advice}")
    refusal.__cause__ = error
    return refusal


def damaged(path: Where, what: str) -> CheckpointError:
    """The sentence for a file whose content is not what a writer left there."""
    return CheckpointError(f"{path} is damaged: {what}")
