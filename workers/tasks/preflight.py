"""The probe of the pre-flight gate (GM-40): a small network on made-up data, at an even pace. Ranks note what they hold.

Batches are large for the network, so that gradients of hosts that are well agree. It learns fast at first, and then hardly
any more, so that they go on to.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from workers.data.plan import BatchPlan

if TYPE_CHECKING:
    from workers.config import TrainingConfig
    from workers.elastic import Job

FEATURES, HIDDEN, CLASSES = 16, 32, 8
BATCHES = 8
"""Of an epoch."""

PACE_SECONDS = 0.03
"""A step takes as much more, so that its length is even on hosts that are busy."""

EARLY_STEPS = 30
EARLY_RATE, LATE_RATE = 0.2, 0.002
"""Learning rates of these first steps, and of all others."""


def preload(config: TrainingConfig) -> TensorDataset:
    """The data: the same for every seed."""
    chance = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCHES * config.global_batch, FEATURES, generator=chance)
    return TensorDataset(inputs, (inputs @ torch.randn(FEATURES, CLASSES, generator=chance)).argmax(dim=1))


def run(config: TrainingConfig, make_job: Callable[..., Job], prepared: TensorDataset | None = None) -> dict[str, Any]:
    """Train until the job is stopped."""
    model, optimizer, schedule = _trained(config.seed)
    job = make_job(model, optimizer, prepared or preload(config), scheduler=schedule)
    notes = _Notes(job, config.checkpoint.every)
    for inputs, targets in job.batches():
        notes.take()
        time.sleep(PACE_SECONDS)
        job.step(cross_entropy(model(inputs), targets))
    return {}


def losses(config: TrainingConfig, seed: int, steps: int) -> list[float]:
    """Of the first steps with another seed, computed alone: what a gang of any size computes, up to rounding."""
    data, plan = preload(config), BatchPlan(config.model_copy(update={"seed": seed}), BATCHES * config.global_batch)
    model, optimizer, schedule = _trained(seed)
    found = []
    for step in range(1, steps + 1):
        inputs, targets = data[torch.from_numpy(plan.batch(step).copy())]
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        found.append(float(loss.detach()))
    return found


def _trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """With initial weights by the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=EARLY_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1.0 if step < EARLY_STEPS else LATE_RATE / EARLY_RATE
    )
    return model, optimizer, schedule


class _Notes:
    """`digests/rank-….jsonl`: the digest of the first state that this process trains on, and of each that is saved."""

    def __init__(self, job: Job, every: int) -> None:
        self._job, self._every = job, every
        self._last: int | None = None

    def take(self) -> None:
        """Before the forward pass."""
        step, first = self._job.committed, self._last is None
        if step == self._last:
            return
        self._last = step
        if first or step % self._every == 0:
            folder = self._job.folder / "digests"
            folder.mkdir(exist_ok=True)
            line = {"step": step, "rank": self._job.rank, "digest": self._job.digest}
            with (folder / f"rank-{self._job.rank}-{os.getpid()}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
