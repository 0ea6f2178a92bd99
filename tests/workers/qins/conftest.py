"""A byte transformer that has learned a little: enough for greedy text that does not hang on near-ties."""

from __future__ import annotations

import copy

import pytest
import torch

from workers.models.transformer import ByteTransformer, next_token_loss
from workers.qins.architectures import byte_transformer
from workers.qins.manifest import Architecture

TEXT = "".join(f"def f{i % 7}(x):\n    return x + {i % 5}\n\n" for i in range(400))

SIZES = byte_transformer(context=32, width=48, depth=2, heads=4)


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """Windows of `TEXT`, int64 [M, 33]."""
    flat = torch.tensor(list(TEXT.encode()))
    return flat[: len(flat) // 33 * 33].view(-1, 33)


@pytest.fixture(scope="session")
def trained(tokens: torch.Tensor) -> ByteTransformer:
    """Of `SIZES`, 60 steps old, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ByteTransformer(256, 32, 48, 2, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):
        rows = tokens[torch.arange(step * 16, step * 16 + 16) % len(tokens)]
        loss = next_token_loss(model(rows[:, :-1]), rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture
def model(trained: ByteTransformer) -> ByteTransformer:
    """A copy of its own."""
    return copy.deepcopy(trained)


@pytest.fixture
def architecture() -> Architecture:
    return SIZES
