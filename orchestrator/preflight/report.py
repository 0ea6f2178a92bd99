"""What the gate has found, as a table for people and as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.preflight.verdicts import Finding, Outcome

HOST_TEST = "host test"
TESTS = (HOST_TEST, *(f"PF-{number}" for number in range(1, 8)))
COLUMNS = ("test", "result", "seconds", "tries", "why")


@dataclass(frozen=True)
class Row:
    """Of one test. `seconds` of all jobs that it was part of, in its last try; tests that share a job share them."""

    test: str
    finding: Finding
    seconds: float
    tries: int

    def plain(self) -> dict[str, Any]:
        return {
            "test": self.test,
            "outcome": self.finding.outcome.value,
            "seconds": round(self.seconds, 1),
            "tries": self.tries,
            "reason": self.finding.reason,
        }


@dataclass(frozen=True)
class Result:
    """Of a gate. `issued`: where its pass is, and until when it is valid, Unix seconds; None where it was failed."""

    rows: Sequence[Row]
    hosts: int
    seconds: float
    folder: Path
    issued: tuple[Path, float] | None = None

    @property
    def failed(self) -> list[str]:
        return [row.test for row in self.rows if row.finding.outcome is Outcome.FAILED]

    def plain(self) -> dict[str, Any]:
        """For `--json`."""
        path, valid_until = self.issued or (None, None)
        return {
            "passed": not self.failed,
            "hosts": self.hosts,
            "seconds": round(self.seconds, 1),
            "tests": [row.plain() for row in self.rows],
            "records": str(self.folder),
            "pass": None if path is None else str(path),
            "valid_until": valid_until,
        }


def ordered(rows: Mapping[str, Row]) -> list[Row]:
    return [rows[test] for test in TESTS if test in rows]


def text(result: Result) -> str:
    """The table, and one line that says what follows from it."""
    cells = [
        COLUMNS,
        *(
            (row.test, row.finding.outcome.value, f"{row.seconds:.1f}", str(row.tries), row.finding.reason)
            for row in result.rows
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([*lines, _last(result)]) + "\n"


def _last(result: Result) -> str:
    hosts = f"{result.hosts} host{'' if result.hosts == 1 else 's'}"
    if result.issued is None:
        failed = ", ".join(result.failed)
        return f"not passed in {result.seconds:.0f} s: {failed}; start no job on these {hosts}; records in {result.folder}"
    path, until = result.issued
    skipped = [row.test for row in result.rows if row.finding.outcome is Outcome.SKIPPED]
    but = f", without {', '.join(skipped)}" if skipped else ""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(until))
    return (
        f"passed in {result.seconds:.0f} s{but}: valid until {when} for this code, this JobSpec and these {hosts}; {path}"
    )
