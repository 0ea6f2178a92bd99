"""Rows of the tables from the raw measurements. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.links.cells import LAYOUTS, RATES, Record
from benchmarks.links.methods import ADAPTIVE, ALONE, FP16, FP32, METHODS, PEERS, POWERSGD, START, Method
from benchmarks.links.records import in_order

FIRST = 1.05
"""Within 5 % of the fastest peer."""
UNSHAPED_BOUND, GIGABIT_BOUND, LOW_RANK_BOUND = 1.03, 1.05, 1.0
SLOW_BOUNDS = {"100": 1 / 2, "10": 1 / 3.5}
"""Of DDP fp16's step, for a model whose gradients are not of low rank (CC-28)."""


@dataclass(frozen=True)
class Timing:
    """A cell: steps measured, median and 95th percentile of their seconds, bytes per step and host."""

    steps: int
    median: float
    p95: float
    payload: float
    claimed: float | None
    settled: int


@dataclass(frozen=True)
class Learned:
    """All seeds of a method: training loss of the last steps, held-out accuracy, steps and seconds to the set accuracy."""

    losses: list[float]
    accuracies: list[float]
    steps_to_target: float | None
    seconds_to_target: float | None


Table = dict[tuple[str, str], Timing]
"""By rate and method."""


def layouts_of(records: Sequence[Record], model: str) -> list[str]:
    """Those in which some method exchanged."""
    found = {each["layout"] for each in records if each["model"] == model and each["method"] != ALONE.key}
    return in_order(found, LAYOUTS)


def timings(records: Sequence[Record], model: str, layout: str) -> Table:
    """Of every cell."""
    here = (record for record in records if (record["model"], record["layout"]) == (model, layout))
    return {(record["rate"], record["method"]): _timing(record) for record in here}


def _timing(record: Record) -> Timing:
    seconds = sorted(record["seconds"])
    return Timing(
        steps=len(seconds),
        median=median(seconds),
        p95=seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
        payload=record["payload"],
        claimed=record["claimed"],
        settled=record["settled"],
    )


def exposed(table: Table, rate: str, method: str) -> float | None:
    """Seconds of a step beyond the same compute without any exchange, which was measured beside it."""
    alone = table.get((rate, ALONE.key))
    return None if alone is None else max(0.0, table[rate, method].median - alone.median)


def fastest_peer(table: Table, rate: str) -> float | None:
    """Its median step, of those measured at this speed."""
    peers = [table[rate, peer].median for peer in PEERS if (rate, peer) in table]
    return min(peers, default=None)


def learned(records: Sequence[Record], model: str, method: Method, rate: str, target: float) -> Learned | None:
    """At this speed where the method reacts to it, else unshaped; None where it was not measured."""
    where = rate if method.reacts else "unshaped"
    runs = [
        record for record in records if (record["model"], record["method"], record["rate"]) == (model, method.key, where)
    ]
    if not runs:
        return None
    reached = [next(((step, s) for step, s, _, accuracy in run["curve"] if accuracy >= target), None) for run in runs]
    hits = [hit for hit in reached if hit is not None]
    whole = len(hits) == len(runs)
    return Learned(
        losses=[run["loss"] for run in runs],
        accuracies=[run["accuracy"] for run in runs],
        steps_to_target=median(step for step, _ in hits) if whole else None,
        seconds_to_target=median(seconds for _, seconds in hits) if whole else None,
    )


def seconds_to_target(table: Table, rate: str, method: Method, found: Learned | None) -> float | None:
    """What reacts was timed as it learned; of the others the steps are counted and multiplied, the dense start apart."""
    if found is None or found.steps_to_target is None:
        return None
    if method.reacts:
        return found.seconds_to_target
    own = table[rate, method.key].median
    start = table.get((rate, method.dense_as)) if method.dense_as else None
    if method.dense_as is not None and start is None:
        return None
    dense = min(START, found.steps_to_target) if start else 0
    return dense * (start.median if start else 0.0) + (found.steps_to_target - dense) * own


@dataclass(frozen=True)
class Verdict:
    """A target of CC-28: a step of `method` over a peer's, and what that may be at most."""

    method: str
    rate: str
    against: str
    ratio: float
    bound: float

    @property
    def met(self) -> bool:
        return self.ratio <= self.bound


def verdicts(table: Table, method: Method = ADAPTIVE, *, low_rank: bool) -> list[Verdict]:
    """Of every speed at which `method` and the peers were measured."""
    found = []
    for rate in in_order({rate for rate, _ in table}, RATES):
        peers = {peer: table[rate, peer].median for peer in PEERS if (rate, peer) in table}
        if len(peers) < len(PEERS) or (rate, method.key) not in table:
            continue
        if rate == "unshaped":
            peer, bound = FP32.key, UNSHAPED_BOUND
        elif rate == "1000":
            peer, bound = min((FP16.key, POWERSGD.key), key=lambda each: peers[each]), GIGABIT_BOUND
        elif low_rank:
            peer, bound = POWERSGD.key, LOW_RANK_BOUND
        else:
            peer, bound = FP16.key, SLOW_BOUNDS[rate]
        ratio = table[rate, method.key].median / peers[peer]
        found.append(Verdict(method.label, rate, METHODS[peer].label, ratio, bound))
    return found


def always_first(table: Table) -> list[str]:
    """The labels of all methods that are within 5 % of the fastest peer at every speed measured."""
    rates = in_order({rate for rate, _ in table}, RATES)
    names = []
    for method in METHODS.values():
        if method is ALONE:
            continue
        bounds = [(table.get((rate, method.key)), fastest_peer(table, rate)) for rate in rates]
        if bounds and all(own and peer and own.median <= FIRST * peer for own, peer in bounds):
            names.append(method.label)
    return names
