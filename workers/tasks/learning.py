"""The optimizer and the learning-rate schedule that the JobSpec describes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from workers.errors import TaskError

if TYPE_CHECKING:
    from workers.config import TrainingConfig


def make_optimizer(config: TrainingConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer `config.optimizer` over `parameters`.

    Raises:
        TaskError: there is no optimizer of that name.
    """
    wanted = config.optimizer
    match wanted.name:
        case "sgd":
            return SGD(parameters, lr=wanted.lr, momentum=wanted.momentum, weight_decay=wanted.weight_decay)
        case "adam":
            return Adam(parameters, lr=wanted.lr, weight_decay=wanted.weight_decay)
        case "adamw":
            return AdamW(parameters, lr=wanted.lr, weight_decay=wanted.weight_decay)
        case name:
            raise TaskError(f"optimizer.name is {name!r}; write sgd, adam or adamw")


def make_schedule(config: TrainingConfig, optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """A scheduler, to be advanced once per committed step, for a training of `total_steps`."""
    name, warmup = config.schedule.name, config.schedule.warmup_steps
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, total_steps, name, warmup))


def learning_rate_factor(step: int, total_steps: int, name: str, warmup_steps: int) -> float:
    """What the learning rate is multiplied by in the step after `step` committed ones.

    Linear from 1 / warmup_steps to 1 over the first `warmup_steps`; then 1 (`constant`), or half a cosine wave down to
    0 at the end (`cosine`; Loshchilov, Hutter, "SGDR", 2017).

    Raises:
        TaskError: there is no schedule of that name.
    """
    if name not in ("constant", "cosine"):
        raise TaskError(f"schedule.name is {name!r}; write constant or cosine")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if name == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
