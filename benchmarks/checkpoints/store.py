"""A disk that is as slow as a shared store, and that has taken what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GROUP = Path("/sys/fs/cgroup/blkio/quantarion-benchmark")


@contextmanager
def throttled(folder: Path, rate: float) -> Iterator[None]:
    """This process reads and writes at most `rate` MB/s on the disk of `folder`."""
    device = folder.stat().st_dev
    limit = f"{os.major(device)}:{os.minor(device)} {int(rate * 1e6)}"
    try:
        GROUP.mkdir(exist_ok=True)
        for direction in ("read", "write"):
            (GROUP / f"blkio.throttle.{direction}_bps_device").write_text(limit)
        (GROUP / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise SystemExit(f"--rate cannot be kept here ({error.strerror}: {error.filename}); leave it out") from None
    try:
        yield
    finally:
        (GROUP.parent / "cgroup.procs").write_text(str(os.getpid()))
        GROUP.rmdir()


def sync(folder: Path) -> int:
    """Everything below it onto the disk; its bytes."""
    folder, total = folder.resolve(), 0
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        total += path.stat().st_size if path.is_file() else 0
    return total
