"""`quantarion stop`: ask the coordinator to finish the step, save and end the job; wait until it has."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import grpc
from quantarion.v1 import operator_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator import status
from orchestrator.errors import ExitCode, UserError, command
from orchestrator.records import Record

ASK_SECONDS = 5.0
WAIT_SECONDS = 300.0

_LOOK_SECONDS = 0.25


def stop(job: str, storage: Path, now: bool = False, *, wait: float = WAIT_SECONDS) -> int:
    """Stop `job` and wait until it has ended, at most `wait` seconds; `now`: without a checkpoint. The exit code.

    Raises:
        UserError: exit code 2, no such job; 4, the storage cannot be read; 6, the coordinator does not answer, or the
            job has not ended in time.
    """
    folder = status.find(job, storage)
    if status.ended(folder) is not None and status.fetch(folder) is None:
        _say(f"{job} is not running")
        return ExitCode.DONE
    _say(f"{job}: ending at once, without a checkpoint" if now else f"{job}: finishing the step, then a checkpoint")
    ask(folder, now, "quantarion stop")
    state = _wait(folder, time.monotonic() + wait)
    if state is None:
        raise UserError(
            f"{job} was asked to stop but has not ended within {wait:g} s; to end it without a checkpoint: "
            + command("stop", job, "--now", storage=storage),
            ExitCode.RAY,
        )
    _say(f"{job} has ended at step {state['step']}" + (f": {state['message']}" if state["phase"] == "failed" else ""))
    return ExitCode.DONE


def ask(folder: Path, now: bool, reason: str) -> None:
    """Ask the coordinator of the job in `folder` to end the job; does not wait for the end.

    Raises:
        UserError: exit code 6; there is no coordinator, or it does not answer or refuses.
    """
    coordinator = status.read_coordinator(folder)
    if coordinator is None:
        raise UserError(
            f"{folder.name} has no coordinator yet, so it cannot be stopped that way; try again in some seconds, or "
            "press Ctrl-C where it was started",
            ExitCode.RAY,
        )
    try:
        if status.fetch(folder, ASK_SECONDS) is None:  # the port may have gone to another job's coordinator
            raise ValueError
        with status.channel(coordinator) as link:
            reply = rpc.OperatorStub(link).Stop(pb.StopRequest(reason=reason, now=now), timeout=ASK_SECONDS)
    except (grpc.RpcError, ValueError):
        raise UserError(
            status.trouble(coordinator)
            or f"The coordinator of {folder.name} at {coordinator.address} does not answer; if the job is dead, sweep what "
            f"it left with: {command('doctor', storage=folder.parent)}",
            ExitCode.RAY,
        ) from None
    if not reply.accepted:
        raise UserError(f"{folder.name} cannot be stopped: {reply.message}", ExitCode.RAY)


def _wait(folder: Path, deadline: float) -> Record | None:
    """The state in which the job ended; shows how it gets there. None at the deadline."""
    shown = ""
    while time.monotonic() < deadline:
        state = status.read(folder)
        if state["phase"] in ("finished", "failed"):
            return state
        doing = status.line(state)
        if doing != shown:
            _say(doing)
            shown = doing
        time.sleep(_LOOK_SECONDS)
    return None


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
