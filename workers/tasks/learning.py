"""The optimizer that the JobSpec describes, and how its learning rate and weight decay move with the committed steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from workers.errors import TaskError

if TYPE_CHECKING:
    from workers.config import TrainingConfig

Groups = Iterable[nn.Parameter] | Iterable[dict[str, Any]]

OWN_RATE, NO_DECAY = "own_rate", "no_decay"
"""A parameter group where the one is true keeps its learning rate, where the other is its weight decay."""


def make_optimizer(config: TrainingConfig, parameters: Groups) -> Optimizer:
    """The optimizer `config.optimizer` over parameters, or groups of them.

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


class StepSchedule:
    """Sets learning rate and weight decay of every group as a function of the committed steps alone.

    Args:
        settings: what groups hold in the step after so many committed ones: {"lr": …, "weight_decay": …}.
    """

    def __init__(self, optimizer: Optimizer, settings: Callable[[int], dict[str, float]]) -> None:
        self._optimizer, self._settings = optimizer, settings
        self._committed = 0
        self.refresh()

    def step(self) -> None:
        """One step more is committed."""
        self._committed += 1
        self.refresh()

    def state_dict(self) -> dict[str, Any]:
        return {"committed": self._committed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._committed = int(state["committed"])

    def refresh(self) -> None:
        """Set them again: what `settings` says of the present step has changed."""
        settings = self._settings(self._committed)
        for group in self._optimizer.param_groups:
            for key, keeps in (("lr", OWN_RATE), ("weight_decay", NO_DECAY)):
                if not group.get(keeps):
                    group[key] = settings[key]


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
