"""A growing `.jsonl` file of a fleet, as far as it has been written."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from orchestrator.records import EVENT_KEYS, Record, Tail


class Log:
    """Its records by kind, in the order of writing; there need not be a file yet."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path, EVENT_KEYS)
        self._records: dict[str, list[Record]] = defaultdict(list)

    def of(self, kind: str) -> list[Record]:
        """All until now. The list grows with later calls."""
        for record in self._tail.read():
            self._records[record["kind"]].append(record)
        return self._records[kind]
