"""What a storm has done, as it is kept: one JSON object a line, and again as faults."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.storm.kinds import Kind
from benchmarks.storm.schedule import Planned


@dataclass
class Fault:
    """One fault of a storm, and what became of it. Times are Unix seconds.

    Attributes:
        at, seconds, rate: as planned.
        t: when it was done; None where it was not, and `skipped` says why.
        host, rank, pid: whom it befell, as the job names them.
        step, generation, ranks: of the newest step then; of a flipped bit and of a NaN the step that it happened in.
        ended: when it was undone.
    """

    number: int
    kind: Kind
    at: float
    seconds: float = 0.0
    rate: float | None = None
    t: float | None = None
    skipped: str = ""
    host: str = ""
    rank: int | None = None
    pid: int | None = None
    step: int = 0
    generation: tuple[int, int] = (0, 0)
    ranks: int = 0
    ended: float | None = None

    @classmethod
    def of(cls, planned: Planned) -> Fault:
        return cls(planned.number, planned.kind, planned.at, planned.seconds, planned.rate)

    @property
    def until(self) -> float:
        """When it was over, or was to be."""
        assert self.t is not None
        return self.ended if self.ended is not None else self.t + self.seconds

    @property
    def words(self) -> str:
        """For a person."""
        target = "" if self.rank is None else f" rank {self.rank}"
        where = f" {self.host}" if self.host else ""
        lasts = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind}{target}{' on' if target and where else ''}{where}{lasts}"


class FaultLog:
    """`faults.jsonl`: a line when a fault is done, is undone, or is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_text("")

    def add(self, what: str, fault: Fault) -> None:
        """`injected`, `ended` or `skipped`."""
        write_line(self._path, {"what": what, **asdict(fault)})


def write_line(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
