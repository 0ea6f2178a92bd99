"""The signals of a host and what they are worth: limits, scores, trust (GM-22, GM-23, section 5).

Values and z are arrays of one element per host; NaN is what is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.governor.codes import Code

SIGNIFICANT = 6.0
"""|z| above which a value is beyond what chance does among peers."""

TRUST_KEPT = 0.95
"""Of the trust so far, at each evaluation; the rest is the score."""

FIRST_TRUST = 0.5

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Limits(NamedTuple):
    """Values of a signal that score 1, 0.5 and 0; `bad` may be the smallest."""

    good: float
    alert: float
    bad: float

    def score(self, values: Array) -> Array:
        """Linear between them, from 0 to 1."""
        to_bad = (values - self.alert) / (self.bad - self.alert)
        to_good = (values - self.alert) / (self.good - self.alert)
        return np.where(to_bad > 0, np.maximum(0.0, 0.5 - 0.5 * to_bad), np.minimum(1.0, 0.5 + 0.5 * to_good))

    def alerts(self, values: Array) -> Flags:
        """Which are beyond `alert`."""
        return values > self.alert if self.bad > self.alert else values < self.alert


@dataclass(frozen=True)
class Signal:
    """One of the noisy ones. `peers`: its values are compared with those of other hosts, and one that may be chance does
    not alert. `both`: of a host's ratio to its peers small ones are as bad as large ones."""

    limits: Limits
    peers: bool
    both: bool = False

    def is_significant(self, z: Array) -> Flags:
        """Which are beyond chance, in the bad direction."""
        if not self.peers:
            return np.ones(z.shape, dtype=np.bool_)
        beyond: Flags = np.abs(z) > SIGNIFICANT
        return beyond if self.both else beyond & ((z > 0) == (self.limits.bad > self.limits.alert))

    def alerts(self, values: Array, z: Array) -> Flags:
        return self.limits.alerts(values) & self.is_significant(z)

    def score(self, values: Array, z: Array) -> Array:
        found = self.limits.score(values)
        return np.where(self.is_significant(z), found, np.maximum(found, 0.5))


SIGNALS: Mapping[Code, Signal] = {
    Code.STRAGGLER: Signal(Limits(1.10, 1.33, 2.00), peers=True),
    Code.SLOWDOWN: Signal(Limits(1.10, 1.33, 2.00), peers=True),
    Code.GRAD_DIRECTION: Signal(Limits(0.80, 0.50, 0.0), peers=True),
    Code.GRAD_NORM: Signal(Limits(2.0, 5.0, 10.0), peers=True, both=True),
    Code.LOSS_OUTLIER: Signal(Limits(1.5, 3.0, 5.0), peers=True),
    Code.NET_SLOW: Signal(Limits(1.25, 2.0, 5.0), peers=True),
    Code.NET_LOSS: Signal(Limits(0.001, 0.01, 0.05), peers=False),
    Code.THERMAL: Signal(Limits(75.0, 84.0, 95.0), peers=False),
}

RESOURCE_LIMITS: Mapping[Code, Limits] = {
    Code.RESOURCE_MEMORY: Limits(0.80, 0.92, 0.97),
    Code.RESOURCE_DISK: Limits(0.80, 0.90, 0.97),
    Code.RESOURCE_LOAD: Limits(1.0, 1.5, 3.0),
}
"""Memory and disk as shares of what there is, load average per core (GM-21)."""


class Score(NamedTuple):
    """Of a host: 0 to 1, and the signal that it is; None where too few are known."""

    value: float | None
    reason: Code | None


UNKNOWN = Score(None, Code.TELEMETRY_GAP)


def trust(before: float, found: Score) -> float:
    """After one evaluation; an unknown score leaves it as it is."""
    return before if found.value is None else TRUST_KEPT * before + (1 - TRUST_KEPT) * found.value
