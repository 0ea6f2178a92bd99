"""Files on /dev/shm, one for each rank, in which it shows the others of its host what they exchange (CC-2).

A file belongs to a process as its page does: the rank makes it and holds a lock on it, which the kernel frees however the
process ends. So whoever sees the process end removes the file, and whoever finds one without its lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from workers.errors import TaskError


class MemoryShortage(TaskError):
    """/dev/shm has no room for what the ranks of a host exchange."""


def memory_folder(runtime: Path) -> Path:
    """Where the ranks whose sockets and pages lie in `runtime` have their memory: always below /dev/shm."""
    return Path("/dev/shm", f"quantarion-{os.getuid()}", runtime.name)


def memory_path(folder: Path, worker: str) -> Path:
    """The file of one worker."""
    return folder / f"{worker}.memory"


def new_file(path: Path, size: int) -> int:
    """Make a file of `size` bytes, locked, with every page reserved; returns its descriptor.

    A write to a page that is missing when memory runs out would end the process (SIGBUS). The lock is held as long as
    the descriptor, or a mapping made with it, is there. Raises MemoryShortage, FileExistsError.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise _shortage(path, size, free)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        path.unlink()
        if error.errno != errno.ENOSPC:
            raise
        raise _shortage(path, size, shutil.disk_usage(path.parent).free) from None
    return fd


def remove_abandoned(folder: Path) -> None:
    """Remove the files in `folder` whose processes are dead: of ranks that ended while nobody watched them."""
    for path in folder.glob(memory_path(folder, "*").name):
        with suppress(OSError):  # it is locked, or somebody else removes it
            fd = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_size:  # its process locks it before it has a size
                    path.unlink()
            finally:
                os.close(fd)


def _shortage(path: Path, size: int, free: int) -> MemoryShortage:
    place = "/dev/shm" if path.is_relative_to("/dev/shm") else str(path.parent)
    return MemoryShortage(
        f"{place} has {free / 2**20:.1f} MiB free and each rank of a host needs {size / 2**20:.1f} MiB there to exchange "
        "gradients with the others: enlarge it (docker run --shm-size=1g; on Kubernetes an emptyDir of medium: Memory "
        "at /dev/shm)"
    )
