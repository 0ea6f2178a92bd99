"""How a host compares with the others of its group that do the same work, each judged without itself (section 5).

z = (value - median of its group) / s, s = max(1.4826 MAD, 1 %). Residuals are shares of the median, so that those of
earlier evaluations, of other batch sizes or paces, can be in the same pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.governor.signals import Array

POOL = 128
"""Residuals at least that the scale is estimated from: of fewer, chance makes false alerts (section 11)."""

LEAST_HOSTS = 4
"""Live ones, below which nobody is compared."""

LEAST_SCALE = 0.01

CONSISTENT = 1.4826
"""Times the MAD is the standard deviation of normal values."""


@dataclass(frozen=True)
class Pool:
    """Residuals of one signal in the last evaluations, by host, the newest first."""

    evaluations: tuple[Mapping[str, float], ...] = ()

    def with_(self, newest: Mapping[str, float]) -> Pool:
        """And no more old ones than there have to be."""
        if not newest:
            return self
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
    """Of hosts, in their order: the ratio to the median of the others of the group, and how many deviations that is off.
    float64 [N], NaN where a host is not compared."""

    ratios: Array
    z: Array


def compare(
    values: Array, groups: Sequence[str], hosts: Sequence[str], pool: Pool, singles: Sequence[Array] = ()
) -> tuple[Comparison, Pool]:
    """Each host's positive value with those of its group, and the pool with what was found.

    Nobody is compared with fewer than `LEAST_HOSTS` values or while the pool is not full, nor is a host alone in its group,
    or one whose peers' median is not positive.

    Args:
        values: float64 [N], NaN where one is not known.
        groups: [N].
        hosts: [N], their names.
        singles: float64 [N] each, values of single steps: these go into the pool instead of `values`.
    """
    for each in singles:
        pool = pool.with_(_residuals(_ratios(each, groups), hosts))
    ratios, z = _ratios(values, groups), np.full(len(values), np.nan)
    found = _residuals(ratios, hosts)
    if not singles:
        pool = pool.with_(found)
    if pool.size < POOL:
        return Comparison(np.full(len(values), np.nan), z), pool
    z[~np.isnan(ratios)] = np.array(list(found.values())) / np.maximum(LEAST_SCALE, _scales(found, pool))
    return Comparison(ratios, z), pool


def _ratios(values: Array, groups: Sequence[str]) -> Array:
    """Of each value to the median of the others of its group; NaN where it is not compared. Shape [N]."""
    ratios = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(values))
    if len(known) < LEAST_HOSTS:
        return ratios
    _, numbers = np.unique(np.asarray(groups, dtype=object)[known].astype(str), return_inverse=True)
    by_group = np.argsort(numbers, kind="stable")
    for members in np.split(known[by_group], np.cumsum(np.bincount(numbers))[:-1]):
        if len(members) > 1:
            medians = median_of_others(values[members])
            ratios[members] = np.divide(values[members], medians, out=np.full(len(members), np.nan), where=medians > 0)
    return ratios


def _residuals(ratios: Array, hosts: Sequence[str]) -> dict[str, float]:
    """By host, of those that were compared."""
    compared = np.flatnonzero(~np.isnan(ratios))
    return dict(zip((hosts[i] for i in compared.tolist()), (ratios[compared] - 1.0).tolist(), strict=True))


def _scales(found: Mapping[str, float], pool: Pool) -> Array:
    """1.4826 MAD of the pool for each host that something was found of, without what is its own."""
    if len(pool.evaluations) == 1 and pool.evaluations[0] is found:
        return CONSISTENT * median_of_others(np.abs(np.array(list(found.values()))))
    whose = np.array([host for each in pool.evaluations for host in each])
    sizes = np.abs(np.array([residual for each in pool.evaluations for residual in each.values()]))
    return CONSISTENT * np.array([np.median(sizes[whose != host]) for host in found])


def median_of_others(values: Array) -> Array:
    """For each of `values` [n], n > 1, the median of the other n - 1. Shape [n]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    low, high = (len(values) - 2) // 2, (len(values) - 1) // 2  # of the others, the two in the middle
    positions = np.arange(len(values))
    medians = np.empty(len(values))
    medians[order] = (ordered[low + (positions <= low)] + ordered[high + (positions <= high)]) / 2
    return medians
