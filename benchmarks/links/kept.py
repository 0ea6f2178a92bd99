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
STEPS, EVERY = 1500, 150
"""Of a training without any codec, as long as that over links that change; each `EVERY`th of its steps is tried on."""


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
    left = [_left(Trials(plan.slots), *pair, choice) for pair in found] if choice != NONE else [0.0]
    return {"left": median(left), "seconds": [], "payload": 0.0}


def _left(trials: Trials, before: Sequence[Tensor], gradients: Sequence[Tensor], choice: Choice) -> float:
    """Of a step, after the one `before`: a low rank has its Q from there."""
    for bucket, gradient in enumerate(before):
        trials.try_on(bucket, gradient, choice)
    tried = [trials.try_on(bucket, gradient, choice) for bucket, gradient in enumerate(gradients)]
    known = [trial for trial in tried if trial is not None]
    return sum(abs(1.0 - trial.gain) * trial.energy for trial in known) / sum(trial.energy for trial in known)


@lru_cache(maxsize=1)
def _gradients(model_key: str, folder: Path | None) -> tuple[BucketPlan, list[tuple[list[Tensor], list[Tensor]]]]:
    """The buckets of each step that is tried on, behind those of the step before."""
    task = TASKS[model_key]
    data, model = task.load(folder), task.build(1)
    optimizer = task.optimizer(model)
    parameters = dict(model.named_parameters())
    plan, found = plan_buckets([(name, each.shape) for name, each in parameters.items()], 0), []
    before: list[Tensor] = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(WORLD):
            inputs, targets = batch(task, data, 1, step, rank, WORLD)
            loss_of(model(inputs), targets).backward()
            if rank == 0 and (step + 2) % EVERY == 0:
                before = _buckets(plan, parameters)
            elif rank == 0 and (step + 1) % EVERY == 0:
                found.append((before, _buckets(plan, parameters)))
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
