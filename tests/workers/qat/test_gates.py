"""Gates: conditions over measurements, nothing else (TA-19, QS-33)."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.qat import gates
from workers.qat.config import PhasesConfig, QatConfig
from workers.qat.gates import Condition, judge
from workers.qat.phases import Schedule

PHASES = PhasesConfig(fp32_epochs=5, qat_epochs=12)
PTQ = PhasesConfig(fp32_epochs=5, qat_epochs=0)
FINITE = {"not_finite": 0.0, "not_finite_random": 0.0}


def qat(bits: int = 8) -> QatConfig:
    return QatConfig.model_validate({"weight_bits": bits})


GATES: dict[str, tuple[list[Condition], dict[str, float]]] = {
    "fp32_warmup": (gates.fp32_warmup(PHASES), {"epochs": 5, "loss_over_start": 0.9999, "not_finite": 0}),
    "qat_enabled": (
        gates.qat_enabled(3, 2),
        {
            "weight_quantizers": 3,
            "activation_quantizers": 2,
            "weights_changed": 3,
            "activations_changed": 2,
            "spikes_quantized": 0,
            "misplaced_quantizers": 0,
            "zero_point": 0,
        },
    ),
    "qat_complete": (gates.qat_complete(Schedule(PHASES, qat(), {}), qat()), {"qat_epochs": 12, "accuracy_drop": 0.01}),
    "qat_complete, extended": (
        gates.qat_complete(Schedule(PHASES, qat(4), {"qat": 3}), qat(4)),
        {"qat_epochs": 15, "accuracy_drop": 0.015},
    ),
    "calibration_complete": (
        gates.calibration_complete(PHASES),
        {"calibration_batches": 32, "test_samples": 0, "scale_error": 1e-6, "observing": 0, "blind_observers": 0},
    ),
    "calibration_complete, without QAT": (
        gates.calibration_complete(PTQ),
        {"calibration_batches": 64, "test_samples": 0, "scale_error": 1e-6, "observing": 0, "blind_observers": 0},
    ),
    "conversion_complete": (gates.conversion_complete(qat()), {**FINITE, "ratio": 4.0, "reload_differs": 0}),
    "conversion_complete, 4 bits": (
        gates.conversion_complete(qat(4)),
        {**FINITE, "ratio": 8.0, "reload_differs": 0},
    ),
    "verified": (gates.verified(qat()), {"accuracy_drop": 0.01, **FINITE}),
    "verified, 2 bits": (gates.verified(qat(2)), {"accuracy_drop": 0.03, **FINITE}),
    "spiking": (gates.spiking(qat(), ["a", "b"]), dict.fromkeys(("rate_change.a", "rate_change.b"), 0.05)),
    "spiking, 4 bits": (gates.spiking(qat(4), ["a"]), {"rate_change.a": 0.10, "correlation.a": 0.95}),
}
GATES["spiking"][1].update(dict.fromkeys(("correlation.a", "correlation.b"), 0.95))
"""Conditions, and measurements with which each just holds."""


@pytest.mark.parametrize("gate", GATES)
def test_ta19_a_gate_passes_at_its_limits_and_fails_beyond_any_of_them(gate: str) -> None:
    conditions, measured = GATES[gate]
    assert {condition.measurement for condition in conditions} == measured.keys() and len(conditions) == len(measured)
    verdict = judge(gate, conditions, measured)
    assert verdict.passed and verdict.failures == () and verdict.values == measured
    for condition in conditions:
        worse = -1e-9 if condition.relation == ">=" else 1e-4 if condition.relation == "<" else 1e-9
        failed = judge(gate, conditions, {**measured, condition.measurement: measured[condition.measurement] + worse})
        assert not failed.passed
        (sentence,) = failed.failures
        assert sentence.startswith(f"{condition.measurement} is ")


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf], ids=str)
def test_ta19_a_value_that_is_missing_or_no_number_fails(gate: str, value: float | None) -> None:
    conditions, measured = GATES[gate]
    for condition in conditions:
        without = {name: each for name, each in measured.items() if name != condition.measurement}
        if value is not None:
            without[condition.measurement] = value
        good = {">=": math.inf, "<=": -math.inf, "<": -math.inf}[condition.relation]
        verdict = judge(gate, conditions, without)
        assert verdict.passed == (value == good)
        assert verdict.values[condition.measurement] is None
        json.loads(json.dumps(verdict.to_json(), allow_nan=False))
        if value is None:
            assert f"{condition.measurement} was not measured, but must be {condition.relation}" in verdict.failures[0]
        elif math.isnan(value):
            assert f"{condition.measurement} is nan, but" in verdict.failures[0]


def test_ta19_with_nothing_measured_every_condition_fails() -> None:
    for name, (conditions, _) in GATES.items():
        assert len(judge(name, conditions, {}).failures) == len(conditions) > 0


def test_ta19_a_network_without_quantizers_is_not_quantized() -> None:
    nothing = dict.fromkeys(GATES["qat_enabled"][1], 0.0)
    assert len(judge("qat_enabled", gates.qat_enabled(0, 0), nothing).failures) == 4


@pytest.mark.parametrize(
    ("relation", "below", "at", "above"), [(">=", False, True, True), ("<=", True, True, False), ("<", True, False, False)]
)
def test_a_condition_is_what_it_says(relation: Literal[">=", "<=", "<"], below: bool, at: bool, above: bool) -> None:
    condition = Condition("x", relation, 1.0)
    assert [condition.holds({"x": value}) for value in (0.5, 1.0, 1.5)] == [below, at, above]
    assert condition.failure({"x": 0.123456789}) == f"x is 0.123457, but must be {relation} 1"


@pytest.mark.parametrize(
    ("bits", "drop", "rate", "ratio"),
    [(8, 0.010, 0.05, 4.0), (6, 0.010, 0.05, 16 / 3), (4, 0.015, 0.10, 8.0), (2, 0.030, None, 16.0)],
)
def test_qs29_the_limits_are_those_of_the_tables(bits: int, drop: float, rate: float | None, ratio: float) -> None:
    assert Condition("accuracy_drop", "<=", drop) in gates.verified(qat(bits))
    assert Condition("accuracy_drop", "<=", drop) in gates.qat_complete(Schedule(PHASES, qat(bits), {}), qat(bits))
    assert Condition("ratio", "<=", ratio) in gates.conversion_complete(qat(bits))
    expected = [] if rate is None else [Condition("rate_change.x", "<=", rate), Condition("correlation.x", ">=", 0.95)]
    assert gates.spiking(qat(bits), ["x"]) == expected


def test_qs22_qs24_a_calibration_needs_32_batches_and_64_without_qat() -> None:
    assert (gates.least_batches(PHASES), gates.least_batches(PTQ)) == (32, 64)


def test_every_gate_that_can_end_a_job_has_its_sentence() -> None:
    assert set(gates.FAILED) == {name for name in GATES if "," not in name} - {"verified", "spiking"}


@given(
    correct=st.lists(st.integers(0, 50), min_size=1, max_size=60),
    full=st.integers(0, 3000),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
def test_qs39_sums_in_any_cut_give_the_same_verdict(correct: list[int], full: int, cuts: list[int]) -> None:
    """Also where the drop is within rounding of its limit: counts are whole numbers, which float64 adds exactly."""
    count = 50.0 * len(correct)
    edges = [0, *sorted(min(cut, len(correct)) for cut in cuts), len(correct)]
    pieces = [float(sum(correct[start:end])) for start, end in pairwise(edges)]

    def verdict(total: float) -> gates.Verdict:
        drop = min(full, count) / count - total / count
        return judge("verified", gates.verified(qat()), {"accuracy_drop": drop, **FINITE})

    assert verdict(sum(pieces)) == verdict(sum(reversed(pieces))) == verdict(float(sum(correct)))
