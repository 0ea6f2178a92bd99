"""The architectures that a model folder can name, and how each is built from its JSON arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from workers.checkpoint.errors import CheckpointError
from workers.models.transformer import ByteTransformer
from workers.qins.manifest import Architecture

BYTE_TRANSFORMER = "byte_transformer"


def _byte_transformer(vocabulary: int, context: int, width: int, depth: int, heads: int) -> nn.Module:
    return ByteTransformer(vocabulary=vocabulary, context=context, width=width, depth=depth, heads=heads)


REGISTRY: dict[str, Callable[..., nn.Module]] = {BYTE_TRANSFORMER: _byte_transformer}


def byte_transformer(context: int, width: int, depth: int, heads: int, vocabulary: int = 256) -> Architecture:
    """How a `ByteTransformer` of these sizes is named in a manifest."""
    sizes = {"vocabulary": vocabulary, "context": context, "width": width, "depth": depth, "heads": heads}
    return Architecture(name=BYTE_TRANSFORMER, arguments=dict(sizes))


def build(architecture: Architecture, largest: int = 1 << 40) -> nn.Module:
    """The float model, in evaluation mode, with whatever first weights; torch's generators are left as they are.

    Args:
        largest: no number among the arguments may be above it: elements of the tensors that shall fit in.

    Raises:
        CheckpointError: no such architecture, or arguments that it does not take.
    """
    make = REGISTRY.get(architecture.name)
    if make is None:
        raise CheckpointError(
            f"architecture {architecture.name!r} is unknown; this version has {', '.join(sorted(REGISTRY))}"
        )
    arguments: dict[str, Any] = architecture.arguments
    for key, value in arguments.items():
        if type(value) is int and not 0 < value <= largest:
            raise CheckpointError(f"architecture {architecture.name} has {key} {value}, which its tensors cannot have")
    try:
        with torch.random.fork_rng(devices=[]):
            return make(**arguments).eval()
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"architecture {architecture.name} does not take the arguments {arguments} ({reason})"
        ) from None
