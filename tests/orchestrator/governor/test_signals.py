"""Scores and trust."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.governor.codes import NOISY, Code, Scope, Weight
from orchestrator.governor.readings import Readings
from orchestrator.governor.signals import (
    FIRST_TRUST,
    RESOURCE_LIMITS,
    SIGNALS,
    SIGNIFICANT,
    UNKNOWN,
    Array,
    Limits,
    Score,
    trust,
)

every_limits = pytest.mark.parametrize(
    "limits", [*(s.limits for s in SIGNALS.values()), *RESOURCE_LIMITS.values()], ids=str
)


def array(*values: float) -> Array:
    return np.array(values, dtype=np.float64)


@every_limits
def test_gm22_a_signal_scores_one_at_good_half_at_alert_and_none_at_bad(limits: Limits) -> None:
    good, alert, bad = limits
    between = array(good, (good + alert) / 2, alert, (alert + bad) / 2, bad)
    assert limits.score(between).tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


@every_limits
def test_gm22_scores_stay_between_none_and_one(limits: Limits) -> None:
    step = limits.bad - limits.good
    assert limits.score(array(limits.bad + step, limits.good - step)).tolist() == [0.0, 1.0]


@every_limits
def test_gm26_a_value_alerts_beyond_alert_and_not_at_it(limits: Limits) -> None:
    assert limits.alerts(array(limits.good, limits.alert, limits.bad, math.nan)).tolist() == [False, False, True, False]


def test_gm22_every_noisy_code_has_limits() -> None:
    assert set(SIGNALS) == set(NOISY)
    assert all(code.weight is Weight.NOISY and code.scope is Scope.NODE for code in NOISY)


@pytest.mark.parametrize(
    ("code", "value", "z", "alerts"),
    [
        (Code.STRAGGLER, 2.0, SIGNIFICANT + 1, True),
        (Code.STRAGGLER, 2.0, SIGNIFICANT, False),
        (Code.STRAGGLER, 2.0, math.nan, False),
        (Code.STRAGGLER, 2.0, -9.0, False),
        (Code.STRAGGLER, 1.2, 9.0, False),
        (Code.GRAD_DIRECTION, 0.2, -9.0, True),
        (Code.GRAD_DIRECTION, 0.2, 9.0, False),
        (Code.GRAD_NORM, 6.0, -9.0, True),
        (Code.GRAD_NORM, 6.0, 9.0, True),
        (Code.THERMAL, 90.0, math.nan, True),
        (Code.NET_LOSS, 0.02, math.nan, True),
    ],
)
def test_gm22_an_alert_is_beyond_its_limit_and_beyond_chance(code: Code, value: float, z: float, alerts: bool) -> None:
    signal = SIGNALS[code]
    assert signal.alerts(array(value), array(z)).tolist() == [alerts]
    assert (signal.score(array(value), array(z))[0] < 0.5) == alerts


def readings(*hosts: dict[Code, tuple[float, float]]) -> Readings:
    unknown = (math.nan, math.nan)
    each = np.array([[host.get(code, unknown) for host in hosts] for code in NOISY])
    return Readings(tuple(f"h{i}" for i in range(len(hosts))), each[:, :, 0], each[:, :, 1])


def test_gm22_the_score_is_that_of_the_worst_signal() -> None:
    well = dict.fromkeys(NOISY, (0.0, 0.0)) | {Code.GRAD_DIRECTION: (1.0, 0.0)}
    slow = well | {Code.STRAGGLER: (1.5, 9.0)}
    found = readings(well, slow, slow | {Code.THERMAL: (99.0, 0.0)})
    scores = found.scores()
    assert [score.value for score in scores] == pytest.approx([1.0, 0.5 - 0.5 * 0.17 / 0.67, 0.0])
    assert [score.reason for score in scores[1:]] == [Code.STRAGGLER, Code.THERMAL]
    assert found.alerts() == {"h1": [Code.STRAGGLER], "h2": [Code.STRAGGLER, Code.THERMAL]}
    assert found.largest([Code.STRAGGLER, Code.NET_SLOW]) == [0.0, 1.5, 1.5]


def test_gm22_a_host_of_which_too_little_is_known_has_no_score() -> None:
    half, less = (dict.fromkeys(NOISY[:count], (0.0, 0.0)) for count in (4, 3))
    found = readings(half, less, {}).scores()
    assert found[0].value is not None
    assert found[1:] == [UNKNOWN, UNKNOWN]
    assert trust(0.7, UNKNOWN) == 0.7


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
