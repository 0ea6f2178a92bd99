"""Scores and trust."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.governor.codes import NOISY, Code, Scope, Weight
from orchestrator.governor.signals import (
    FIRST_TRUST,
    RESOURCE_LIMITS,
    SIGNALS,
    SIGNIFICANT,
    Limits,
    Reading,
    Score,
    score,
    trust,
)

every_limits = pytest.mark.parametrize(
    "limits", [*(s.limits for s in SIGNALS.values()), *RESOURCE_LIMITS.values()], ids=str
)


@every_limits
def test_gm22_a_signal_scores_one_at_good_half_at_alert_and_none_at_bad(limits: Limits) -> None:
    assert limits.score(limits.good) == pytest.approx(1.0)
    assert limits.score(limits.alert) == pytest.approx(0.5)
    assert limits.score(limits.bad) == pytest.approx(0.0)
    assert limits.score((limits.good + limits.alert) / 2) == pytest.approx(0.75)
    assert limits.score((limits.bad + limits.alert) / 2) == pytest.approx(0.25)


@every_limits
def test_gm22_scores_stay_between_none_and_one(limits: Limits) -> None:
    step = limits.bad - limits.good
    assert limits.score(limits.bad + step) == 0.0
    assert limits.score(limits.good - step) == 1.0


@every_limits
def test_gm26_a_value_alerts_beyond_alert_and_not_at_it(limits: Limits) -> None:
    assert not limits.alerts(limits.alert)
    assert limits.alerts(limits.bad)
    assert not limits.alerts(limits.good)


def test_gm22_every_noisy_code_has_limits() -> None:
    assert set(SIGNALS) == set(NOISY)
    assert all(code.weight is Weight.NOISY and code.scope is Scope.NODE for code in NOISY)


@pytest.mark.parametrize(
    ("code", "value", "z", "alerts"),
    [
        (Code.STRAGGLER, 2.0, SIGNIFICANT + 1, True),
        (Code.STRAGGLER, 2.0, SIGNIFICANT, False),
        (Code.STRAGGLER, 2.0, None, False),
        (Code.STRAGGLER, 2.0, -9.0, False),
        (Code.STRAGGLER, 1.2, 9.0, False),
        (Code.GRAD_DIRECTION, 0.2, -9.0, True),
        (Code.GRAD_DIRECTION, 0.2, 9.0, False),
        (Code.GRAD_NORM, 6.0, -9.0, True),
        (Code.GRAD_NORM, 6.0, 9.0, True),
        (Code.THERMAL, 90.0, None, True),
        (Code.NET_LOSS, 0.02, None, True),
    ],
)
def test_gm22_an_alert_is_beyond_its_limit_and_beyond_chance(
    code: Code, value: float, z: float | None, alerts: bool
) -> None:
    reading = Reading(value, z)
    assert reading.alerts(SIGNALS[code]) == alerts
    if not alerts:
        assert reading.score(SIGNALS[code]) >= 0.5
    else:
        assert reading.score(SIGNALS[code]) < 0.5


def test_gm22_the_score_is_that_of_the_worst_signal() -> None:
    readings = {Code.STRAGGLER: Reading(1.5, 9.0), Code.THERMAL: Reading(70.0), Code.NET_LOSS: None}
    found = score(readings)
    assert found.value == pytest.approx(0.5 - 0.5 * 0.17 / 0.67)
    assert found.reason is Code.STRAGGLER


def test_gm22_a_host_of_which_too_little_is_known_has_no_score() -> None:
    known = dict.fromkeys(NOISY[:4], Reading(0.0, 0.0))
    assert score(known | dict.fromkeys(NOISY[4:])).value is not None
    assert score(known | dict.fromkeys((*NOISY[4:], Code.RESOURCE_LOAD))) == Score(None, Code.TELEMETRY_GAP)
    assert score({}) == Score(None, Code.TELEMETRY_GAP)
    assert trust(0.7, Score(None, Code.TELEMETRY_GAP)) == 0.7


def after(start: float, evaluations: int, value: float) -> float:
    for _ in range(evaluations):
        start = trust(start, Score(value, None))
    return start


def test_gm23_trust_takes_32_clean_evaluations_and_three_bad_ones_lose_it() -> None:
    assert after(FIRST_TRUST, 31, 1.0) < 0.90 <= after(FIRST_TRUST, 32, 1.0)
    assert after(1.0, 2, 0.0) >= 0.90 > after(1.0, 3, 0.0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_gm23_trust_stays_between_none_and_one(before: float, found: float) -> None:
    assert 0.0 <= trust(before, Score(found, None)) <= 1.0
