"""`quantarion checkpoint save`: a running job is asked to save its state; and, if wanted, whether that lies on disk."""

from __future__ import annotations

import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from quantarion.v1 import operator_pb2 as pb

from orchestrator import operator_commands, status
from orchestrator.errors import ExitCode, UserError, command
from orchestrator.records import EVENT_KEYS, EVENTS, Record, Tail
from orchestrator.saving import EXACT
from orchestrator.sentences import event_sentence

SILENCE_SECONDS = 60.0
"""After which a coordinator that does not answer is waited for no longer; Ray starts one again sooner."""

_LOOK_SECONDS = 0.1
_ASK_EVERY_SECONDS = 2.0


@dataclass
class Request:
    """One that was accepted, and what the events of the job say of it."""

    id: str
    step: int  # after which
    accepted: bool = False
    saved: Record | None = None  # the last exact checkpoint since then
    failure: str = ""
    ended_at: int | None = None  # step, where the job has ended

    def take(self, event: Record) -> None:
        """The next event."""
        match event:
            case {"kind": "operator", "id": self.id}:
                self.accepted = True
            case _ if not self.accepted:
                return
            case {"kind": "checkpoint", "tier": tier} if tier == EXACT:
                self.saved = event
            case {"kind": "checkpoint_failed", "error": error} if not event.get("stale"):
                self.failure = str(error)
            case {"kind": "finished" | "failed", "step": step}:
                self.ended_at = int(step)

    @property
    def outcome(self) -> Record | None:
        """The checkpoint; the one of the state with which the job has ended, if it had fewer steps."""
        least = self.step if self.ended_at is None else min(self.step, self.ended_at)
        return self.saved if self.saved is not None and int(self.saved["step"]) >= least else None


def checkpoint(job: str, storage: Path, wait: bool) -> int:
    """Ask `job` for a checkpoint; with `wait` until it lies on disk. The exit code.

    Raises:
        UserError: exit code 2, there is no such job, or a guard refuses; 4, the state cannot be written; 6, no coordinator
            answers, or the job ends before.
    """
    request = pb.CheckpointRequest(id=secrets.token_hex(8))
    seconds = operator_commands.ASK_SECONDS
    reply = operator_commands.ask(job, storage, lambda operator: operator.Checkpoint(request, timeout=seconds))
    if wait:
        saved = _wait(job, storage, Request(request.id, reply.step))
        sys.stdout.write(f"{job}: {event_sentence(saved)}, {saved['path']}\n")
    return ExitCode.DONE


def _wait(job: str, storage: Path, request: Request) -> Record:
    """The checkpoint, once it lies on disk."""
    folder = status.find(job, storage)
    events = Tail(folder / EVENTS, EVENT_KEYS)
    heard = asked = time.monotonic()
    while True:
        has_ended = status.ended(folder) is not None  # looked at before the events, which are all written then
        for event in events.read():
            request.take(event)
        if request.outcome is not None:
            return request.outcome
        if request.failure:
            raise UserError(f"{job} cannot save its state, and goes on: {request.failure}", ExitCode.STORAGE)
        if has_ended:
            see = command("status", job, storage=storage)
            raise UserError(f"{job} has ended and not saved the state after step {request.step}; see {see}", ExitCode.RAY)
        now = time.monotonic()
        if now - asked > _ASK_EVERY_SECONDS:
            asked = now
            heard = now if status.fetch(folder) is not None else heard
        if now - heard > SILENCE_SECONDS:
            raise UserError(f"the coordinator of {job} has not answered for {SILENCE_SECONDS:g} s", ExitCode.RAY)
        time.sleep(_LOOK_SECONDS)
