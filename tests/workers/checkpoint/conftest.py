"""A small state that holds one of everything, and a way to publish it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.object_store import ObjectStore, known_store
from workers.checkpoint import Published, save
from workers.state import Captured


@pytest.fixture
def state() -> Captured:
    """Every kind of tensor and plain value that training keeps; about 40 kB."""
    torch.manual_seed(7)
    tensors = {
        "parameter.weight": torch.randn(64, 33),
        "parameter.half": torch.randn(5, 4).bfloat16(),
        "buffer.running": torch.randn(9, dtype=torch.float64),
        "buffer.count": torch.tensor(12, dtype=torch.int64),
        "buffer.mask": torch.tensor([True, False, True]),
        "buffer.none": torch.empty(0, 3),
        "optimizer.weight|moment": torch.zeros(64, 33),
        "optimizer.weight|bytes": torch.randint(0, 256, (4096,), dtype=torch.uint8),
    }
    meta = {
        "groups": [{"lr": 0.1, "betas": (0.9, 0.999)}],
        "milestones": Counter({3: 1}),
        "position": {0: 17},
        "best": float("inf"),
        "seed": 2**127 + 1,
        "history": [[1, "evaluation", {"accuracy": 0.5}]],
    }
    return Captured(tensors, meta)


@pytest.fixture
def publish(state: Captured, tmp_path: Path) -> Callable[..., Published]:
    """`publish(step=…, generation=…, …)` saves `state` below `tmp_path / "checkpoints"`."""

    def run(step: int = 10, generation: tuple[int, int] = (1, 2), **rest: Any) -> Published:
        arguments: dict[str, Any] = {"job": "mnist", "lineage": 2**64 - 2, "world": 4, "fence": lambda: True}
        root = rest.pop("root", tmp_path / "checkpoints")
        return save(rest.pop("state", state), root, step=step, generation=generation, **{**arguments, **rest})

    return run


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with known_store() as store:
        yield store


@pytest.fixture
def store(server: ObjectStore) -> Iterator[ObjectStore]:
    """With fair weather, whatever the test before has left."""
    yield server
    server.weather.faults.clear()
    server.weather.met.clear()
    server.weather.requests.clear()
    server.weather.is_out = False
