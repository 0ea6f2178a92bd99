"""What a job's task prints, as the lowest rank prints it: every rank runs the same script, so one of them is enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from orchestrator.records import Tail

LINES_AT_ONCE = 50
"""Of more new lines than these only the last are told."""
LINE_CHARACTERS = 500


class TaskOutput:
    """The lines that are new in `logs/<worker>.out` of the job in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._logs = folder / "logs"
        self._tail: Tail | None = None
        self._rank = 0
        self._num_told = 0  # lines of the file, told or passed over
        self._switched = False

    def follow(self, members: Iterable[Mapping[str, Any]]) -> None:
        """The ranks that train now, as a `generation` event has them."""
        lowest = min(members, key=lambda member: int(member["rank"]), default=None)
        if lowest is None:
            return
        path = output_path(self._logs, lowest)
        if self._tail is None or self._tail.path != path:
            self._tail, self._rank, self._switched = Tail(path), int(lowest["rank"]), True

    def read(self, *, to_the_end: bool = False) -> list[str]:
        """New lines, ready to be shown; a line without an end only `to_the_end`. Raises OSError."""
        if self._tail is None:
            return []
        lines = self._tail.lines()
        if self._switched:  # the script has printed there what its predecessor printed: the same number of lines
            told = min(self._num_told, len(lines))
            lines, self._num_told, self._switched = lines[told:], told, False
        self._num_told += len(lines)
        rest = self._tail.rest() if to_the_end else b""
        shown = [text for line in (*lines, rest) if (text := clean(line))]
        hidden = len(shown) - LINES_AT_ONCE
        if hidden > 0:
            shown = [f"({hidden} more lines in {self._tail.path})", *shown[hidden:]]
        return [f"rank {self._rank}: {text}" for text in shown]


def output_path(logs: Path, member: Mapping[str, Any]) -> Path:
    """Where the worker of one of a `generation` event's members prints to."""
    return logs / f"{member['worker']}.out"


def clean(line: bytes) -> str:
    """A line as text: what a terminal would have left of it, without colours and control codes, not too long."""
    last = line.decode(errors="replace").rstrip().rpartition("\r")[2]
    text = "".join(character for character in Text.from_ansi(last).plain.expandtabs() if character.isprintable())
    return text if len(text) <= LINE_CHARACTERS else f"{text[:LINE_CHARACTERS]}…"
