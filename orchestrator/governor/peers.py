"""How a host compares with the others of its group that do the same work, each judged without itself (section 5).

z = (value - median of its group) / s, s = max(1.4826 MAD, 1 %). Residuals are shares of the median, so that those of
earlier evaluations, of other batch sizes or paces, can be in the same pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POOL = 128
"""Residuals at least that the scale is estimated from: of fewer, chance makes false alerts (section 11)."""

LEAST_HOSTS = 4
"""Live ones, below which nobody is compared."""

LEAST_SCALE = 0.01

CONSISTENT = 1.4826
"""Times the MAD is the standard deviation of normal values."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """Residuals of one signal in the last evaluations, by host, the newest first."""

    evaluations: tuple[Mapping[str, float], ...] = ()

    def with_(self, newest: Mapping[str, float]) -> Pool:
        """And no more old ones than there have to be."""
        kept, count = [newest], len(newest)
        for each in self.evaluations:
            if count >= POOL:
                break
            kept.append(each)
            count += len(each)
        return Pool(tuple(kept))

    @property
    def size(self) -> int:
        return sum(map(len, self.evaluations))


@dataclass(frozen=True)
class Comparison:
    """Of a host: its ratio to the median of the others of its group, and how many deviations that is off."""

    ratio: float
    z: float


def compare(values: Mapping[str, float], groups: Mapping[str, str], pool: Pool) -> tuple[dict[str, Comparison], Pool]:
    """Each host's positive `values` with those of its group, and the pool with what was found.

    Nothing is found with fewer than `LEAST_HOSTS` values or while the pool is not full. A host alone in its group, and one
    whose peers' median is not positive, is not compared.
    """
    if len(values) < LEAST_HOSTS:
        return {}, pool
    ratios: dict[str, float] = {}
    members: dict[str, list[str]] = {}
    for host in sorted(values):
        members.setdefault(groups[host], []).append(host)
    for hosts in members.values():
        if len(hosts) > 1:
            own = np.array([values[host] for host in hosts])
            others = median_of_others(own)
            pairs = zip(hosts, own, others, strict=True)
            ratios |= {host: float(value / median) for host, value, median in pairs if median > 0}
    residuals = {host: ratio - 1.0 for host, ratio in ratios.items()}
    pool = pool.with_(residuals)
    if pool.size < POOL:
        return {}, pool
    scales = _scales(list(residuals), pool)
    return {
        host: Comparison(ratio, residuals[host] / max(LEAST_SCALE, scale))
        for (host, ratio), scale in zip(ratios.items(), scales, strict=True)
    }, pool


def _scales(hosts: list[str], pool: Pool) -> Array:
    """1.4826 MAD of the pool for each host, without what is its own."""
    if len(pool.evaluations) == 1:
        return CONSISTENT * median_of_others(np.abs(np.array([pool.evaluations[0][host] for host in hosts])))
    names = np.array([host for each in pool.evaluations for host in each])
    sizes = np.abs(np.array([residual for each in pool.evaluations for residual in each.values()]))
    return CONSISTENT * np.array([np.median(sizes[names != host]) for host in hosts])


def median_of_others(values: Array) -> Array:
    """For each of `values` [n], n > 1, the median of the other n - 1. Shape [n]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    low, high = (len(values) - 2) // 2, (len(values) - 1) // 2  # of the others, the two in the middle
    positions = np.arange(len(values))
    medians = np.empty(len(values))
    medians[order] = (ordered[low + (positions <= low)] + ordered[high + (positions <= high)]) / 2
    return medians
