"""The recipe `mlp`: a plain multi-layer perceptron on handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workers.randomness import SampleDropout
from workers.tasks.digits import DigitsRecipe, Splits, preload
from workers.tasks.pipeline import Pipeline
from workers.tasks.quantized import quant_activation, quant_linear

if TYPE_CHECKING:
    from workers.config import TrainingConfig
    from workers.elastic import Job

__all__ = ["build", "preload", "run"]


def build(config: TrainingConfig, num_features: int, num_classes: int) -> nn.Sequential:
    """The network: [B, num_features] to logits [B, num_classes]; its first weights are decided by the seed alone."""
    layers: list[nn.Module] = []
    width = num_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for hidden in config.task.hidden:
            layers += [quant_linear(config, width, hidden), nn.ReLU(), quant_activation(config)]
            if config.task.dropout > 0:
                layers.append(SampleDropout(config.task.dropout))
            width = hidden
        layers.append(quant_linear(config, width, num_classes))
    return nn.Sequential(*layers)


def run(config: TrainingConfig, make_job: Callable[..., Job], prepared: Splits | None = None) -> dict[str, Any]:
    """Train, quantize, verify; see `Pipeline.run`."""
    splits = prepared or preload(config)
    model = build(config, splits.digits.num_features, splits.digits.num_classes)
    return Pipeline(config, DigitsRecipe(config, splits, model), make_job).run()
