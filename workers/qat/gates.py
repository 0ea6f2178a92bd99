"""Gates: conditions over measurements on record; a phase follows where the gate before it has passed (TA-19)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from workers.qat.config import PhasesConfig, QatConfig
from workers.qat.phases import Schedule

Measurements = Mapping[str, float]

LARGEST_DROP = {8: 0.010, 6: 0.010, 4: 0.015, 2: 0.030}
"""By bits of a weight: how much of the accuracy, 0..1, quantization may cost."""

LARGEST_RATE_CHANGE = {8: 0.05, 6: 0.05, 4: 0.10}
SMALLEST_CORRELATION = {8: 0.95, 6: 0.95, 4: 0.95}
"""Of spiking layers; nothing is asked of 2 bits (QS-29)."""

LARGEST_RATIO = {8: 4.0, 6: 16 / 3, 4: 8.0, 2: 16.0}
"""No honest size is smaller than its bits (QS-20)."""

SCALE_TOLERANCE = 1e-6
CALIBRATION_BATCHES, CALIBRATION_BATCHES_WITHOUT_QAT = 32, 64


@dataclass(frozen=True)
class Condition:
    """`measurement` is at least, or at most, `limit`; a value that is missing or no number fails."""

    measurement: str
    relation: Literal[">=", "<=", "<"]
    limit: float

    def holds(self, measured: Measurements) -> bool:
        value = measured.get(self.measurement, math.nan)
        match self.relation:
            case ">=":
                return value >= self.limit
            case "<=":
                return value <= self.limit
            case "<":
                return value < self.limit

    def failure(self, measured: Measurements) -> str:
        """`accuracy_drop is 0.023, but must be <= 0.01`."""
        value = measured.get(self.measurement)
        shown = "was not measured" if value is None else f"is {value:.6g}"
        return f"{self.measurement} {shown}, but must be {self.relation} {self.limit:.6g}"


@dataclass(frozen=True)
class Verdict:
    """What a gate has found.

    `values` are the measurements that its conditions name; None for one that is missing, or that JSON cannot say: NaN and
    infinity stand in `failures`.
    """

    gate: str
    passed: bool
    values: dict[str, float | None]
    conditions: tuple[Condition, ...]
    failures: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they stand in the report."""
        return asdict(self)


def judge(gate: str, conditions: Sequence[Condition], measured: Measurements) -> Verdict:
    """Look at every condition. Pure: the same measurements give the same verdict on one rank and on many (QS-39)."""
    failures = tuple(each.failure(measured) for each in conditions if not each.holds(measured))
    measurements = ((each.measurement, measured.get(each.measurement)) for each in conditions)
    values = {name: value if value is not None and math.isfinite(value) else None for name, value in measurements}
    return Verdict(gate, not failures, values, tuple(conditions), failures)


def fp32_warmup(phases: PhasesConfig) -> list[Condition]:
    """Enough epochs, a loss that has fallen, nothing that is not finite."""
    return [
        Condition("epochs", ">=", phases.fp32_epochs),
        Condition("loss_over_start", "<", 1.0),
        Condition("not_finite", "<=", 0.0),
    ]


def qat_enabled(layers: float, activations: float) -> list[Condition]:
    """On real samples, quantizers changed the weights of each of so many layers, and each of the activations (QS-18);
    none stands, or is used, on spikes or inside neurons."""
    weights, currents = max(1.0, layers), max(1.0, activations)
    return [
        Condition("weight_quantizers", ">=", weights),
        Condition("activation_quantizers", ">=", currents),
        Condition("weights_changed", ">=", weights),
        Condition("activations_changed", ">=", currents),
        Condition("spikes_quantized", "<=", 0.0),
        Condition("misplaced_quantizers", "<=", 0.0),
        Condition("zero_point", "<=", 0.0),
    ]


def qat_complete(schedule: Schedule, qat: QatConfig) -> list[Condition]:
    """Every epoch was trained, and quantization costs little of the accuracy in full precision."""
    epochs = schedule.epochs - schedule.warmup_epochs
    return [Condition("qat_epochs", ">=", epochs), Condition("accuracy_drop", "<=", LARGEST_DROP[qat.weight_bits])]


def least_batches(phases: PhasesConfig) -> int:
    """Global batches that a calibration needs."""
    return CALIBRATION_BATCHES if phases.qat_epochs else CALIBRATION_BATCHES_WITHOUT_QAT


def calibration_complete(phases: PhasesConfig) -> list[Condition]:
    """Observers saw enough training batches and none of the test data, and have come to finite ranges."""
    return [
        Condition("calibration_batches", ">=", least_batches(phases)),
        Condition("test_samples", "<=", 0.0),
        Condition("scale_error", "<=", SCALE_TOLERANCE),
        Condition("observing", "<=", 0.0),
        Condition("blind_observers", "<=", 0.0),
    ]


def conversion_complete(qat: QatConfig) -> list[Condition]:
    """The converted model runs, and its size is that of its serialised bytes."""
    return [
        *_finite(),
        Condition("ratio", "<=", LARGEST_RATIO[qat.weight_bits]),
        Condition("reload_differs", "<=", 0.0),
    ]


def verified(qat: QatConfig) -> list[Condition]:
    """Of any network (QS-29); a recipe has conditions of its own beside these."""
    return [Condition("accuracy_drop", "<=", LARGEST_DROP[qat.weight_bits]), *_finite()]


def _finite() -> list[Condition]:
    """What the integer model answers to test data and to random input."""
    return [Condition("not_finite", "<=", 0.0), Condition("not_finite_random", "<=", 0.0)]


def spiking(qat: QatConfig, layers: Sequence[str]) -> list[Condition]:
    """Quantization keeps how often, and when, the spiking `layers` fire (QS-29, QS-30)."""
    if qat.weight_bits not in LARGEST_RATE_CHANGE:
        return []
    rate, correlation = LARGEST_RATE_CHANGE[qat.weight_bits], SMALLEST_CORRELATION[qat.weight_bits]
    rates = [Condition(f"rate_change.{layer}", "<=", rate) for layer in layers]
    return rates + [Condition(f"correlation.{layer}", ">=", correlation) for layer in layers]


FAILED = {
    "fp32_warmup": "the warm-up was extended as far as it goes",
    "qat_enabled": "the quantizers do not do what they should",
    "qat_complete": "more epochs have not helped, nor, where there are several layers, the first one in full precision",
    "calibration_complete": "twice the batches did not help",
    "conversion_complete": "the integer model was not kept",
}
"""What it means that a gate has failed for good."""
