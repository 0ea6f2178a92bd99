"""GM-42, GM-43: how often a rule may be wrong, and how long a record has to be to show that."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from orchestrator.governor.calibration import Record, may_be_enforced, most_allowed, most_expected, tallied
from orchestrator.governor.codes import NOISY, Code
from orchestrator.governor.config import GovernorConfig
from orchestrator.governor.readings import Readings

CONFIG = GovernorConfig()


@pytest.mark.parametrize(("hosts", "rate"), [(16, 3.2e-5), (888, 4.2e-6), (10_000, 1.3e-6)])
def test_gm43_the_rate_that_is_allowed(hosts: int, rate: float) -> None:
    assert most_allowed(hosts, CONFIG) == pytest.approx(rate, rel=0.03)


@pytest.mark.parametrize("hosts", [16, 888, 10_000])
def test_gm42_at_that_rate_all_signals_together_evict_one_host_wrongly_in_30_days(hosts: int) -> None:
    rate = most_allowed(hosts, CONFIG)
    evaluations, within = 30 * 24 * 3600 / CONFIG.evaluation, int(CONFIG.remember / CONFIG.evaluation)
    again = 1 - (1 - rate) ** within
    assert hosts * evaluations * len(NOISY) * rate * again == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("events", [0, 1, 2, 7, 100])
def test_gm43_the_bound_is_that_of_poisson(events: int) -> None:
    assert most_expected(events) == pytest.approx(chi2.ppf(0.95, 2 * events + 2) / 2, rel=1e-6)


def test_gm43_none_in_n_bounds_the_rate_by_three_in_n() -> None:
    assert Record(1000, 0).bound == pytest.approx(3 / 1000, rel=2e-3)
    assert Record().bound == 1.0


@pytest.mark.parametrize(("hosts", "checks"), [(16, 95_000), (888, 710_000), (10_000, 2_400_000)])
def test_gm43_so_many_clean_checks_are_enough(hosts: int, checks: int) -> None:
    assert may_be_enforced(Record(int(1.05 * checks), 0), hosts, 24.0, CONFIG)
    assert not may_be_enforced(Record(int(0.9 * checks), 0), hosts, 24.0, CONFIG)
    assert not may_be_enforced(Record(10 * checks, 0), hosts, 23.0, CONFIG)
    assert not may_be_enforced(Record(int(1.05 * checks), 5), hosts, 24.0, CONFIG)


def test_gm43_a_tally_counts_what_is_known() -> None:
    values, z = np.full((len(NOISY), 2), np.nan), np.full((len(NOISY), 2), np.nan)
    values[NOISY.index(Code.THERMAL)] = [90.0, 60.0]
    values[NOISY.index(Code.STRAGGLER), 1], z[NOISY.index(Code.STRAGGLER), 1] = 2.0, 3.0
    readings = Readings(("a", "b"), values, z)
    found = tallied(tallied({}, readings, CONFIG), readings, CONFIG)
    assert found[Code.THERMAL] == Record(4, 2)
    assert found[Code.STRAGGLER] == Record(2, 0)
    assert set(found) == set(NOISY)
