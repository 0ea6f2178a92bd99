"""The quantized layers that the JobSpec asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.qat.layers import QuantActivation, QuantLinear
from workers.qat.observers import RangeObserver

if TYPE_CHECKING:
    from workers.config import TrainingConfig


def quant_linear(config: TrainingConfig, in_features: int, out_features: int, bias: bool = True) -> QuantLinear:
    """A linear layer with weights of `qat.weight_bits`."""
    return QuantLinear(in_features, out_features, bias, bits=config.qat.weight_bits)


def quant_activation(config: TrainingConfig, name: str = "") -> QuantActivation:
    """What an activation passes through, with `qat.activation_bits`; `name` is not needed."""
    return QuantActivation(config.qat.activation_bits, RangeObserver(config.qat.averaging))
