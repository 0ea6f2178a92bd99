"""What a codec leaves of a gradient to later steps: what adaptive's error budget is about (CC-19)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmarks.links.cells import Cell, Record
from benchmarks.links.methods import METHODS
from benchmarks.links.tasks import TASKS, batch, loss_of
from workers.collectives.buckets import BucketPlan, plan_buckets
from workers.compression.choice import NONE, Choice
from workers.compression.controller.trials import Trials

WORLD = 4
"""Ranks that share a global batch; a codec has the gradient of the first one."""
STEPS, EVERY, TRIALS = 100, 5, 10
"""Of a training without any codec; the last `TRIALS` of its steps, `EVERY` apart, are tried on."""


@dataclass(frozen=True)
class KeptCell(Cell):
    """One codec on the gradients of one model; no links have a part in it."""


def kept_cells(models: Sequence[str]) -> Iterator[KeptCell]:
    """Of the codecs that a fixed choice of ours may be."""
    for model in models:
        for method in METHODS.values():
            if method.ours and not method.reacts:
                yield KeptCell("kept", model, f"{WORLD}x1", "none", method.key, 0)


def measure_kept(cell: KeptCell, folder: Path | None) -> Record:
    """`left`: the share of a gradient's energy that stays behind, each bucket by its energy, as adaptive measures it; the
    median of all trials."""
    choice = Choice.parse(str(METHODS[cell.method].settings["codec"]))
    plan, found = _gradients(cell.model, folder)
    trials = Trials(plan.slots)
    left = [_left(trials, gradients, choice) for gradients in found] if choice != NONE else [0.0]
    return {"left": median(left), "seconds": [], "payload": 0.0}


def _left(trials: Trials, gradients: Sequence[Tensor], choice: Choice) -> float:
    tried = [trials.try_on(bucket, gradient, choice) for bucket, gradient in enumerate(gradients)]
    known = [trial for trial in tried if trial is not None]
    return sum(abs(1.0 - trial.gain) * trial.energy for trial in known) / sum(trial.energy for trial in known)


@lru_cache(maxsize=1)
def _gradients(model_key: str, folder: Path | None) -> tuple[BucketPlan, list[list[Tensor]]]:
    """The buckets of each step that is tried on."""
    task = TASKS[model_key]
    data, model = task.load(folder), task.build(1)
    optimizer = task.optimizer(model)
    parameters = dict(model.named_parameters())
    plan, found = plan_buckets([(name, each.shape) for name, each in parameters.items()], 0), []
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(WORLD):
            inputs, targets = batch(task, data, 1, step, rank, WORLD)
            loss_of(model(inputs), targets).backward()
            if rank == 0 and step >= STEPS - TRIALS * EVERY and step % EVERY == EVERY - 1:
                found.append(_buckets(plan, parameters))
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad /= WORLD
        optimizer.step()
    return plan, found


def _buckets(plan: BucketPlan, parameters: Mapping[str, Parameter]) -> list[Tensor]:
    found = [torch.zeros(size) for size in plan.gradient_sizes]
    for slot in plan.slots:
        gradient = parameters[slot.name].grad
        if gradient is not None:
            found[slot.bucket][slot.start : slot.start + slot.numel] = gradient.flatten()
    return found
