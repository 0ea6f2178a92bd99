"""From what hosts send of themselves to the values of the noisy signals (section 5, GM-14, GM-15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.governor.codes import NOISY, Code
from orchestrator.governor.peers import Pool, compare
from orchestrator.governor.signals import SIGNALS, UNKNOWN, Array, Score, Signal

LEAST_COSINE = 0.125
"""Of a group's median, below which directions are noise (GM-15)."""


@dataclass(frozen=True)
class Observation:
    """Of a host in one window; None where it is not known.

    Attributes:
        busy: seconds per sample from the start of a step to the arrival at the reduce, median over the window's steps.
        baseline: the same as it usually is for this host.
        cosine: of its gradient's sketch to the weighted mean sketch of the other hosts, -1 to 1.
        norm: of its gradient, L2.
        loss: mean over its samples.
        throughput: bytes per second that its links carried while they were used, as most of its peers see it (GM-30).
        net_loss: share of what was sent on them that was lost and sent again, 0 to 1, as most of its peers see it.
        temperature: of its hottest sensor, in degrees Celsius.
        memory, disk: used, as shares of what there is.
        load: average of a minute, per core.
    """

    busy: float | None = None
    memory: float | None = None
    disk: float | None = None
    load: float | None = None
    baseline: float | None = None
    cosine: float | None = None
    norm: float | None = None
    loss: float | None = None
    throughput: float | None = None
    net_loss: float | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Readings:
    """The noisy signals of hosts in one evaluation: values and z, float64 [signals, N], NaN where one is not known.

    Signals are in the order of `NOISY`, hosts in that of `hosts`.
    """

    hosts: tuple[str, ...]
    values: Array
    z: Array

    def of(self, code: Code) -> tuple[Array, Array]:
        """Values and z of a signal, [N] each."""
        index = NOISY.index(code)
        return self.values[index], self.z[index]

    def scores(self, signals: Mapping[Code, Signal] = SIGNALS) -> list[Score]:
        """The smallest of each host's signals. None where more than half are not known, which tells nothing of it."""
        each = np.stack([signals[code].score(*self.of(code)) for code in NOISY])
        known = ~np.isnan(self.values)
        each[~known] = np.inf
        enough = (2 * known.sum(0) >= len(NOISY)).tolist()
        found = zip(each.min(0).tolist(), each.argmin(0).tolist(), enough, strict=True)
        return [Score(value, NOISY[reason]) if is_enough else UNKNOWN for value, reason, is_enough in found]

    def alerts(self, signals: Mapping[Code, Signal] = SIGNALS) -> dict[str, list[Code]]:
        """What hosts alert on; those that alert on nothing are left out."""
        found: dict[str, list[Code]] = {}
        for code in NOISY:
            for index in np.flatnonzero(signals[code].alerts(*self.of(code))).tolist():
                found.setdefault(self.hosts[index], []).append(code)
        return found

    def largest(self, codes: Sequence[Code]) -> list[float]:
        """Of these signals, the largest value of each host; 0 where none is known."""
        chosen = self.values[[NOISY.index(code) for code in codes]]
        largest: list[float] = np.nan_to_num(chosen, nan=0.0).max(0).tolist()
        return largest


def read(
    observations: Mapping[str, Observation],
    groups: Mapping[str, str],
    pools: Mapping[Code, Pool],
    singles: Sequence[Mapping[str, Observation]] = (),
) -> tuple[Readings, dict[Code, Pool]]:
    """The noisy signals of each host, and the pools with what was seen.

    Args:
        groups: of each host.
        singles: what was seen of the same hosts in single steps; where there is any, this goes into the pools.
    """
    hosts, where = tuple(observations), [groups[host] for host in observations]
    quantities = _quantities([observations[host] for host in hosts], where)
    nothing = Observation()
    by_step = [_quantities([each.get(host, nothing) for host in hosts], where) for each in singles]
    values, z, after = np.full((len(NOISY), len(hosts)), np.nan), np.full((len(NOISY), len(hosts)), np.nan), dict(pools)
    for index, code in enumerate(NOISY):
        if not SIGNALS[code].peers:
            values[index] = quantities[code]
            continue
        around = [""] * len(hosts) if code is Code.SLOWDOWN else where  # that one is compared over the fleet
        pool, steps = pools.get(code, Pool()), [each[code] for each in by_step]
        found, after[code] = compare(quantities[code], around, hosts, pool, steps)
        values[index], z[index] = found.ratios, found.z
        if SIGNALS[code].both:
            values[index] = np.maximum(found.ratios, _quotient(np.ones(len(hosts)), found.ratios))
    return Readings(hosts, values, z), after


def _quantities(observations: Sequence[Observation], groups: Sequence[str]) -> dict[Code, Array]:
    """What each noisy signal goes by, float64 [N], NaN where it is not known."""
    columns = {name: _column(observations, name) for name in vars(Observation())}
    return {
        Code.STRAGGLER: columns["busy"],
        Code.SLOWDOWN: _quotient(columns["busy"], columns["baseline"]),
        Code.GRAD_DIRECTION: _told_apart(columns["cosine"], groups),
        Code.GRAD_NORM: columns["norm"],
        Code.LOSS_OUTLIER: columns["loss"],
        Code.NET_SLOW: _quotient(np.ones(len(observations)), columns["throughput"]),
        Code.NET_LOSS: columns["net_loss"],
        Code.THERMAL: columns["temperature"],
    }


def _column(observations: Sequence[Observation], name: str) -> Array:
    """float64 [N], NaN where it is not known."""
    return np.array([getattr(each, name) for each in observations], dtype=np.float64)


def _quotient(dividend: Array, divisor: Array) -> Array:
    """NaN where the divisor is not positive."""
    return np.divide(dividend, divisor, out=np.full(len(dividend), np.nan), where=divisor > 0)


def _told_apart(cosines: Array, groups: Sequence[str]) -> Array:
    """Those of groups whose gradients agree well enough for directions to say something."""
    found, names = cosines.copy(), np.asarray(groups, dtype=object)
    for group in set(groups):
        members = names == group
        known = cosines[members & ~np.isnan(cosines)]
        if not len(known) or np.median(known) < LEAST_COSINE:
            found[members] = np.nan
    return found
