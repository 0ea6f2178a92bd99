"""The disk that a storm's checkpoints lie on: small, in memory, and full when it is to be."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.lab import LabError

SOURCE = "quantarion-storm"
"""What `mount` names it by, so that a later storm finds what one that was killed has left."""

MEBIBYTES = 64
FILLER = "filler"


class SmallDisk:
    """A tmpfs, mounted once there is a folder for it; gone with the block. Entering removes what killed storms below `root`
    have left."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        for path in left_below(self._root, Path("/proc/mounts").read_text()):
            _call("umount", "--lazy", path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._folder is not None:
            with contextlib.suppress(LabError):  # the next storm finds it
                _call("umount", "--lazy", str(self._folder))

    def mount(self, folder: Path) -> None:
        """Raises LabError, with what `mount` says."""
        folder.mkdir(exist_ok=True)
        _call("mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m", SOURCE, str(folder))
        self._folder = folder

    def fill(self) -> None:
        """To the last byte."""
        assert self._folder is not None
        with (self._folder / FILLER).open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass

    def empty(self) -> None:
        assert self._folder is not None
        (self._folder / FILLER).unlink(missing_ok=True)


def left_below(root: Path, mounts: str) -> list[str]:
    """The folders below `root` that are named by `SOURCE` in the text of /proc/mounts."""
    found = []
    for line in mounts.splitlines():
        source, folder = line.split(" ")[:2]
        folder = folder.replace("\\040", " ")
        if source == SOURCE and Path(folder).is_relative_to(os.path.realpath(root)):
            found.append(folder)
    return found


def _call(*words: str) -> None:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, process_group=0)
    if done.returncode != 0:
        raise LabError(f"`{' '.join(words)}` failed: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
