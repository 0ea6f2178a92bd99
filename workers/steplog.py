"""`steps.jsonl`: a line per committed step, written by the first healed rank of the ring, backfilled by its successor.

Every rank keeps the recent lines in memory, so a writer's death loses none (TA section 2, EP-10).
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from pathlib import Path
from typing import Any

logger = logging.getLogger("quantarion.steplog")

KEPT_LINES = 256
_TAIL_BYTES = 1 << 17


class StepLog:
    """The recent lines of this rank, and the file when it is the writer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._recent: deque[dict[str, Any]] = deque(maxlen=KEPT_LINES)
        self._fd: int | None = None
        self._is_behind = False

    @property
    def recent(self) -> list[dict[str, Any]]:
        """The lines a joiner takes over, oldest first."""
        return list(self._recent)[-64:]

    def take_over(self, lines: list[dict[str, Any]]) -> None:
        """Replace what we remember by a donor's memory."""
        self._recent.clear()
        self._recent.extend(lines)

    def add(self, line: dict[str, Any]) -> None:
        """A step was committed."""
        self._recent.append(line)
        if self._fd is not None:
            self._write([line] if not self._is_behind else self._missing())

    def write_from_now_on(self, writer: bool) -> None:
        """Called at every new generation: the first of the ring writes, after adding what is missing in the file."""
        if not writer:
            self._close()
            return
        if self._fd is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._write(self._missing())

    def _missing(self) -> list[dict[str, Any]]:
        written = self._written()
        return [line for line in self._recent if _key(line) not in written]

    def _written(self) -> set[tuple[int, int, int]]:
        """Keys of the lines at the end of the file; a torn last line is closed off."""
        assert self._fd is not None
        size = os.fstat(self._fd).st_size
        start = max(0, size - _TAIL_BYTES)
        data = os.pread(self._fd, size - start, start)
        if data and not data.endswith(b"\n"):
            os.write(self._fd, b"\n")
        keys = set()
        for raw in data.split(b"\n"):
            try:
                keys.add(_key(json.loads(raw)))
            except (ValueError, KeyError, TypeError):
                continue
        return keys

    def _write(self, lines: list[dict[str, Any]]) -> None:
        assert self._fd is not None
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            self._is_behind = bool(text) and os.write(self._fd, text) != len(text)
        except OSError as error:  # a full disk: training goes on, the lines are kept and written later
            if not self._is_behind:
                logger.error("%s cannot be written, its lines are kept: %s", self._path.name, error)
            self._is_behind = True

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _key(line: dict[str, Any]) -> tuple[int, int, int]:
    incarnation, counter = line["generation"]
    return int(line["step"]), int(incarnation), int(counter)
