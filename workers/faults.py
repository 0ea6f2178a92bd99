"""Faults injected by name, for tests and drills: `point[@key=value,...]=action[:value]` (EP-19).

A point is a place in the protocol (`in_apply`, `in_exchange`, …). The conditions say which rank and when: `rank`, `host`
(the number in its name), `step` in progress, `round` after it, `second` (whole ones since the process began to train),
`generation` (counter of the last one entered, 0 of none), `bucket` in `in_exchange`, `inner` and `attempt` in `in_backward`
(the batch inside the step, from 0; of the step), `snapshot` 0 or 1 in `in_serve`. The action says what happens there:
`kill` (SIGKILL to itself), `lose` (to the agent of its host and to itself: its peers lose a host), `stop` (SIGSTOP to
itself; goes on after SIGCONT), `hang` (never returns), `raise`, `flip` (a bit of a parameter in its memory, as a cosmic ray
might), `nan` (its next loss, and what follows from it), `miscount` (the next sum that it makes for others). Each fault
happens once in the life of a job: a file in the job's folder remembers it, with when and in which process it was, so a
replacement does not die of the same fault again.

Two actions have a value and last, in the memory of the process in which they have begun: `delay:0.05+-0.01` sleeps there
for 0.05 s, give or take 0.01 s; `noise:10` adds noise of 10 times its norm to its gradient. They go on at each visit of
their point for which `rank`, `host`, `bucket`, `inner`, `attempt` and `snapshot` hold, for `steps=N` steps if that stands
among the conditions, or until a later one of the same action begins at that point: `delay:0` ends a delay.

A drill that chooses its moments as it goes writes `armed=N` among the conditions: then the fault waits until `arm` has put
the file `armed-N` beside those that remember, with the number of the rank that it is meant for.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
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
LASTING = ("delay", "noise")
"""Actions with a value."""

ARMED = "armed"
"""The condition that says that a file has to be there."""

ACTIONS = ("kill", "lose", "stop", "hang", "raise", "flip", "nan", "miscount", *LASTING)

LONGEST_DELAY = 60.0
"""Seconds."""

_WHEN = ("step", "round", "second", "generation", ARMED)
"""Conditions of the moment at which something that lasts begins; the others hold all the time."""

_NUMBER = r"\d+(\.\d+)?"
_FORM = re.compile(
    r"^(?P<point>[a-z_]+)(@(?P<conditions>[a-z_]+=\d+(,[a-z_]+=\d+)*))?=(?P<action>[a-z]+)"
    rf"(:(?P<value>{_NUMBER})(\+-(?P<spread>{_NUMBER}))?)?$"
)


class InjectedFault(RuntimeError):
    """Raised by the action `raise`."""


@dataclass(frozen=True)
class Fault:
    """One parsed fault. `value` and `spread` of an action that lasts; `steps`: for how many, None for ever."""

    text: str
    point: str
    conditions: tuple[tuple[str, int], ...]
    action: str
    value: float = 0.0
    spread: float = 0.0
    steps: int | None = None

    def mark(self, folder: Path) -> Path:
        """The file in `folder` that remembers that it has happened, and when: JSON of what conditions compare with."""
        return folder / re.sub(r"[^a-z0-9_=,@]", "_", self.text)

    def goes_on(self, known: Mapping[str, int], since: int) -> bool:
        """One that lasts, and has begun in step `since`."""
        is_over = self.steps is not None and known.get("step", 0) >= since + self.steps
        return not is_over and all(known.get(key) == value for key, value in self.conditions if key not in _WHEN)


def parse(text: str) -> Fault:
    """Raises ValueError with a sentence that says what to write."""
    match = _FORM.match(text)
    if match is None or match["point"] not in POINTS or match["action"] not in ACTIONS:
        raise ValueError(
            f"fault {text!r} is not of the form point[@rank=R,step=S]=action; points: {', '.join(POINTS)}; "
            f"actions: {', '.join(ACTIONS)}"
        )
    pairs = (match["conditions"] or "").split(",") if match["conditions"] else []
    conditions = {key: int(number) for key, _, number in (pair.partition("=") for pair in pairs)}
    action, value, spread = match["action"], float(match["value"] or 0), float(match["spread"] or 0)
    steps = conditions.pop("steps", None)
    if (action in LASTING) != (match["value"] is not None):
        says = f"needs a value; write {action}:0.05" if action in LASTING else f"has no value; write {action}"
        raise ValueError(f"fault {text!r}: {action} {says}")
    if steps is not None and action not in LASTING:
        raise ValueError(f"fault {text!r}: steps says how long {' or '.join(LASTING)} lasts; write step for one of them")
    if action == "delay" and value + spread > LONGEST_DELAY:
        raise ValueError(f"fault {text!r}: a delay is in seconds, at most {LONGEST_DELAY:g} of them; write delay:0.05")
    return Fault(text, match["point"], tuple(conditions.items()), action, value, spread, steps)


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
        self.miscount: Callable[[], None] = lambda: None
        """Makes the next sum wrong that it makes for others."""
        self.disturb: Callable[[float], None] = lambda level: None
        """Adds noise of so many times its norm to its next gradient."""
        self.agent: Callable[[], int] = lambda: 0
        """The process id of its agent; 0 where there is none."""
        self._past: set[Fault] = set()
        self._lasting: dict[tuple[str, str], tuple[Fault, int]] = {}  # by point and action, with the step it began in
        self._chance = random.Random(" ".join(texts))  # its own: what the task draws stays the same
        self.hit = self._hit if self._faults else self._nothing

    @staticmethod
    def _nothing(point: str, **values: int) -> None:
        """The usual case costs one call."""

    def _hit(self, point: str, **values: int) -> None:
        known = {**self._where(), **values}
        for fault in self._faults:
            if fault.point == point and fault not in self._past and self._begins(fault, known):
                self._past.add(fault)
                if self._first_time(fault, known):
                    self._begin(fault, known)
        for fault, since in list(self._lasting.values()):
            if fault.point == point and fault.goes_on(known, since):
                self._act(fault)

    def _begin(self, fault: Fault, known: Mapping[str, int]) -> None:
        if fault.action in LASTING:
            self._lasting[fault.point, fault.action] = fault, known.get("step", 0)
        else:
            self._act(fault)

    def _begins(self, fault: Fault, known: Mapping[str, int]) -> bool:
        return all(self._holds(key, value, known) for key, value in fault.conditions)

    def _holds(self, key: str, value: int, known: Mapping[str, int]) -> bool:
        if key == ARMED:
            rank = armed(self._folder, value)
            return rank is not None and rank == known.get("rank")
        return known.get(key) == value

    def _act(self, fault: Fault) -> None:
        match fault.action:
            case "flip":
                self.flip()
            case "nan":
                self.spoil()
            case "miscount":
                self.miscount()
            case "noise":
                self.disturb(self._drawn(fault))
            case "delay":
                time.sleep(self._drawn(fault))
            case "lose":
                _lose(self.agent())
            case _:
                _act(fault)

    def _drawn(self, fault: Fault) -> float:
        """Its value, give or take its spread."""
        return max(0.0, fault.value + fault.spread * self._chance.uniform(-1.0, 1.0))

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


def _lose(agent: int) -> None:
    """Together: nobody is left who could tell of the other."""
    if agent:
        os.kill(agent, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


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
