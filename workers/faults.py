"""Faults injected by name, for tests and drills: `point[@key=value,...]=action` (EP-19).

A point is a place in the protocol (`in_apply`, `in_exchange`, …). The conditions say which rank and when: `rank`, `step`
in progress, `round` after it, `generation` (counter of the last one entered, 0 of none), `bucket` in `in_exchange`,
`inner` and `attempt` in `in_backward` (the batch inside the step, from 0; of the step), `snapshot` 0 or 1 in `in_serve`.
The action says what happens there: `kill` (SIGKILL to itself), `stop` (SIGSTOP to itself; goes on after SIGCONT), `hang`
(never returns), `raise`, `flip` (a bit of a parameter in its memory, as a cosmic ray might), `nan` (its next loss, and
what follows from it). Each fault happens once in the life of a job: a file in the job's folder remembers it, with when and
in which process it was, so a replacement does not die of the same fault again.

A drill that chooses its moments as it goes writes `armed=N` among the conditions: then the fault waits until `arm` has put
the file `armed-N` beside those that remember, with the number of the rank that it is meant for.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POINTS = (
    "before_prepared",
    "after_prepared",
    "in_configure",
    "in_connect",
    "in_heal",
    "in_serve",
    "in_join_copy",
    "after_ready",
    "step_begin",
    "in_backward",
    "in_exchange",
    "before_apply",
    "in_apply",
    "after_apply_alone",
    "in_round",
    "in_publish",
    "at_finish",
)
ACTIONS = ("kill", "stop", "hang", "raise", "flip", "nan")

ARMED = "armed"
"""The condition that says that a file has to be there."""

_FORM = re.compile(r"^(?P<point>[a-z_]+)(@(?P<conditions>[a-z_]+=\d+(,[a-z_]+=\d+)*))?=(?P<action>[a-z]+)$")


class InjectedFault(RuntimeError):
    """Raised by the action `raise`."""


@dataclass(frozen=True)
class Fault:
    """One parsed fault."""

    text: str
    point: str
    conditions: tuple[tuple[str, int], ...]
    action: str

    def mark(self, folder: Path) -> Path:
        """The file in `folder` that remembers that it has happened."""
        return folder / re.sub(r"[^a-z0-9_=,@]", "_", self.text)


def parse(text: str) -> Fault:
    """Raises ValueError with a sentence that says what to write."""
    match = _FORM.match(text)
    if match is None or match["point"] not in POINTS or match["action"] not in ACTIONS:
        raise ValueError(
            f"fault {text!r} is not of the form point[@rank=R,step=S]=action; points: {', '.join(POINTS)}; "
            f"actions: {', '.join(ACTIONS)}"
        )
    pairs = (match["conditions"] or "").split(",") if match["conditions"] else []
    conditions = tuple((key, int(value)) for key, _, value in (pair.partition("=") for pair in pairs))
    return Fault(text, match["point"], conditions, match["action"])


def arm(folder: Path, number: int, rank: int) -> None:
    """From now on the fault with the condition `armed=number` may happen, in the process that has this rank.

    Args:
        folder: in which the faults of the job are remembered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{ARMED}-{number}"
    partial.write_text(str(rank))
    partial.replace(folder / f"{ARMED}-{number}")


def disarm(folder: Path, number: int) -> None:
    """It may not happen any more, where it has not."""
    (folder / f"{ARMED}-{number}").unlink(missing_ok=True)


def armed(folder: Path, number: int) -> int | None:
    """The rank that this fault is meant for; None where it is not armed."""
    try:
        return int((folder / f"{ARMED}-{number}").read_text())
    except FileNotFoundError:
        return None


class Faults:
    """The faults of one process. `where` gives the rank and step of the moment."""

    def __init__(self, texts: Sequence[str], folder: Path, where: Callable[[], dict[str, int]]) -> None:
        self._faults = [parse(text) for text in texts]
        self._folder = folder
        self._where = where
        self.flip: Callable[[], None] = lambda: None
        """Changes a bit of the state of this process."""
        self.spoil: Callable[[], None] = lambda: None
        """Makes its next loss NaN."""
        self.hit = self._hit if self._faults else self._nothing

    @staticmethod
    def _nothing(point: str, **values: int) -> None:
        """The usual case costs one call."""

    def _hit(self, point: str, **values: int) -> None:
        for fault in self._faults:
            if fault.point == point:
                known = {**self._where(), **values}
                if all(self._holds(key, value, known) for key, value in fault.conditions) and self._first_time(
                    fault, known
                ):
                    self._act(fault)

    def _holds(self, key: str, value: int, known: Mapping[str, int]) -> bool:
        if key == ARMED:
            rank = armed(self._folder, value)
            return rank is not None and rank == known.get("rank")
        return known.get(key) == value

    def _act(self, fault: Fault) -> None:
        if fault.action == "flip":
            self.flip()
        elif fault.action == "nan":
            self.spoil()
        else:
            _act(fault)

    def _first_time(self, fault: Fault, known: Mapping[str, int]) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            mark = os.open(fault.mark(self._folder), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with contextlib.suppress(OSError):  # a full disk: that it has happened is told by the file alone
            os.write(mark, json.dumps({"t": time.time(), "pid": os.getpid(), **known}).encode())
        os.close(mark)
        return True


def _act(fault: Fault) -> None:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "stop":
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # to this thread: it gets no further before it stops
        return
    elif fault.action == "hang":
        while True:
            time.sleep(3600)
    raise InjectedFault(f"injected at {fault.point}")
