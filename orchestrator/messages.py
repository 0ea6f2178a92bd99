"""What an agent may say: of its own host, in numbers and names that can be, of generations that there have been (GM-6).

Whatever is refused here changes nothing. Some of it is no fault of the host, such as what was on its way when a process
ended or a round was overtaken; the rest counts against it (`violations.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from quantarion.v1 import control_pb2 as pb

from orchestrator.membership import Membership
from workers import wire
from workers.identity import Generation
from workers.protocol import RankState, Sync

MOST_BYTES = 2 << 20
"""Of one message. A rank's own are at most half of that (`workers.link.PACKET_BYTES`)."""

MOST_STEPS = 1 << 48
MOST_SECONDS = 1e8
"""Three years; a longer step would keep the coordinator waiting for ever."""

MOST_NAME = 128
DIGEST_BYTES = 16
ROUNDING = 1e-6

FROM_ANYBODY = frozenset({"published", "failed", "note"})
"""Reports of a process that has just ended are worth something: what it has written, why it failed."""

OF_A_MEMBER = frozenset({"apply_failed", "join_failed"})
"""Kinds of notes that are not: they are about the process that has ended."""

STATES = frozenset(state.value for state in RankState)
WAYS = frozenset(way.value for way in Sync)


class Reason(StrEnum):
    OVERSIZED = "oversized"
    OUT_OF_TURN = "out_of_turn"
    FOREIGN_WORKER = "foreign_worker"
    UNKNOWN_WORKER = "unknown_worker"
    FUTURE_GENERATION = "future_generation"
    STALE_GENERATION = "stale_generation"
    IMPOSSIBLE_NUMBER = "impossible_number"
    MALFORMED = "malformed"


OF_A_MOMENT = frozenset({Reason.UNKNOWN_WORKER, Reason.STALE_GENERATION})
"""They happen to hosts that are well."""


@dataclass(frozen=True)
class Refusal:
    """`text` is one sentence without its subject, the message."""

    reason: Reason
    text: str

    @property
    def counts(self) -> bool:
        """Against the host that has sent the message."""
        return self.reason not in OF_A_MOMENT


@dataclass(frozen=True)
class Known:
    """What a message is held against.

    Attributes:
        host_of: the host of a worker; None of one that nobody knows.
        newest: the last generation that was ever named.
        configured: the last one that members were told of.
    """

    host_of: Callable[[str], str | None]
    newest: Generation
    configured: Generation

    @classmethod
    def of(cls, machine: Membership) -> Self:
        def host_of(worker: str) -> str | None:
            view = machine.workers.get(worker)
            return None if view is None else view.host

        named = Generation(machine.incarnation, machine.counter)
        return cls(host_of, max(named, machine.generation, machine.round_generation), machine.generation)


def check(host: str, message: pb.AgentMessage, known: Known, *, first: bool = False) -> Refusal | None:
    """Why nothing is done about what the agent of `host` says; None where it is taken.

    Args:
        first: it is the first message of its stream.
    """
    if message.ByteSize() > MOST_BYTES:
        return Refusal(Reason.OVERSIZED, f"has {message.ByteSize()} bytes, more than {MOST_BYTES}")
    return next(_faults(host, message, known, first), None)


def _faults(host: str, message: pb.AgentMessage, known: Known, first: bool) -> Iterator[Refusal]:
    body = message.WhichOneof("body")
    if body is None:
        yield Refusal(Reason.MALFORMED, "has nothing in it that is known here")
    elif first != (body == "hello"):
        yield Refusal(Reason.OUT_OF_TURN, "is a second HostHello" if body == "hello" else f"is {body} before HostHello")
    match body:
        case "hello":
            yield from _in_hello(host, message.hello, known)
        case "draining":
            yield from _number("age", message.draining.age, 0.0, MOST_SECONDS)
            yield from _number("deadline", message.draining.deadline, 0.0, MOST_SECONDS)
        case "stacks":
            for stack in message.stacks.stacks:
                yield from _foreign(host, stack.worker, known)
        case "beat":
            yield from _in_beat(host, message.beat, known)
        case "worker_up":
            yield from _in_worker(host, message.worker_up, known)
        case "worker_exit":
            yield from _foreign(host, message.worker_exit.worker, known)
        case "report":
            yield from _in_report(host, message.report, known)
        case "host_tested":
            yield from _number("seconds", message.host_tested.seconds, 0.0, MOST_SECONDS)
        case "leads":
            yield from _number("port", message.leads.port, 1, 65535)
        case "probe_port":
            yield from _number("port", message.probe_port.port, 0, 65535)
        case "measured_link" if not message.measured_link.error:
            for name in ("round_trip", "sent", "received"):
                yield from _number(name, getattr(message.measured_link, name), 0.0, math.inf)


# ---------------------------------------------------------------- bodies


def _in_hello(host: str, hello: pb.HostHello, known: Known) -> Iterator[Refusal]:
    for up in hello.workers:
        yield from _in_worker(host, up, known)
    for left in hello.exits:
        yield from _foreign(host, left.worker, known)


def _in_worker(host: str, up: pb.WorkerUp, known: Known) -> Iterator[Refusal]:
    if not 0 < len(up.worker) <= MOST_NAME:
        yield Refusal(Reason.MALFORMED, f"names a worker in {len(up.worker)} characters; 1 to {MOST_NAME} can be")
    yield from _foreign(host, up.worker, known)
    if up.phase not in STATES:
        yield Refusal(Reason.MALFORMED, f"says that {up.worker} is in a state {up.phase[:MOST_NAME]!r}, which there is not")
    yield from _number("rank", up.rank, -1, 1 << 31)
    for generation in (up.generation, up.promised):
        yield from _future(generation, known)
    for state in (up.state, up.previous):
        yield from _in_state(state, known)


def _in_beat(host: str, beat: pb.Beat, known: Known) -> Iterator[Refusal]:
    """Workers that nobody knows are passed over by whoever reads it: it says that the host lives, whatever else."""
    yield from _number("temperature", beat.temperature, -MOST_SECONDS, MOST_SECONDS, may_be_unknown=True)
    for sensor in ("memory", "disk", "load", "cpu"):
        yield from _number(sensor, getattr(beat, sensor), 0.0, MOST_SECONDS)
    for use in beat.links:
        yield from _number("seconds", use.seconds, 0.0, math.inf)
        if len(use.address) > MOST_NAME:
            yield Refusal(Reason.MALFORMED, f"has an address of {len(use.address)} characters")
    for progress in beat.progress:
        yield from _foreign(host, progress.worker, known)
        yield from _future(progress.generation, known)
        if progress.state not in STATES:
            yield Refusal(Reason.MALFORMED, f"has a state {progress.state[:MOST_NAME]!r}, which there is not")
        yield from _number("step", progress.step, 0, MOST_STEPS)
        yield from _number("step_seconds", progress.step_seconds, 0.0, MOST_SECONDS)
        yield from _number("work", progress.work, 0.0, MOST_SECONDS, may_be_unknown=True)
        yield from _number("cosine", progress.cosine, -1.0 - ROUNDING, 1.0 + ROUNDING, may_be_unknown=True)
        yield from _number("compared", progress.compared, 0.0, MOST_STEPS, may_be_unknown=True)
        if progress.norm < 0:  # infinite it may be, as the loss may be anything
            yield Refusal(Reason.IMPOSSIBLE_NUMBER, f"has a norm of {progress.norm}")


def _in_report(host: str, report: pb.RankReport, known: Known) -> Iterator[Refusal]:
    yield from _foreign(host, report.worker, known)
    body = report.WhichOneof("body")
    needs_member = body not in FROM_ANYBODY or (body == "note" and report.note.kind in OF_A_MEMBER)
    if body is None:
        yield Refusal(Reason.MALFORMED, "is a report with nothing in it that is known here")
    elif needs_member and known.host_of(report.worker) is None:
        yield Refusal(Reason.UNKNOWN_WORKER, f"is {body} of {report.worker[:MOST_NAME]!r}, which is not known")
    match body:
        case "prepared":
            for generation in (report.prepared.generation, report.prepared.configured):
                yield from _future(generation, known)
            for state in (report.prepared.state, report.prepared.previous):
                yield from _in_state(state, known)
            if (promised := wire.generation_from_wire(report.prepared.generation)) <= known.configured:
                yield Refusal(Reason.STALE_GENERATION, f"promises {promised}, and members are told of {known.configured}")
        case "ready":
            yield from _in_state(report.ready.state, known)
        case "running":
            yield from _future(report.running.generation, known)
            yield from _number("seconds", report.running.seconds, 0.0, MOST_SECONDS)
            if report.running.how not in WAYS:
                yield Refusal(Reason.MALFORMED, f"says that a rank came to run by {report.running.how[:MOST_NAME]!r}")
        case "exchange_failed":
            yield from _future(report.exchange_failed.generation, known)
        case "published":
            yield from _number("step", report.published.step, 0, MOST_STEPS)
            yield from _number("seconds", report.published.seconds, 0.0, MOST_SECONDS)
        case "finished":
            yield from _in_state(report.finished.state, known)
        case "failed":
            yield from _number("exit_code", report.failed.exit_code, 1, 255)
            yield from _number("step", report.failed.step, 0, MOST_STEPS)
        case "note":
            yield from _in_note(report.note)
        case "wrong_sums":
            wrong = report.wrong_sums
            yield from _future(wrong.generation, known)
            yield from _number("step", wrong.step, 0, MOST_STEPS)
            yield from _number("right", wrong.right, 0, wrong.step)
            for owner in wrong.owners:
                yield from _number("owner", owner, -1, 1 << 31)
        case "digest":
            yield from _in_state(report.digest.state, known)
            if len(report.digest.digest) != DIGEST_BYTES:
                yield Refusal(Reason.MALFORMED, f"has a digest of {len(report.digest.digest)} bytes, not {DIGEST_BYTES}")


NUMBERS_OF_NOTES: dict[str, str] = {
    "plan": "total_steps",
    "non_finite": "step",
    "finite_again": "step",
    "resumed": "step",
}
"""What the coordinator goes by in notes of a kind."""


def _in_note(note: pb.Note) -> Iterator[Refusal]:
    if not 0 < len(note.kind) <= MOST_NAME:
        yield Refusal(Reason.MALFORMED, f"is a note whose kind has {len(note.kind)} characters; 1 to {MOST_NAME} can be")
    if note.kind in OF_A_MEMBER:  # with text, which nobody reads into
        return
    fields = _fields(note.json)
    if fields is None:
        yield Refusal(Reason.MALFORMED, f"is a note {note.kind!r} that is no JSON object")
        return
    if (name := NUMBERS_OF_NOTES.get(note.kind)) is not None:
        value = fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_STEPS:
            yield Refusal(Reason.MALFORMED, f"is a note {note.kind!r} whose {name} is {str(value)[:MOST_NAME]!r}")
    if note.kind == "non_finite" and not isinstance(fields.get("again"), bool):
        yield Refusal(Reason.MALFORMED, "is a note 'non_finite' that does not say whether it was computed again")


def _fields(text: str) -> dict[str, Any] | None:
    """Of an event, so that it can be written again."""
    try:
        found = json.loads(text)
        json.dumps(found)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


# ---------------------------------------------------------------- what bodies have in common


def _foreign(host: str, worker: str, known: Known) -> Iterator[Refusal]:
    owner = known.host_of(worker)
    if owner not in (None, host):
        yield Refusal(Reason.FOREIGN_WORKER, f"speaks for {worker}, which is on {owner}")


def _future(generation: pb.Generation, known: Known) -> Iterator[Refusal]:
    if (named := wire.generation_from_wire(generation)) > known.newest:
        yield Refusal(Reason.FUTURE_GENERATION, f"is of generation {named}, and the last one is {known.newest}")


def _in_state(state: pb.StateId, known: Known) -> Iterator[Refusal]:
    yield from _future(state.generation, known)
    yield from _number("step", state.step, 0, MOST_STEPS)


def _number(name: str, value: float, low: float, high: float, *, may_be_unknown: bool = False) -> Iterator[Refusal]:
    """NaN stands for what is not known. An infinity is no number, also where there is no other bound."""
    if math.isnan(value) and may_be_unknown:
        return
    if not (low <= value <= high and math.isfinite(value)):
        yield Refusal(Reason.IMPOSSIBLE_NUMBER, f"has {name} {value}, which cannot be")
