"""Where the processes of a job on one host meet: sockets and shared pages; and a file that outlives them."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

DISTRUSTED = "distrusted.json"
"""In the folder `control` of a job: `after`, the step behind which checkpoints are wrong. Gone once those are put aside."""

_NAME_CHARACTERS = 24
_ROOM_FOR_NAME = 28
"""Bytes of the longest file name under the folder: `w<pid>-<8 hex digits>.page`, `<host>.sock`."""

SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket: `sun_path` has 108 bytes, the last is zero (unix(7))."""


def runtime_roots() -> list[Path]:
    """The folders that may hold runtime folders of this user, the preferred one first."""
    name = f"quantarion-{os.getuid()}"
    bases = [os.environ.get("XDG_RUNTIME_DIR") or "", "/dev/shm", "/tmp"]
    return [Path(base, name) for base in bases if base.startswith("/")]


def runtime_dir(job: str, folder: Path) -> Path:
    """The runtime folder of the job whose folder is `folder`: the same in all its processes on a host, and short.

    Two jobs of one name in different storages differ in the hash. It is not created here.
    """
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]
    clean = re.sub(r"[^A-Za-z0-9_-]+", "-", job)[:_NAME_CHARACTERS]
    candidates = [root / f"{clean}-{digest}" for root in runtime_roots()]
    return next((path for path in candidates if _fits(path)), candidates[-1])


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) + 1 + _ROOM_FOR_NAME <= SOCKET_PATH_BYTES and path.parent.parent.is_dir()
