"""When a noisy signal's record in shadow mode is long enough for it to be enforced (GM-42, GM-43)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from orchestrator.governor.codes import NOISY, Code
from orchestrator.governor.config import GovernorConfig
from orchestrator.governor.events import Observed
from orchestrator.governor.log import told
from orchestrator.governor.readings import Readings

LEAST_HOURS = 24.0
BUDGET_SECONDS = 30 * 24 * 3600.0
"""In which all noisy signals together may evict one host wrongly."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Record:
    """Of one signal: evaluations of a host in which its value was known, and those of them that alerted."""

    checks: int = 0
    alerts: int = 0

    @property
    def bound(self) -> float:
        """That the rate of alerts is below with 95 % confidence; 1 where nothing was checked."""
        return min(1.0, most_expected(self.alerts) / self.checks) if self.checks else 1.0


Records = Mapping[Code, Record]


def tallied(records: Records, readings: Readings, config: GovernorConfig) -> dict[Code, Record]:
    """With one evaluation more."""
    after = {}
    for code in NOISY:
        values, z = readings.of(code)
        before = records.get(code, Record())
        checks, alerts = int((~np.isnan(values)).sum()), int(config.signal(code).alerts(values, z).sum())
        after[code] = Record(before.checks + checks, before.alerts + alerts)
    return after


@dataclass(frozen=True)
class Calibration:
    """What a log says of the noisy signals: their records, over so many hours, of so many hosts at most."""

    records: Records
    hosts: int
    hours: float
    config: GovernorConfig

    def may_be_enforced(self, code: Code) -> bool:
        return may_be_enforced(self.records[code], self.hosts, self.hours, self.config)


def calibrated(lines: Iterable[str]) -> Calibration:
    """Of a governor's log. Raises LogError where it is none."""
    records: Records = dict.fromkeys(NOISY, Record())
    times, hosts, config = list[float](), 0, GovernorConfig()
    for state, event, config in told(lines):
        if isinstance(event, Observed):
            readings, _ = state.read(event.observations, event.singles)
            records = tallied(records, readings, config)
            times.append(event.time)
            hosts = max(hosts, len(readings.hosts))
    hours = (max(times) - min(times)) / 3600 if times else 0.0
    return Calibration(records, hosts, hours, config)


def most_allowed(hosts: int, config: GovernorConfig) -> float:
    """The rate of alerts p with which two alerts in `remember` seconds evict one host in 30 days, of `hosts` and over all
    signals: hosts * evaluations * signals * p * (evaluations in `remember`) * p = 1."""
    evaluations = BUDGET_SECONDS / config.evaluation
    return 1 / math.sqrt(hosts * evaluations * len(NOISY) * config.remember / config.evaluation)


def may_be_enforced(record: Record, hosts: int, hours: float, config: GovernorConfig) -> bool:
    return hours >= LEAST_HOURS and record.bound <= most_allowed(hosts, config)


def most_expected(events: int) -> float:
    """The largest mean with which a Poisson variable is at most `events` with a probability of 5 % or more: 3.0 for 0."""
    low, high = float(events), float(events) + 10 + 6 * math.sqrt(events + 1)
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(events, middle) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _at_most(events: int, mean: float) -> float:
    """P(Poisson(mean) <= events)."""
    return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(events + 1))
