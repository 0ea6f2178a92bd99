"""From what hosts send of themselves to the values of the noisy signals (section 5, GM-14, GM-15)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from orchestrator.governor.codes import NOISY, Code
from orchestrator.governor.peers import Comparison, Pool, compare
from orchestrator.governor.signals import Reading

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
        throughput: bytes per second that its links carried while they were used.
        net_loss: share of probes that were lost or sent again, 0 to 1.
        temperature: of its hottest sensor, in degrees Celsius.
    """

    busy: float | None = None
    baseline: float | None = None
    cosine: float | None = None
    norm: float | None = None
    loss: float | None = None
    throughput: float | None = None
    net_loss: float | None = None
    temperature: float | None = None

    @property
    def quotient(self) -> float | None:
        """Of its time and what that usually is."""
        return self.busy / self.baseline if self.busy is not None and self.baseline else None

    @property
    def slowness(self) -> float | None:
        return 1 / self.throughput if self.throughput else None


Readings = Mapping[Code, Reading | None]

_COMPARED: Mapping[Code, Callable[[Observation], float | None]] = {
    Code.STRAGGLER: lambda each: each.busy,
    Code.SLOWDOWN: lambda each: each.quotient,
    Code.GRAD_DIRECTION: lambda each: each.cosine,
    Code.GRAD_NORM: lambda each: each.norm,
    Code.LOSS_OUTLIER: lambda each: each.loss,
    Code.NET_SLOW: lambda each: each.slowness,
}
_ALONE: Mapping[Code, Callable[[Observation], float | None]] = {
    Code.NET_LOSS: lambda each: each.net_loss,
    Code.THERMAL: lambda each: each.temperature,
}


def read(
    observations: Mapping[str, Observation], groups: Mapping[str, str], pools: Mapping[Code, Pool]
) -> tuple[dict[str, Readings], dict[Code, Pool]]:
    """The noisy signals of each host, and the pools with what was seen.

    Args:
        groups: of each host.
    """
    after = dict(pools)
    compared: dict[Code, dict[str, Comparison]] = {}
    for code, quantity in _COMPARED.items():
        values = {host: value for host, each in observations.items() if (value := quantity(each)) is not None}
        if code is Code.GRAD_DIRECTION:
            values = _told_apart(values, groups)
        around = dict.fromkeys(values, "") if code is Code.SLOWDOWN else groups  # that one is compared over the fleet
        compared[code], after[code] = compare(values, around, pools.get(code, Pool()))
    found: dict[str, Readings] = {}
    for host, each in observations.items():
        readings: dict[Code, Reading | None] = dict.fromkeys(NOISY)
        for code, by_host in compared.items():
            if host in by_host:
                readings[code] = _reading(code, by_host[host])
        for code, quantity in _ALONE.items():
            value = quantity(each)
            readings[code] = None if value is None else Reading(value)
        found[host] = readings
    return found, after


def _reading(code: Code, found: Comparison) -> Reading:
    if code is Code.GRAD_NORM:
        return Reading(max(found.ratio, 1 / found.ratio) if found.ratio > 0 else float("inf"), found.z)
    return Reading(found.ratio, found.z)


def _told_apart(cosines: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """Those of groups whose gradients agree well enough for directions to say something."""
    by_group: dict[str, list[float]] = {}
    for host, value in cosines.items():
        by_group.setdefault(groups[host], []).append(value)
    clear = {group for group, values in by_group.items() if median(values) >= LEAST_COSINE}
    return {host: value for host, value in cosines.items() if groups[host] in clear}
