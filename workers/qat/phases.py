"""The way from an untrained network to a verified integer one: which phase an epoch is in, and what is switched on (QS-22).

Everything here is a pure function of the JobSpec and of the epochs that gates have added, which are replicated state. So a
phase changes at the same step on every rank, and a rank that joins, or a job that resumes, knows where it stands (QS-37).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from workers.qat.config import PhasesConfig, QatConfig


class Phase(StrEnum):
    """In their order; each begins where the gate of the one before has passed."""

    DATA = "data"
    FP32_WARMUP = "fp32_warmup"
    QAT = "qat"
    OBSERVER_FREEZE = "observer_freeze"
    CALIBRATION = "calibration"
    CONVERT = "convert"
    VERIFY = "verify"


class Switches(NamedTuple):
    """What is quantized in the forward pass, and whether observers follow what they see."""

    weights: bool = False
    activations: bool = False
    state: bool = False
    observing: bool = False


FP32 = Switches()
QUANTIZED = Switches(weights=True, activations=True, state=True)
CALIBRATING = Switches(weights=True, observing=True)

REFERENCE_EPOCHS, ACTIVATIONS_FROM, STATE_FROM, FREEZE_FROM = 12, 3, 7, 8
"""Of 12 QAT epochs the first three quantize weights alone, and so on; other numbers of epochs are cut in proportion."""

STAGE_EPOCHS = (5, 7, 10)
"""Of the QAT epochs with 8, 4 and 2 bits; other numbers of epochs, or of stages, are cut in proportion (QS-23)."""

FIRST_LAYER_FP32 = "first_layer_fp32"
"""Under this stand, beside the phases, the epochs that a gate has added with the first layer in full precision."""

MAX_WARMUP_EPOCHS = 10
MORE_QAT_EPOCHS = 3
"""To these a failed gate extends its phase (TA-19)."""

EXTENSION_LR = 0.5
"""Of the first QAT epoch's rate, or the last stage's, in epochs that a gate has added: 5e-5 for 1e-4."""


class Stage(NamedTuple):
    """QAT epochs, from `start` to before `end`, in which a weight has so many bits."""

    bits: int
    start: int
    end: int


@dataclass(frozen=True)
class Schedule:
    """The epochs of a job.

    Args:
        phases, qat: of the JobSpec.
        added: epochs that gates have added, by the phase they extend, or `FIRST_LAYER_FP32`.
    """

    phases: PhasesConfig
    qat: QatConfig
    added: Mapping[str, int]

    @property
    def warmup_epochs(self) -> int:
        """Epochs in full precision."""
        return self.phases.fp32_epochs + self.added.get(Phase.FP32_WARMUP, 0)

    @property
    def epochs(self) -> int:
        """Of all phases together."""
        return self._first_layer_from + self.added.get(FIRST_LAYER_FP32, 0)

    @property
    def _first_layer_from(self) -> int:
        """Epoch from which the first layer may be left in full precision."""
        return self.warmup_epochs + self.phases.qat_epochs + self.added.get(Phase.QAT, 0)

    @property
    def stages(self) -> list[Stage]:
        """One, or those of multi-precision (QS-23), of which the last has the epochs that are left."""
        bits = [*self.qat.bits_before, self.qat.weight_bits]
        shares, epochs = STAGE_EPOCHS[: len(bits)], self.phases.qat_epochs
        ends = [
            max(0, min(round(epochs * sum(shares[: n + 1]) / sum(shares)), epochs - (len(bits) - 1 - n)))
            for n in range(len(bits))
        ]
        return [Stage(*stage) for stage in zip(bits, [0, *ends], ends, strict=False)]

    def weight_bits(self, epoch: int) -> int:
        """Bits of a weight that is quantized in that epoch."""
        qat_epoch = epoch - self.warmup_epochs
        return next((s.bits for s in self.stages if s.start <= qat_epoch < s.end), self.qat.weight_bits)

    def observes_anew(self, epoch: int) -> bool:
        """Do observers forget their ranges before that epoch, because weights now have fewer bits."""
        return any(epoch - self.warmup_epochs == stage.start for stage in self.stages[1:] if stage.start)

    @property
    def activations_from(self) -> int:
        """QAT epoch, from 0, from which activations are quantized too."""
        return self._boundary(self.qat.activations_from, ACTIVATIONS_FROM)

    @property
    def state_from(self) -> int:
        """QAT epoch from which everything is quantized; never before activations are."""
        return max(self._boundary(self.qat.state_from, STATE_FROM), self.activations_from)

    @property
    def freeze_from(self) -> int:
        """QAT epoch from which observers stand still; always after one epoch, of the last stage, in which they did not."""
        last = self.stages[-1]
        begins = self._boundary(self.qat.freeze_from, FREEZE_FROM, last)
        return max(begins, self.activations_from + 1, last.start + 1)

    def phase(self, epoch: int) -> Phase:
        """The phase of a training epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            return Phase.FP32_WARMUP
        return Phase.QAT if epoch - self.warmup_epochs < self.freeze_from else Phase.OBSERVER_FREEZE

    def switches(self, epoch: int) -> Switches:
        """What is on in a training epoch."""
        qat_epoch = epoch - self.warmup_epochs
        if qat_epoch < 0:
            return FP32
        activations = qat_epoch >= self.activations_from
        return Switches(
            weights=True,
            activations=activations,
            state=qat_epoch >= self.state_from,
            observing=activations and qat_epoch < self.freeze_from,
        )

    def is_complete(self, epoch: int) -> bool:
        """Is everything quantized in that epoch that will be in the end: the best one is chosen among these."""
        in_the_end = (FIRST_LAYER_FP32 in self.added, self.qat.weight_bits)
        now = (self.leaves_first_layer(epoch), self.weight_bits(epoch))
        return self.switches(epoch)[:3] == QUANTIZED[:3] and now == in_the_end

    def leaves_first_layer(self, epoch: int) -> bool:
        """Is the first layer left in full precision: in the epochs that were added for it, and for good."""
        return FIRST_LAYER_FP32 in self.added and epoch >= self._first_layer_from

    def qat_rate(self, qat_epoch: int, base: float) -> float:
        """Learning rate of a QAT epoch, from 0: half a cosine wave from `base` to `qat.lr_min`, epoch by epoch.

        With 12 epochs from 1e-4 to 1e-6 it is 7.525e-5, 2.575e-5 and 1e-6 after 4, 8 and 12 of them. With multi-precision
        it is `base`, a half and a quarter of it: 2e-4, 1e-4 and 5e-5.
        """
        epochs, stages = self.phases.qat_epochs, self.stages
        base *= 0.5 ** sum(qat_epoch >= stage.start for stage in stages[1:])
        if qat_epoch >= epochs and self.added.get(Phase.QAT):
            return base * EXTENSION_LR
        if len(stages) > 1:
            return base
        low = min(self.qat.lr_min, base)
        return low + (base - low) * 0.5 * (1.0 + math.cos(math.pi * (qat_epoch / epochs if qat_epoch < epochs else 1.0)))

    def _boundary(self, given: int | None, reference: int, stage: Stage | None = None) -> int:
        """In proportion to the epochs of the first, or another, stage, but not after its last: so a single epoch quantizes
        everything."""
        if given is not None:
            return given
        _, start, end = stage or self.stages[0]
        return start + max(0, min(round((end - start) * reference / REFERENCE_EPOCHS), end - start - 1))
