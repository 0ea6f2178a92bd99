"""What a job of the gate has left on record, as data that verdicts are found from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.audit import audit
from orchestrator.governor.codes import NOISY, Code
from orchestrator.governor.events import Observed
from orchestrator.governor.log import LogError, told
from orchestrator.records import Record, read_events, read_lines, read_object, read_steps
from workers.faults import parse

VERDICT_KEYS = frozenset({"t", "act", "target"})
DIGEST_KEYS = frozenset({"step", "rank", "digest"})


@dataclass(frozen=True)
class Window:
    """An evaluation of the governor.

    Attributes:
        time: its end, Unix seconds.
        begun: committed steps at the end of the one before.
        steps: the same at its end.
        judged: hosts by the noisy signals that were known of them.
        alerts: what hosts alerted on, counted or not.
    """

    time: float
    begun: int
    steps: int
    judged: Mapping[Code, frozenset[str]]
    alerts: Mapping[str, tuple[Code, ...]]


@dataclass(frozen=True)
class Run:
    """Of one job.

    Attributes:
        steps: of the surviving line.
        digests: lines that ranks have written of what they hold.
        windows, verdicts: of its governor, in their order.
        marks: by the name of a fault that has happened, what was known there.
        problems: what the audit of its samples has found; None where no samples are on record.
    """

    exit_code: int | None = None
    seconds: float = 0.0
    steps: Sequence[Record] = ()
    events: Sequence[Record] = ()
    digests: Sequence[Record] = ()
    windows: Sequence[Window] = ()
    verdicts: Sequence[Record] = ()
    marks: Mapping[str, Record] = field(default_factory=dict)
    problems: Sequence[str] | None = None

    def host(self, rank: int) -> str:
        """That has the rank in the first generation; '' where there was none."""
        first = next((event for event in self.events if event["kind"] == "generation"), None)
        members = first["members"] if first is not None else ()
        return next((str(member["host"]) for member in members if member["rank"] == rank), "")

    def step(self, number: int) -> Record | None:
        return next((step for step in self.steps if step["step"] == number), None)

    def begun(self, fault: str) -> int | None:
        """The step in which a fault has happened."""
        mark = self.marks.get(fault)
        return None if mark is None or "step" not in mark else int(mark["step"])

    def within(self, first: int, end: float) -> list[Window]:
        """Evaluations that have begun after step `first` was committed, and ended before step `end` was."""
        return [window for window in self.windows if window.begun >= first and window.steps < end]

    def last_before(self, step: int) -> float | None:
        """When the last evaluation has ended before that step was committed."""
        return max((window.time for window in self.windows if window.steps < step), default=None)


def read(folder: Path, names: Iterable[str], *, exit_code: int | None, seconds: float, known: frozenset[str]) -> Run:
    """The run of the job in `folder`.

    Args:
        names: of the faults that were injected.
        known: files of digests that an earlier run has written.
    """
    log = folder / "governor.jsonl"
    return Run(
        exit_code=exit_code,
        seconds=seconds,
        steps=read_steps(folder),
        events=read_events(folder),
        digests=[line for path in digest_files(folder) if path.name not in known for line in read_lines(path, DIGEST_KEYS)],
        windows=read_windows(log),
        verdicts=list(read_lines(log, VERDICT_KEYS)),
        marks={name: mark for name in names if (mark := read_mark(folder, name))},
        problems=audit(folder).problems if (folder / "samples").is_dir() else None,
    )


def read_mark(folder: Path, name: str) -> Record:
    """What was known where the fault has happened; empty where it has not."""
    return read_object(parse(name).mark(folder / "faults"))


def digest_files(folder: Path) -> list[Path]:
    return sorted((folder / "digests").glob("*.jsonl"))


def read_windows(log: Path) -> list[Window]:
    """Of a governor's log, as far as it can be read; what was judged is found anew from what the governor was told."""
    windows, begun = list[Window](), 0
    try:
        with log.open(encoding="utf-8") as lines:
            for state, event, config in told(lines):
                if not isinstance(event, Observed):
                    continue
                readings, _ = state.read(event.observations, event.singles)
                signals = {code: config.signal(code) for code in NOISY}
                judged = {code: frozenset(_known(readings.hosts, readings.of(code)[0].tolist())) for code in NOISY}
                alerts = {host: tuple(codes) for host, codes in readings.alerts(signals).items()}
                windows.append(Window(event.time, begun, event.steps, judged, alerts))
                begun = event.steps
    except (FileNotFoundError, LogError, json.JSONDecodeError):
        pass
    return windows


def _known(hosts: Sequence[str], values: Sequence[float]) -> list[str]:
    return [host for host, value in zip(hosts, values, strict=True) if value == value]  # NaN is not equal to itself
