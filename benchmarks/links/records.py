"""The raw measurements: one JSON object a line, written as soon as a cell is done, read again to go on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.links.cells import Cell, Record

KEY = ("kind", "model", "layout", "rate", "method", "number")


class Records:
    """All cells of a file, the last measurement of each; `keep`: what it holds already counts."""

    def __init__(self, path: Path, *, keep: bool) -> None:
        self._path = path
        self._found: dict[tuple[object, ...], Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if keep and path.exists():
            for line in path.read_text().splitlines():
                self._take(json.loads(line))
        else:
            path.write_text("")

    def __contains__(self, cell: Cell) -> bool:
        """Whether it is measured; one that failed is not."""
        record = self._found.get(_key(cell.key))
        return record is not None and "error" not in record

    def add(self, record: Record) -> None:
        """Append it to the file."""
        self._take(record)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def of(self, kind: str) -> list[Record]:
        """Of the cells that did not fail."""
        return [record for record in self._found.values() if record["kind"] == kind and "error" not in record]

    def failed(self) -> list[Record]:
        """Of the others."""
        return [record for record in self._found.values() if "error" in record]

    def _take(self, record: Record) -> None:
        self._found[_key(record)] = record


def _key(record: Record) -> tuple[object, ...]:
    return tuple(record[name] for name in KEY)


def in_order(names: Iterable[str], order: Iterable[str]) -> list[str]:
    """Those of `order` that are among `names`."""
    present = set(names)
    return [name for name in order if name in present]
