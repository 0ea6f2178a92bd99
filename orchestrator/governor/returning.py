"""When an evicted host may come back, and how many hosts wait to step in (GM-36, GM-37)."""

from __future__ import annotations

import math
from typing import NamedTuple

from orchestrator.governor.codes import Code

LOOK_BACK_SECONDS = 24 * 3600.0
MOST_SECONDS = 3600.0
EXCLUDED_AT = 5
"""Evictions within `LOOK_BACK_SECONDS`, the last one counted."""

BURN_IN_SECONDS = 1800.0
"""After corruption."""

COVERED = 0.99

FORGIVEN = frozenset({Code.PROC_EXIT, Code.HEARTBEAT_DEAD, Code.DEVICE_LOST, Code.OPERATOR_EVICT, Code.DRAIN})
"""Hosts that were lost and replaced may rejoin at once: it says nothing of what they compute. Whom an operator has sent
away an operator takes back."""


class Eviction(NamedTuple):
    """`time` in seconds."""

    time: float
    code: Code


class Return(NamedTuple):
    """`at`, in seconds, a host may be tested for its return; `excluded`: not until an operator clears it."""

    at: float
    excluded: bool


def may_return(evictions: tuple[Eviction, ...], chance: float) -> Return:
    """After the last of a host's evictions, in order of time.

    min(3600 s, 60 * 2^n + chance * 60 s), n = those of the last 24 h before it that count.

    Args:
        chance: uniform in [0, 1), so that hosts evicted together do not return together.
    """
    last = evictions[-1]
    if last.code in FORGIVEN:
        return Return(last.time, last.code is Code.OPERATOR_EVICT)
    counted = [e for e in evictions if e.code not in FORGIVEN and e.time > last.time - LOOK_BACK_SECONDS]
    wait = min(MOST_SECONDS, 60.0 * 2 ** (len(counted) - 1) + chance * 60.0)
    corruptions = sum(e.code is Code.SDC_DIGEST for e in evictions)
    if last.code is Code.SDC_DIGEST:
        wait = max(wait, BURN_IN_SECONDS)
    return Return(last.time + wait, len(counted) >= EXCLUDED_AT or corruptions >= 2)


def warm_spares(hosts: int, replacement: float, mttf: float) -> int:
    """The smallest S with P(Binomial(hosts, q) <= S) >= 0.99, q = 1 - exp(-replacement/mttf): so many fail, and no more,
    while the first of them is replaced.

    Args:
        replacement: seconds until a new host is there.
        mttf: mean time to failure of one host, in seconds.

    Raises:
        ValueError: a time is not positive, or there are fewer than no hosts.
    """
    if hosts < 0 or replacement <= 0 or mttf <= 0:
        raise ValueError(f"{hosts} hosts, replaced in {replacement:g} s, that live for {mttf:g} s: write positive numbers")
    stays, fails = -replacement / mttf, math.log(-math.expm1(-replacement / mttf))
    covered = 0.0
    for failed in range(hosts + 1):
        ways = math.lgamma(hosts + 1) - math.lgamma(failed + 1) - math.lgamma(hosts - failed + 1)
        covered += math.exp(ways + failed * fails + (hosts - failed) * stays)
        if covered >= COVERED:
            return failed
    return hosts
