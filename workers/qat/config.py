"""What the JobSpec says of the phases and of quantization."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from workers.settings import Config, Count, unit


class PhasesConfig(Config):
    """How long the job trains: one phase after the other."""

    fp32_epochs: int = Field(
        5, ge=0, description="Epochs in full precision; a script trains the sum of both.", json_schema_extra=unit("epochs")
    )
    qat_epochs: int = Field(
        12,
        ge=0,
        description="Quantization-aware epochs after them; 0: quantized afterwards.",
        json_schema_extra=unit("epochs"),
    )

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return self.fp32_epochs + self.qat_epochs

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs == 0:
            raise ValueError(
                "phases.fp32_epochs and phases.qat_epochs are both 0, so there is nothing to train; "
                "write phases.fp32_epochs: 1 or more"
            )
        return self


class QatConfig(Config):
    """Quantization-aware training of a recipe (QS-15 to QS-22); a script does its own."""

    weight_bits: Literal[8, 6, 4, 2] = Field(8, description="Bits of a weight.")
    bits_before: list[Literal[8, 6, 4]] = Field(
        default=[],
        max_length=2,
        description="Multi-precision, as [8, 4] before 2: bits in earlier stages of the QAT epochs, cut as 5 : 7 : 10. "
        "Weights carry over; ranges are observed anew, and stand still in the last stage at the earliest. The rate is `lr` "
        "in the first stage and halved for each next one: published are 22 epochs, `lr` 2e-4, `weight_decay` 1e-4.",
    )
    activation_bits: Literal[8, 6, 4] = Field(
        8, description="Bits of an activation; in a spiking network, of the currents into its neurons."
    )
    state_bits: Literal[8, 4, 2] | None = Field(
        8, description="Bits of the membranes of a spiking network; null leaves them as they are."
    )
    activations_from: int | None = Field(
        None,
        ge=0,
        description="QAT epoch, from 0, from which activations are quantized too; null: after a quarter of the epochs.",
        examples=[3],
        json_schema_extra=unit("epochs"),
    )
    state_from: int | None = Field(
        None,
        ge=0,
        description="QAT epoch from which everything is; null: after 7 of 12 epochs.",
        examples=[7],
        json_schema_extra=unit("epochs"),
    )
    freeze_from: int | None = Field(
        None,
        ge=0,
        description="QAT epoch from which the observed ranges stay as they are; null: after 8 of 12 epochs.",
        examples=[8],
        json_schema_extra=unit("epochs"),
    )
    lr: float | None = Field(
        None, gt=0, description="Learning rate of the first QAT epoch; null: a tenth of `optimizer.lr`.", examples=[1e-4]
    )
    lr_min: float = Field(1e-6, ge=0, description="To which a cosine lowers it, epoch by epoch.")
    weight_decay: float = Field(1e-5, ge=0, description="Weight decay in the QAT epochs.")
    averaging: float = Field(0.01, gt=0, le=1, description="Weight of a step in the moving average of observed ranges.")
    calibration_batches: Count = Field(
        32,
        description="Global batches of training data that set the final ranges; as many again if that is not enough.",
        json_schema_extra=unit("batches"),
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        bits = [*self.bits_before, self.weight_bits]
        if bits != sorted(set(bits), reverse=True):
            fitting = sorted({each for each in self.bits_before if each > self.weight_bits}, reverse=True)
            raise ValueError(
                f"qat.bits_before is {self.bits_before}, but bits must become fewer, down to qat.weight_bits, which is "
                f"{self.weight_bits}; write qat.bits_before: {fitting}"
            )
        first, all_from = self.activations_from, self.state_from
        if first is not None and all_from is not None and first > all_from:
            raise ValueError(
                f"qat.activations_from is {first}, later than qat.state_from, which is {all_from}; "
                f"write qat.state_from: {first} or more"
            )
        return self
