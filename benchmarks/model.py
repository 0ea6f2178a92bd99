"""What every system in the benchmarks trains: the same model, data, optimizer and batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

GLOBAL_BATCH = 256
LEARNING_RATE = 0.05
MOMENTUM = 0.9
SAMPLES = 5_120
"""A multiple of the global batch: no step of an epoch is short."""
SEED = 7

WIDTHS: dict[str, tuple[int, ...]] = {
    "mlp": (784, 1000, 500, 10),
    "mlp5m": (784, 2000, 1500, 500, 10),
}
"""Layer widths by name: 1,290,510 and 5,327,010 parameters."""


def build_model(name: str = "mlp") -> nn.Sequential:
    """An MLP with ReLU between its layers, initialised from `SEED`: the same on every rank of every system."""
    torch.manual_seed(SEED)
    widths = WIDTHS[name]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def build_optimizer(model: nn.Module) -> torch.optim.SGD:
    """SGD with momentum, as every system uses it."""
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def build_dataset(samples: int = SAMPLES) -> TensorDataset:
    """Random images `[samples, 784]` float32 in [0, 1) and labels `[samples]` int64, in memory.

    Random on purpose: a restarted worker makes them in milliseconds, so that no system pays for parsing a file.
    """
    generator = torch.Generator().manual_seed(SEED)
    images = torch.rand(samples, WIDTHS["mlp"][0], generator=generator)
    labels = torch.randint(0, 10, (samples,), generator=generator)
    return TensorDataset(images, labels)


def share(dataset: TensorDataset, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """The samples of rank `rank` of `world` in the global batch of `step`: images `[n, 784]` and labels `[n]`."""
    images, labels = dataset.tensors
    generator = torch.Generator().manual_seed(SEED + step)
    chosen = torch.randint(0, len(images), (GLOBAL_BATCH,), generator=generator)[rank::world]
    return images[chosen], labels[chosen]


def train_loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy of one batch; a scalar."""
    images, labels = batch
    return functional.cross_entropy(model(images), labels)
