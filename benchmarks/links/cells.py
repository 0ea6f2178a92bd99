"""The cells of the tables: which there are, in which order, and how one is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import fmean
from typing import Any

from benchmarks.links.gang import Gang, Hosts
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
REACT_STEPS = 300
"""The same for a method that reacts: plans that promised more than they kept are known by then, each after the 100 steps
in which a bucket changes once (CC-21)."""
SLOW_STEP = 0.5
"""Seconds; steps that take longer are asked for one by one."""
CHUNK = 5
EVALUATE_EVERY = 10
LAST_STEPS, LAST_EVALUATIONS = 20, 3
"""Over which the final loss and the final accuracy are means: one evaluation is noisier than the differences asked for."""


@dataclass(frozen=True)
class Effort:
    """How much is measured of a timing cell, over all of its rounds.

    steps: unless they take longer than `seconds`; then fewer, but `least`. react_seconds: what a method that reacts gets at
    most, in each round, before the steps that count.
    """

    steps: int = 30
    least: int = 8
    seconds: float = 30.0
    rounds: int = 2
    react_seconds: float = 60.0

    def steps_of_round(self, pace: float) -> int:
        """For steps of `pace` seconds."""
        wanted = self.seconds / self.rounds / pace
        return math.ceil(max(self.least / self.rounds, min(wanted, self.steps / self.rounds)))


@dataclass(frozen=True)
class Cell:
    """One method on one layout over links of one speed. `number` is a round of the timing part or a seed of the other."""

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


def timing_cells(models: Sequence[str], rounds: int) -> Iterator[Cell]:
    """Every method comes in turn at each speed, and everything again in the next round: a busy moment hits several."""
    for number in range(rounds):
        for model in models:
            for layout in LAYOUTS:
                for rate in RATES:
                    for method in METHODS.values():
                        if rate == "unshaped" or method is not ALONE:
                            yield Cell("time", model, layout, rate, method.key, number)


def accuracy_cells(models: Sequence[str], seeds: Sequence[int], layout: str) -> Iterator[Cell]:
    """Unshaped, as links do not change what is computed; but at each speed what chooses by them."""
    for seed in seeds:
        for model in models:
            for rate in RATES:
                for method in METHODS.values():
                    if method is not ALONE and (rate == "unshaped" or method.reacts):
                        yield Cell("accuracy", model, layout, rate, method.key, seed)


def measure_time(hosts: Hosts, cell: Cell, effort: Effort) -> Record:
    """Seconds of each step (mean over ranks), and bytes per step and host (mean over hosts).

    Raises CellFailed.
    """
    num_hosts, ranks = LAYOUTS[cell.layout]
    method = METHODS[cell.method]
    hosts.lab.set_rate(None)
    with hosts.start(num_hosts, ranks, {"model": cell.model, "method": cell.method, "seed": 1}) as gang:
        run_steps(gang, WARM_UP)
        hosts.lab.set_rate(RATES[cell.rate])
        settled = settle(gang, method, effort)
        before = hosts.traffic(num_hosts)
        timed = run_steps(gang, effort.steps_of_round(settled.seconds[-1]))
        after = hosts.traffic(num_hosts)
        hosts.lab.set_rate(None)
        gang.ask({"close": True})
    steps = len(timed.seconds)
    payload = fmean(b.sent_payload - a.sent_payload for a, b in zip(before, after, strict=True)) / steps
    claims = [b - a for a, b in zip(settled.claimed, timed.claimed, strict=True) if a is not None and b is not None]
    return {
        "seconds": timed.seconds,
        "payload": payload,
        "claimed": sum(claims) / num_hosts / steps if claims else None,
        "settled": len(settled.seconds),
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
