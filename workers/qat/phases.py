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

MAX_WARMUP_EPOCHS = 10
MORE_QAT_EPOCHS = 3
"""To these a failed gate extends its phase (TA-19)."""

EXTENSION_LR = 0.5
"""Of the first QAT epoch's rate, in epochs that a gate has added: 5e-5 for 1e-4."""


@dataclass(frozen=True)
class Schedule:
    """The epochs of a job.

    Args:
        phases, qat: of the JobSpec.
        added: epochs that gates have added, by the phase they extend.
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
        return self.warmup_epochs + self.phases.qat_epochs + self.added.get(Phase.QAT, 0)

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
        """QAT epoch from which observers stand still; always after one epoch in which they did not."""
        return max(self._boundary(self.qat.freeze_from, FREEZE_FROM), self.activations_from + 1)

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
        """Is everything quantized in that epoch: the best one is chosen among these."""
        return self.switches(epoch)[:3] == QUANTIZED[:3]

    def qat_rate(self, qat_epoch: int, base: float) -> float:
        """Learning rate of a QAT epoch, from 0: half a cosine wave from `base` to `qat.lr_min`, epoch by epoch.

        With 12 epochs from 1e-4 to 1e-6 it is 7.525e-5, 2.575e-5 and 1e-6 after 4, 8 and 12 of them.
        """
        epochs = self.phases.qat_epochs
        if qat_epoch >= epochs and self.added.get(Phase.QAT):
            return base * EXTENSION_LR
        low = min(self.qat.lr_min, base)
        return low + (base - low) * 0.5 * (1.0 + math.cos(math.pi * (qat_epoch / epochs if qat_epoch < epochs else 1.0)))

    def _boundary(self, given: int | None, reference: int) -> int:
        """In proportion, but not after the last epoch: so a single one quantizes everything."""
        if given is not None:
            return given
        return max(0, min(round(self.phases.qat_epochs * reference / REFERENCE_EPOCHS), self.phases.qat_epochs - 1))
