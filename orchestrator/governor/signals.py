"""The signals of a host and what they are worth: limits, scores, trust (GM-22, GM-23, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.governor.codes import Code

SIGNIFICANT = 6.0
"""|z| above which a value is beyond what chance does among peers."""

TRUST_KEPT = 0.95
"""Of the trust so far, at each evaluation; the rest is the score."""

FIRST_TRUST = 0.5


class Limits(NamedTuple):
    """Values of a signal that score 1, 0.5 and 0; `bad` may be the smallest."""

    good: float
    alert: float
    bad: float

    def score(self, value: float) -> float:
        """Linear between them, from 0 to 1."""
        to_bad = (value - self.alert) / (self.bad - self.alert)
        to_good = (value - self.alert) / (self.good - self.alert)
        return max(0.0, 0.5 - 0.5 * to_bad) if to_bad > 0 else min(1.0, 0.5 + 0.5 * to_good)

    def alerts(self, value: float) -> bool:
        """Whether it is beyond `alert`."""
        return value > self.alert if self.bad > self.alert else value < self.alert


@dataclass(frozen=True)
class Signal:
    """One of the noisy ones. `peers`: its values are compared with those of other hosts, and one that may be chance does
    not alert. `both`: of a host's ratio to its peers small ones are as bad as large ones."""

    limits: Limits
    peers: bool
    both: bool = False


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


class Reading(NamedTuple):
    """A signal of a host in one evaluation. `z` is None for signals that are not compared with peers."""

    value: float
    z: float | None = None

    def is_significant(self, signal: Signal) -> bool:
        """In the bad direction."""
        if not signal.peers:
            return True
        if self.z is None:
            return False
        rises = signal.limits.bad > signal.limits.alert
        return abs(self.z) > SIGNIFICANT and (signal.both or (self.z > 0) == rises)

    def alerts(self, signal: Signal) -> bool:
        return signal.limits.alerts(self.value) and self.is_significant(signal)

    def score(self, signal: Signal) -> float:
        found = signal.limits.score(self.value)
        return found if self.is_significant(signal) else max(found, 0.5)


class Score(NamedTuple):
    """Of a host: 0 to 1, and the signal that it is; None where too few are known."""

    value: float | None
    reason: Code | None


UNKNOWN = Score(None, None)


def score(readings: Mapping[Code, Reading | None], signals: Mapping[Code, Signal] = SIGNALS) -> Score:
    """The smallest of the signals' scores. None where more than half are not known, which tells nothing of the host."""
    known = {code: reading.score(signals[code]) for code, reading in readings.items() if reading is not None}
    if 2 * len(known) < len(readings) or not known:
        return Score(None, Code.TELEMETRY_GAP)
    reason = min(known, key=lambda code: known[code])
    return Score(known[reason], reason)


def trust(before: float, found: Score) -> float:
    """After one evaluation; an unknown score leaves it as it is."""
    return before if found.value is None else TRUST_KEPT * before + (1 - TRUST_KEPT) * found.value
