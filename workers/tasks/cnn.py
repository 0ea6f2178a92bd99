"""The recipe `cnn`: a small convolutional network on handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workers.models.cnn import DigitsCNN
from workers.qat.layers import QuantConv2d
from workers.tasks.digits import DigitsRecipe, Splits, preload
from workers.tasks.pipeline import Pipeline
from workers.tasks.quantized import quant_activation, quant_linear

if TYPE_CHECKING:
    from workers.config import TrainingConfig
    from workers.elastic import Job

__all__ = ["build", "preload", "run"]


def build(config: TrainingConfig, num_features: int, num_classes: int) -> DigitsCNN:
    """The network; its first weights are decided by the seed alone."""

    def make_conv(in_channels: int, out_channels: int, kernel_size: int, padding: int) -> nn.Module:
        return QuantConv2d(in_channels, out_channels, kernel_size, padding=padding, bits=config.qat.weight_bits)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return DigitsCNN(
            num_features,
            num_classes,
            make_conv=make_conv,
            make_linear=partial(quant_linear, config),
            wrap_activation=partial(quant_activation, config),
        )


def run(config: TrainingConfig, make_job: Callable[..., Job], prepared: Splits | None = None) -> dict[str, Any]:
    """Train, quantize, verify; see `Pipeline.run`."""
    splits = prepared or preload(config)
    model = build(config, splits.digits.num_features, splits.digits.num_classes)
    return Pipeline(config, DigitsRecipe(config, splits, model), make_job).run()
