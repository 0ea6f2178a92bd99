"""The log that every worker of every system writes: one JSON line per committed step, appended in one write."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

LOG_NAME = "commits.jsonl"


class Commit(NamedTuple):
    """One step committed by one process; times are Unix seconds of one machine."""

    t: float
    begun: float
    pid: int
    rank: int
    world: int
    step: int


class StepLog:
    """Appends commits to `folder/commits.jsonl`; whole lines, also when many processes write at once (O_APPEND)."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / LOG_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def commit(self, *, begun: float, rank: int, world: int, step: int) -> None:
        """Write that this process has just committed `step`, which it began at `begun`."""
        line = Commit(time.time(), begun, os.getpid(), rank, world, step)
        os.write(self._file, (json.dumps(line._asdict()) + "\n").encode())


class LogTail:
    """Reads what was appended since the last look; a line that is still being written waits for the next one."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG_NAME
        self._offset = 0

    def poll(self) -> list[Commit]:
        """Commits since the last call, in the order in which they were written; none while there is no log."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        return [Commit(**json.loads(line)) for line in data[:whole].splitlines()]
