"""The cells of the tables: which there are, in which order, and how one is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from statistics import fmean
from typing import Any

from benchmarks.links.gang import CellFailed, Gang, Hosts
from benchmarks.links.methods import ALONE, METHODS, Method

Record = dict[str, Any]

LAYOUTS = {"2x1": (2, 1), "4x1": (4, 1), "4x2": (4, 2)}
"""Hosts and ranks on each."""
TITLES = {"2x1": "2 hosts × 1 rank", "4x1": "4 hosts × 1 rank", "4x2": "4 hosts × 2 ranks"}
RATES: dict[str, float | None] = {"unshaped": None, "1000": 1000.0, "100": 100.0, "10": 10.0}
"""Mbit/s."""

WARM_UP = 20
"""Unshaped steps before a link gets its speed: DDP has rebuilt its buckets, every compressor has left its dense start."""
SETTLE_STEPS = 2
"""Steps at the speed before those that count, where nothing has to be found out."""
REACT_STEPS = 500
"""The same for a method that reacts: plans that promised more than they kept are known by then, each after the 100 steps
in which a bucket changes once (CC-21)."""
SLOW_STEP = 0.5
"""Seconds; steps that take longer are asked for one by one."""
TURN_STEPS, TURN_SECONDS = 20, 1.5
"""Of a turn at most, but for a single step."""
LEAD_STEPS, LEAD_SECONDS = 5, 0.5
"""The same of the steps that go before them and do not count: caches are filled again."""
CHUNK = 5
EVALUATE_EVERY = 10
LAST_STEPS, LAST_EVALUATIONS = 20, 3
"""Over which the final loss and the final accuracy are means: one evaluation is noisier than the differences asked for."""


@dataclass(frozen=True)
class Effort:
    """How much is measured of a timing cell.

    steps: unless they take longer than `seconds`; then fewer, but `least`. react_seconds: what a method that reacts gets at
    most before the steps that count.
    """

    steps: int = 60
    least: int = 8
    seconds: float = 30.0
    react_seconds: float = 60.0

    def steps_at(self, pace: float) -> int:
        """For steps of `pace` seconds."""
        return math.ceil(max(self.least, min(self.seconds / pace, self.steps)))


@dataclass(frozen=True)
class Cell:
    """One method on one layout over links of one speed. `number` is a seed of the accuracy part, and 0 in the timing."""

    kind: str
    model: str
    layout: str
    rate: str
    method: str
    number: int

    @property
    def key(self) -> Record:
        """What its record begins with."""
        return dict(self.__dict__)

    @property
    def title(self) -> str:
        return f"{self.kind} {self.number} {self.model} {self.layout} {self.rate} {self.method}"

    def matches(self, patterns: Sequence[str]) -> bool:
        """Whether one of `LAYOUT,RATE,METHOD`, in which * stands for anything, is this cell's; yes where there is none."""
        found = (self.layout, self.rate, self.method)
        parts = (pattern.split(",") for pattern in patterns)
        return not patterns or any(all(map(fnmatchcase, found, part)) for part in parts)


def timing_cells(models: Sequence[str]) -> Iterator[Cell]:
    """Those of a contest follow each other: all methods on one layout at one speed."""
    for model in models:
        for layout in LAYOUTS:
            for rate in RATES:
                for method in METHODS.values():
                    yield Cell("time", model, layout, rate, method.key, 0)


def contests(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Those that are measured together: timing cells of one layout and speed; the others each by itself."""

    def place(cell: Cell) -> tuple[object, ...]:
        here = (cell.kind, cell.model, cell.layout, cell.rate)
        return here if cell.kind == "time" else (*here, cell.method, cell.number)

    return [list(found) for _, found in groupby(cells, key=place)]


def accuracy_cells(models: Sequence[str], seeds: Sequence[int], layout: str) -> Iterator[Cell]:
    """Unshaped, as links do not change what is computed; but at each speed what chooses by them."""
    for seed in seeds:
        for model in models:
            for rate in RATES:
                for method in METHODS.values():
                    if method is not ALONE and (rate == "unshaped" or method.reacts):
                        yield Cell("accuracy", model, layout, rate, method.key, seed)


def measure_times(hosts: Hosts, cells: Sequence[Cell], effort: Effort) -> Iterator[tuple[Cell, Record]]:
    """Of each cell of a contest the seconds of its steps (mean over ranks), and bytes per step and host (mean over hosts);
    or its error.

    The ranks of all methods live side by side and train in turns, stopped in between: a machine is faster now and slower
    then, and none has the better hour.
    """
    with ExitStack() as stack:
        hosts.lab.set_rate(None)
        contestants = [_Contestant(hosts, cell, effort, stack) for cell in cells]
        for each in contestants:
            each.tries(each.start)
        hosts.lab.set_rate(RATES[cells[0].rate])
        for each in contestants:
            each.tries(each.settle)
        while waiting := [each for each in contestants if not each.done]:
            for each in waiting:
                each.tries(each.turn)
        hosts.lab.set_rate(None)
        for each in contestants:
            each.tries(each.close)
    for each in contestants:
        yield each.cell, each.record()


class _Contestant:
    """A method of a contest; once it has failed it does nothing any more. Its ranks end with `stack`."""

    def __init__(self, hosts: Hosts, cell: Cell, effort: Effort, stack: ExitStack) -> None:
        self.cell = cell
        self._hosts, self._effort, self._stack = hosts, effort, stack
        self._num_hosts, self._ranks = LAYOUTS[cell.layout]
        self._error: str | None = None
        self._seconds: list[float] = []
        self._wanted = self._settled = self._all_steps = 0
        self._sent = self._claimed = 0.0

    def tries(self, part: Callable[[], None]) -> None:
        """Do it, unless it has failed before."""
        if self._error is None:
            try:
                part()
            except CellFailed as error:
                self._error = str(error)

    @property
    def done(self) -> bool:
        return self._error is not None or len(self._seconds) >= self._wanted

    def start(self) -> None:
        message = {"model": self.cell.model, "method": self.cell.method, "seed": 1}
        self._gang = self._stack.enter_context(self._hosts.start(self._num_hosts, self._ranks, message))
        run_steps(self._gang, WARM_UP)
        self._gang.stop()

    def settle(self) -> None:
        with self._gang.running():
            settled = settle(self._gang, METHODS[self.cell.method], self._effort)
        self._settled, self._claims = len(settled.seconds), settled.claimed
        self._pace = settled.seconds[-1]
        self._wanted = self._effort.steps_at(self._pace)

    def turn(self) -> None:
        lead = min(LEAD_STEPS, int(LEAD_SECONDS / self._pace))
        steps = max(1, min(TURN_STEPS, int(TURN_SECONDS / self._pace), self._wanted - len(self._seconds)))
        with self._gang.running():
            before = self._hosts.traffic(self._num_hosts)
            timed = run_steps(self._gang, lead + steps)
            after = self._hosts.traffic(self._num_hosts)
        self._seconds += timed.seconds[lead:]
        self._all_steps += lead + steps
        self._sent += fmean(b.sent_payload - a.sent_payload for a, b in zip(before, after, strict=True))
        pairs = zip(self._claims, timed.claimed, strict=True)
        self._claimed += sum(b - a for a, b in pairs if a is not None and b is not None) / self._num_hosts
        self._claims = timed.claimed

    def close(self) -> None:
        with self._gang.running():
            self._gang.ask({"close": True})

    def record(self) -> Record:
        if self._error is not None:
            return {"error": self._error}
        return {
            "seconds": self._seconds,
            "payload": self._sent / self._all_steps,
            "claimed": None if self._claims[0] is None else self._claimed / self._all_steps,
            "settled": self._settled,
        }


def measure_accuracy(hosts: Hosts, cell: Cell, steps: int) -> Record:
    """`steps` steps of training: the loss of the last ones, and held-out loss and accuracy in the course of the training.

    The links have their speed from the first step on. Raises CellFailed.
    """
    num_hosts, ranks = LAYOUTS[cell.layout]
    hosts.lab.set_rate(None)
    losses: list[float] = []
    curve: list[list[float]] = []
    seconds = 0.0
    with hosts.start(num_hosts, ranks, {"model": cell.model, "method": cell.method, "seed": cell.number}) as gang:
        hosts.lab.set_rate(RATES[cell.rate])
        for _ in range(0, steps, EVALUATE_EVERY):
            done = run_steps(gang, EVALUATE_EVERY)
            losses += done.losses
            seconds += sum(done.seconds)
            found = gang.ask_one({"evaluate": True})
            curve.append([len(losses), seconds, found["loss"], found["accuracy"]])
        hosts.lab.set_rate(None)
        gang.ask({"close": True})
    held_out, accuracy = (fmean(point[i] for point in curve[-LAST_EVALUATIONS:]) for i in (2, 3))
    return {"loss": fmean(losses[-LAST_STEPS:]), "held_out": held_out, "accuracy": accuracy, "curve": curve}


@dataclass(frozen=True)
class Steps:
    """Of each step the seconds and the loss, means over ranks; of each rank the bytes it claims at their end."""

    seconds: list[float]
    losses: list[float]
    claimed: list[int | None]


def run_steps(gang: Gang, count: int) -> Steps:
    """All ranks do `count` steps."""
    answers = gang.ask({"steps": count})
    return Steps(
        seconds=[fmean(step) for step in zip(*(each["seconds"] for each in answers), strict=True)],
        losses=[fmean(step) for step in zip(*(each["losses"] for each in answers), strict=True)],
        claimed=[each["claimed"] for each in answers],
    )


def settle(gang: Gang, method: Method, effort: Effort) -> Steps:
    """Steps at the new speed that do not count."""
    steps = REACT_STEPS if method.reacts else SETTLE_STEPS
    limit = effort.react_seconds if method.reacts else SLOW_STEP
    done = run_steps(gang, 1)
    while len(done.seconds) < steps and sum(done.seconds) < limit:
        chunk = 1 if done.seconds[-1] > SLOW_STEP else min(CHUNK, steps - len(done.seconds))
        more = run_steps(gang, chunk)
        done = Steps(done.seconds + more.seconds, done.losses + more.losses, more.claimed)
    return done
