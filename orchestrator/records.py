"""Reading what a job writes beside the training: `steps.jsonl` and `events.jsonl`, and the incidents in them.

Both files are appended to by processes that may be killed at any byte. So a last line may be torn, and the line of a
successor may be glued to a torn one; neither costs more than the torn line itself.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""One JSON object of a `.jsonl` file."""

Generation = tuple[int, int]
"""(coordinator incarnation, counter), ordered lexicographically."""

STEPS = "steps.jsonl"
EVENTS = "events.jsonl"
STEP_KEYS = frozenset({"step", "generation"})
EVENT_KEYS = frozenset({"t", "kind"})

_PHASE_WORDS = {
    "data": "data check",
    "fp32_warmup": "FP32 warm-up",
    "qat": "QAT",
    "observer_freeze": "observer freeze",
    "calibration": "calibration",
    "convert": "conversion",
    "verify": "verification",
}
"""By `workers.qat.phases.Phase`, which is not imported: the audit and `status` load nothing that trains."""

TRAINING_PHASES = ("fp32_warmup", "qat", "observer_freeze")
"""Of these a `phase` event names the first step; of the others the last step before them."""

_CALIBRATION_ROUND = re.compile(r"calibration\.(\d+)")


def generation_of(record: Mapping[str, Any]) -> Generation:
    """The generation of a record, written `[incarnation, counter]`."""
    incarnation, counter = record["generation"]
    return int(incarnation), int(counter)


def parse_line(line: bytes, required: frozenset[str]) -> Record | None:
    """The object of one line, or None where nothing whole can be read from it.

    A writer killed in the middle of a line leaves a fragment without a newline, and the next writer's line follows
    directly: then the whole object is the longest suffix of the line that parses and has the `required` keys.
    """
    start = line.find(b"{")
    while start >= 0:
        try:
            value = json.loads(line[start:])
        except ValueError:
            value = None
        if isinstance(value, dict) and required <= value.keys():
            return value
        start = line.find(b"{", start + 1)
    return None


def read_lines(path: Path, required: frozenset[str]) -> Iterator[Record]:
    """Every whole record of a `.jsonl` file in the order of writing; nothing where the file does not exist.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            for line in file:
                record = parse_line(line, required)
                if record is not None:
                    yield record
    except FileNotFoundError:
        return


def surviving(lines: Iterable[Record]) -> list[Record]:
    """The surviving line of a job: one record per committed step, ordered by step (EP-10).

    For each step the record with the highest generation counts; of several with that generation the one written last.
    Along one line generations never fall, so a step whose generation is below that of an earlier step was committed
    on a line that has been left (a resume went on from a checkpoint before it) and is dropped.
    """
    best: dict[int, Record] = {}
    for record in lines:
        step = int(record["step"])
        if step not in best or generation_of(record) >= generation_of(best[step]):
            best[step] = record
    line: list[Record] = []
    newest: Generation = (0, 0)
    for step in sorted(best):
        generation = generation_of(best[step])
        if generation >= newest:
            line.append(best[step])
            newest = generation
    return line


def read_steps(folder: Path) -> list[Record]:
    """The surviving line of the job in `folder`, from its `steps.jsonl`; empty where no step is committed yet."""
    return surviving(read_lines(folder / STEPS, STEP_KEYS))


def read_events(folder: Path) -> list[Record]:
    """All events of the job in `folder` in the order of writing, those of earlier runs that it resumed included."""
    return list(read_lines(folder / EVENTS, EVENT_KEYS))


def read_object(path: Path) -> Record:
    """The JSON object in `path` (`job.json`, `result.json`); empty where it is missing or not a whole object."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def phase_words(phase: str) -> str:
    """A phase of a recipe, as people read it: `FP32 warm-up` for `fp32_warmup`."""
    return _PHASE_WORDS.get(phase, phase)


def read_phases(events: Iterable[Record]) -> list[Record]:
    """The `phase` events of the surviving line, each phase once; those that a resume has left behind are dropped."""
    begun: list[Record] = []
    for event in events:
        if event["kind"] == "resumed":
            begun = [phase for phase in begun if phase["step"] <= event["step"]]
        elif event["kind"] == "phase":
            known = [phase["phase"] for phase in begun]
            if event["phase"] in known:  # told again by another rank, or come back to
                del begun[known.index(event["phase"]) + 1 :]
            else:
                begun.append(event)
    return begun


def surviving_decisions(events: Iterable[Record]) -> list[Record]:
    """The events about compression on the surviving line; those of steps that were computed again are dropped."""
    decisions: list[Record] = []
    goes_on_from: int | None = None
    for event in events:
        if event["kind"] == "generation":
            goes_on_from = int(event["authority_step"])
        elif event["kind"] == "resumed":  # it follows on a generation that begins at step 0
            goes_on_from = int(event["step"])
        elif event["kind"] in ("compression", "compression_plan"):
            if goes_on_from is not None:
                decisions = [each for each in decisions if each["step"] <= goes_on_from]
                goes_on_from = None
            decisions.append(event)
    return decisions if goes_on_from is None else [each for each in decisions if each["step"] <= goes_on_from]


def calibrated(event: Record) -> int | None:
    """How many batches of the calibration are done with this event; None for any other event."""
    found = _CALIBRATION_ROUND.fullmatch(str(event.get("name"))) if event["kind"] == "evaluation" else None
    return int(found[1]) + 1 if found else None


def measured_accuracy(event: Record) -> float | None:
    """What an evaluation has found, 0 to 1; None for a round that measured something else, and for any other event."""
    if event["kind"] != "evaluation" or calibrated(event) is not None:
        return None
    accuracy = event.get("accuracy")
    return None if accuracy is None else float(accuracy)


def recipe_of(job: Record) -> str | None:
    """The recipe that a `job.json` names; None for a script."""
    task = job.get("task")
    return task.get("recipe") if isinstance(task, dict) else None


class Tail:
    """Reads a growing text file piece by piece.

    The file may not exist yet; a last line without a newline is left for the next call; a file that shrank or was
    replaced is read again from its start.
    """

    def __init__(self, path: Path, required: frozenset[str] = frozenset()) -> None:
        self.path = path
        self.required = required
        self._offset = 0
        self._inode: int | None = None

    def read(self) -> list[Record]:
        """The whole records of a `.jsonl` file that were appended since the last call.

        Raises:
            OSError: the file is there and cannot be read.
        """
        records = (parse_line(line, self.required) for line in self.lines())
        return [record for record in records if record is not None]

    def lines(self) -> list[bytes]:
        """The whole lines that were appended since the last call, without their newlines. Raises as `read`."""
        data = self._appended()
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        return data[:whole].split(b"\n")[:-1]

    def rest(self) -> bytes:
        """What follows the last newline, where nothing more will come. Raises as `read`."""
        data = self._appended()
        self._offset += len(data)
        return data

    def _appended(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset = status.st_ino, 0
                file.seek(self._offset)
                return file.read()
        except FileNotFoundError:
            return b""


@dataclass
class Incident:
    """Something abnormal, as the events tell it."""

    t: float  # Unix seconds
    kind: str  # worker_killed, worker_exited, host_lost, agent_lost, coordinator_lost, apply_failed
    host: str | None
    rank: int | None
    cause: str  # "SIGKILL", "exit status 3", a reason; empty where it is not known
    recovery_seconds: float | None = None  # from the incident until all members were running
    back_seconds: float | None = None  # from the incident until the world was full again


class Incidents:
    """Puts incidents together from the events of a job, added one by one in their order."""

    SAME_SECONDS = 1.0
    """How far the start of a recovery may lie from the time of its incident's own event."""

    def __init__(self) -> None:
        self.all: list[Incident] = []
        self._ended = False

    def add(self, event: Record) -> Incident | None:
        """Take one event; returns the incident that it opened or that it says more about, None for any other event."""
        kind = event["kind"]
        if kind in ("finished", "failed"):
            self._ended = True
        elif kind in ("recovered", "rank_back"):
            return self._recovered(event)
        elif kind == "agent_back":
            return self._agent_back(event)
        else:
            self._ended = self._ended and kind not in ("job_started", "coordinator_started")  # a resume goes on
            return None if self._ended else self._opened(event)
        return None

    def _opened(self, event: Record) -> Incident | None:
        match event:
            case {"kind": "worker_exit", "signal": int() | str() as number} if number:
                found, cause = "worker_killed", signal_name(number)
            case {"kind": "worker_exit", "status": int(status)} if status:
                found, cause = "worker_exited", f"exit status {status}"
            case {"kind": "coordinator_started", "recovered": True}:
                found, cause = "coordinator_lost", ""
            case {"kind": "host_lost" | "agent_lost" | "apply_failed" as found}:
                cause = str(event.get("reason") or event.get("error") or "")
            case _:
                return None
        incident = Incident(float(event["t"]), found, event.get("host"), _rank(event), cause)
        self.all.append(incident)
        return incident

    def _recovered(self, event: Record) -> Incident:
        seconds = float(event["seconds"])
        start = float(event["t"]) - seconds
        rank, host = _rank(event), event.get("host")
        incident = self._nearest(start, host, rank)
        if incident is None:
            incident = Incident(start, str(event.get("incident") or "unknown"), host, rank, "")
            self.all.append(incident)
        if event["kind"] == "recovered":
            incident.recovery_seconds = max(seconds, incident.recovery_seconds or 0.0)
        else:
            incident.back_seconds = max(seconds, incident.back_seconds or 0.0)
        return incident

    def _nearest(self, start: float, host: str | None, rank: int | None) -> Incident | None:
        """The incident of this rank, or of its whole host, that began nearest to `start`."""
        near = [i for i in self.all if i.host == host and abs(i.t - start) <= self.SAME_SECONDS]
        found = [i for i in near if i.rank == rank] or [i for i in near if i.kind == "host_lost"]
        return min(found, key=lambda incident: abs(incident.t - start), default=None)

    def _agent_back(self, event: Record) -> Incident | None:
        for incident in reversed(self.all):
            if incident.kind == "agent_lost" and incident.host == event["host"]:
                incident.recovery_seconds = float(event["seconds"])
                return incident
        return None


def read_incidents(events: Iterable[Record]) -> list[Incident]:
    """All incidents in `events`, in the order of their time."""
    incidents = Incidents()
    for event in events:
        incidents.add(event)
    return sorted(incidents.all, key=lambda incident: incident.t)


def signal_name(number: int | str) -> str:
    """`SIGKILL` for 9; numbers that no signal has stay numbers."""
    try:
        return signal.Signals(int(number)).name
    except ValueError:
        return str(number)


def _rank(event: Record) -> int | None:
    rank = event.get("rank")
    return rank if isinstance(rank, int) and rank >= 0 else None
