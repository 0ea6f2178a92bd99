"""One round of one way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.checkpoints.store import sync
from benchmarks.checkpoints.training import Training
from benchmarks.checkpoints.ways import Ours, Way


@dataclass
class Outcome:
    """Of one way, a number for each round: seconds, bytes."""

    blocked: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    size: list[int] = field(default_factory=list)


def measure(way: Way, training: Training, folder: Path, outcome: Outcome) -> None:
    """One round of one way."""
    if not isinstance(way, Ours):
        folder.mkdir()
    seconds: list[float] = []
    started = time.perf_counter()
    way.save(training, folder, lambda: seconds.append(time.perf_counter() - started))
    size = sync(folder)
    outcome.durable.append(time.perf_counter() - started)
    outcome.blocked.append(seconds[0])
    outcome.size.append(size)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    started = time.perf_counter()
    found = way.load(training, folder)
    outcome.restore.append(time.perf_counter() - started)
    if found is not None:
        expected = training.flat()
        wrong = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
        if wrong or len(found) != len(expected):
            raise SystemExit(f"{way.name} gave back another state: {wrong[:3] or sorted(set(found) ^ set(expected))[:3]}")
