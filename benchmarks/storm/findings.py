"""What the job has noticed of each fault, and when it trained again: pure functions of its records.

The limits: a process that exits is missed within 0.5 s; a host that falls silent within 4 s, or half a second more than the
dead limit that was learned; a rank that hangs within two seconds more than the limit that was learned; a bit that flips is
found by the next digest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.storm.kinds import Kind
from benchmarks.storm.records import Fault
from orchestrator.records import Record, generation_of

EXIT_SECONDS = 0.5
SILENT_SECONDS, SILENT_MORE_SECONDS = 4.0, 0.5
HANG_MORE_SECONDS = 2.0
DEAD_SECONDS, HANG_SECONDS = 3.0, 10.0
"""Before a coordinator has learned anything (GM-18, GM-19)."""

CLOCK_SECONDS = 0.02
"""By which clocks of two processes of one machine may differ."""

NEWS_SECONDS = 60.0
"""In which the loss of a host is news of what was done to it."""

AGAINST = ("suspect", "quarantine", "evict")
"""What a verdict says of a host that it has something against."""

AWAY_SECONDS = 8.0
"""After its death until a coordinator or an agent hears everything again."""


class Outcome(StrEnum):
    NOTICED = "noticed"
    RODE_OUT = "ridden out"
    """It was over before anybody had to notice."""
    LOST = "lost with its process"
    """A rank whose bit had flipped was gone before the next digest."""
    MISSED = "not noticed"


@dataclass(frozen=True)
class Finding:
    """Of one fault that was done. Seconds count from it.

    Attributes:
        noticed: until the job has told of it.
        by: the event that told.
        limit: of `noticed`; of a flipped bit `limit_step`, the step by whose digest it has to be known.
        noticed_step: the step whose digests differed.
        trained: until the next step was committed that counts after it; of what needs no new generation, until it was
            mended.
        full: until its host trained with as many ranks as before.
        disturbed: whether the coordinator or the host's agent was away itself, so that the limit does not apply.
    """

    fault: Fault
    outcome: Outcome
    noticed: float | None = None
    by: str = ""
    limit: float | None = None
    noticed_step: int | None = None
    limit_step: int | None = None
    trained: float | None = None
    full: float | None = None
    disturbed: bool = False

    @property
    def in_time(self) -> bool | None:
        """None where there is no limit, or it does not apply."""
        if self.disturbed or self.outcome in (Outcome.RODE_OUT, Outcome.LOST):
            return None
        if self.limit_step is not None:
            return self.noticed_step is not None and self.noticed_step <= self.limit_step
        if self.limit is None:
            return None
        return self.noticed is not None and self.noticed <= self.limit + CLOCK_SECONDS


def findings(
    faults: Sequence[Fault],
    events: Sequence[Record],
    steps: Sequence[Record],
    limits: Sequence[Record],
    checkpoint_every: int,
) -> list[Finding]:
    """Of each fault that was done, in their order.

    Args:
        events, steps: all that were written, in the order of writing.
        limits: what the coordinator had learned when, {t, dead, hang}.
        checkpoint_every: steps; in each of these ranks tell their digests.
    """
    reader = _Reader(events, steps, limits, checkpoint_every)
    done = [fault for fault in faults if fault.t is not None]
    return [reader.finding(fault, done) for fault in done]


class _Reader:
    """Of the records of one storm."""

    def __init__(
        self, events: Sequence[Record], steps: Sequence[Record], limits: Sequence[Record], checkpoint_every: int
    ) -> None:
        self._events, self._steps, self._limits, self._every = events, steps, limits, checkpoint_every

    def finding(self, fault: Fault, all_faults: Sequence[Fault]) -> Finding:
        within = fault.until - (fault.t or 0.0) if fault.kind is Kind.FLIP else self._limit(fault)
        disturbed = any(_disturbs(other, fault, within) for other in all_faults if other is not fault)
        match fault.kind:
            case Kind.FLIP:
                return self._flip(fault, disturbed)
            case Kind.COORDINATOR | Kind.DISK | Kind.STARVE | Kind.SHAPE | Kind.NAN | Kind.DRAIN:
                return self._without_limit(fault, disturbed, next_on(fault, all_faults))
            case _:
                return self._removal(fault, disturbed)

    # ------------------------------------------------------------------ what takes members away

    def _removal(self, fault: Fault, disturbed: bool) -> Finding:
        found, limit = self._news(fault), self._limit(fault)
        if found is None:
            gave_time = fault.until - (fault.t or 0.0) > limit
            outcome = Outcome.MISSED if fault.seconds == 0.0 or gave_time else Outcome.RODE_OUT
            return Finding(fault, outcome, limit=limit, disturbed=disturbed)
        noticed = self._since(fault, found)
        if fault.kind is Kind.AGENT:
            trained, full = self._after(fault, self._first(fault, "agent_back")), None
        else:
            trained, full = self._training(fault, float(found["t"]))
        return Finding(
            fault, Outcome.NOTICED, noticed, _name(found), limit, trained=trained, full=full, disturbed=disturbed
        )

    def _news(self, fault: Fault) -> Record | None:
        """The first that the job tells of it."""
        return next((event for event in self._from(fault, _heard_until(fault)) if _tells(event, fault)), None)

    def _limit(self, fault: Fault) -> float:
        """Seconds."""
        learned = self._learned(fault)
        match fault.kind:
            case Kind.STOP:
                return float(learned.get("hang", HANG_SECONDS)) + HANG_MORE_SECONDS
            case Kind.STOP_HOST | Kind.CUT:
                return max(SILENT_SECONDS, float(learned.get("dead", DEAD_SECONDS)) + SILENT_MORE_SECONDS)
            case _:
                return EXIT_SECONDS

    def _learned(self, fault: Fault) -> Record:
        """By the coordinator, until the fault was over."""
        return next((each for each in reversed(self._limits) if float(each["t"]) <= fault.until), {})

    def _training(self, fault: Fault, noticed: float) -> tuple[float | None, float | None]:
        """Until a step of the generation that follows, and of one in which the host has as many ranks as before."""
        assert fault.t is not None
        begin = max(fault.t, noticed - CLOCK_SECONDS)
        made = next((e for e in self._events if e["kind"] == "generation" and float(e["t"]) >= begin), None)
        if made is None:
            return None, None
        before = next((e for e in reversed(self._events) if e["kind"] == "generation" and float(e["t"]) <= fault.t), None)
        wanted = _ranks_on(fault.host, before) if before is not None else 0
        later = (e for e in self._events if e["kind"] == "generation" and float(e["t"]) >= begin)
        whole = next((event for event in later if _ranks_on(fault.host, event) >= wanted), None)
        return self._until_step(fault, made), self._until_step(fault, whole)

    def _until_step(self, fault: Fault, generation: Record | None) -> float | None:
        """Seconds until a step is committed in this generation or a later one."""
        if generation is None:
            return None
        assert fault.t is not None
        steps = (step for step in self._steps if generation_of(step) >= generation_of(generation))
        return next((float(step["t"]) - fault.t for step in steps), None)

    # ------------------------------------------------------------------ a flipped bit

    def _flip(self, fault: Fault, disturbed: bool) -> Finding:
        found = self._first(fault, "digests_differ")
        gone = next((e for e in self._from(fault) if _ends(e, fault)), None)
        if found is None or (gone is not None and float(gone["t"]) < float(found["t"])):
            outcome = Outcome.LOST if gone is not None else Outcome.MISSED
            return Finding(fault, outcome, limit_step=self._due(fault, None), disturbed=disturbed)
        back = next((e for e in self._events if e["kind"] == "rolled_back" and float(e["t"]) >= float(found["t"])), None)
        trained, full = (None, None) if back is None else self._training(fault, float(found["t"]))
        return Finding(
            fault,
            Outcome.NOTICED,
            self._since(fault, found),
            _name(found),
            noticed_step=int(found["step"]),
            limit_step=self._due(fault, found),
            trained=trained,
            full=full,
            disturbed=disturbed,
        )

    def _due(self, fault: Fault, found: Record | None) -> int:
        """The step by whose digest it has to be known: that of the next checkpoint, or the first one of a generation, which
        counts instead where it came between, as a comparison needs all members to the end of a step."""
        due = -(-max(fault.step, 1) // self._every) * self._every
        until = math.inf if found is None else float(found["t"])
        made = [event for event in self._from(fault, until) if event["kind"] == "generation"]
        begun = [int(event["authority_step"]) + 1 for event in made]
        return max(due, begun[-1]) if begun and begun[-1] > due else min([due, *begun])

    # ------------------------------------------------------------------ the rest

    def _without_limit(self, fault: Fault, disturbed: bool, until: float) -> Finding:
        found = self._sign(fault, until)
        if found is None:
            return Finding(fault, Outcome.RODE_OUT, trained=self._mended(fault), disturbed=disturbed)
        noticed, full = self._since(fault, found), None
        trained = self._mended(fault)
        if fault.kind is Kind.NAN:
            trained, full = self._training_of_step(fault), None
        return Finding(fault, Outcome.NOTICED, noticed, _name(found), trained=trained, full=full, disturbed=disturbed)

    def _sign(self, fault: Fault, until: float = math.inf) -> Record | None:
        """The first that the job tells of it, before `until`, when something else is done to its host."""
        for event in self._from(fault, until):
            match fault.kind, event:
                case Kind.COORDINATOR, {"kind": "coordinator_started", "recovered": True}:
                    return event
                case Kind.DISK, {"kind": "checkpoint_failed"} if float(event["t"]) <= fault.until + EXIT_SECONDS:
                    return event
                case ((Kind.STARVE | Kind.SHAPE), {"kind": "verdict", "target": fault.host}) if event["act"] in AGAINST:
                    return event if float(event["t"]) <= fault.until + HANG_SECONDS else None
                case Kind.NAN, {"kind": "non_finite", "rank": fault.rank, "step": fault.step}:
                    return event
                case Kind.DRAIN, {"kind": "host_leaves", "host": fault.host}:
                    return event
        return None

    def _mended(self, fault: Fault) -> float | None:
        """Seconds from the end of the fault to when all is as it was; from the fault itself where it had no end."""
        match fault.kind:
            case Kind.COORDINATOR:
                return self._after(fault, self._sign(fault))
            case Kind.DISK:
                events = (e for e in self._events if e["kind"] == "checkpoint" and float(e["t"]) >= fault.until)
                return next((float(e["t"]) - fault.until for e in events), None)
            case Kind.DRAIN:
                made = (e for e in self._events if e["kind"] == "generation" and float(e["t"]) >= fault.until)
                back = (e for e in made if any(member["host"] == fault.host for member in e["members"]))
                return next((float(e["t"]) - fault.until for e in back), None)
            case _:
                return None

    def _training_of_step(self, fault: Fault) -> float | None:
        """Until the step that was discarded is committed."""
        assert fault.t is not None
        steps = (s for s in self._steps if int(s["step"]) >= fault.step and float(s["t"]) >= fault.t)
        return next((float(step["t"]) - fault.t for step in steps), None)

    # ------------------------------------------------------------------ events

    def _from(self, fault: Fault, until: float = math.inf) -> Iterable[Record]:
        assert fault.t is not None
        begin = fault.t - CLOCK_SECONDS
        return (event for event in self._events if begin <= float(event["t"]) <= until)

    def _first(self, fault: Fault, kind: str) -> Record | None:
        """Of the fault's host, where the event names one."""
        return next(
            (e for e in self._from(fault) if e["kind"] == kind and e.get("host", fault.host) == fault.host),
            None,
        )

    def _since(self, fault: Fault, event: Record) -> float:
        assert fault.t is not None
        return max(0.0, float(event["t"]) - fault.t)

    def _after(self, fault: Fault, event: Record | None) -> float | None:
        return None if event is None else self._since(fault, event)


def next_on(fault: Fault, all_faults: Iterable[Fault]) -> float:
    """When something else is done to the same host; infinite where nothing is."""
    assert fault.t is not None
    times = (other.t for other in all_faults if other.host == fault.host and other.t is not None and other.t > fault.t)
    return min(times, default=math.inf) if fault.host else math.inf


def _disturbs(other: Fault, fault: Fault, within: float) -> bool:
    """Whether who was to notice `fault` within so many seconds was away for the other one."""
    assert fault.t is not None and other.t is not None
    watches = other.kind is Kind.COORDINATOR or (other.host == fault.host and other.kind is Kind.AGENT)
    return watches and fault.t - AWAY_SECONDS <= other.t <= fault.t + within


def _heard_until(fault: Fault) -> float:
    """After this nothing is news of it any more."""
    assert fault.t is not None
    match fault.kind:
        case Kind.KILL:  # the process id tells that it is
            return math.inf
        case Kind.AGENT | Kind.KILL_HOST:
            return fault.t + NEWS_SECONDS
        case _:
            return fault.until + HANG_MORE_SECONDS


def _tells(event: Record, fault: Fault) -> bool:
    """Whether an event is news of a fault that takes members away."""
    match fault.kind, event:
        case ((Kind.KILL | Kind.STOP), {"kind": "worker_exit", "pid": fault.pid}):
            return True
        case Kind.STOP, {"kind": "prepare", "reason": str(reason)}:
            return reason.startswith("no progress")
        case Kind.AGENT, {"kind": "agent_lost", "host": fault.host}:
            return True
        case ((Kind.KILL | Kind.KILL_HOST | Kind.STOP_HOST | Kind.CUT), {"kind": "host_lost", "host": fault.host}):
            return True
        case ((Kind.STOP | Kind.KILL_HOST | Kind.STOP_HOST | Kind.CUT), {"kind": "verdict", "act": "evict"}):
            return bool(event["target"] == fault.host)
        case _:
            return False


def _ranks_on(host: str, generation: Record) -> int:
    return sum(member["host"] == host for member in generation["members"])


def _ends(event: Record, fault: Fault) -> bool:
    """Whether the process whose bit has flipped is gone."""
    match event:
        case {"kind": "worker_exit", "pid": fault.pid}:
            return True
        case {"kind": "host_lost" | "host_left", "host": fault.host}:
            return True
        case _:
            return False


def _name(event: Record) -> str:
    """`verdict HEARTBEAT_DEAD`, `worker_exit`."""
    reasons = event.get("reasons")
    return f"{event['kind']} {reasons[0]}" if reasons else str(event["kind"])


ANSWERABLE_SECONDS = 60.0
"""After a fault on a host in which the governor may still remove it for that: it takes two alerts, some time apart."""


def false_evictions(faults: Sequence[Fault], events: Sequence[Record]) -> list[Record]:
    """Verdicts in force by which a host was evicted to which nothing had been done, or not for a minute."""
    done = [fault for fault in faults if fault.t is not None]
    return [event for event in events if evicts(event) and not any(_answers_for(fault, event) for fault in done)]


def evicts(event: Record) -> bool:
    """Whether it is a verdict by which a host goes."""
    return event["kind"] == "verdict" and (event["act"], event["mode"], event["guard"]) == ("evict", "enforce", "")


def _answers_for(fault: Fault, verdict: Record) -> bool:
    assert fault.t is not None
    t = float(verdict["t"])
    return fault.host == verdict["target"] and fault.t - CLOCK_SECONDS <= t <= fault.until + ANSWERABLE_SECONDS
