"""What a rank keeps to compress gradients, beyond one layout of buckets, and what of it goes into a checkpoint (CC-25)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from workers.collectives.buckets import BucketPlan
from workers.compression.gradients import GradientCompression

State = Mapping[str, Any]
"""`residuals` of one rank; and alike on all ranks: `steps`, `q` of PowerSGD, and `policy`, plain values."""

KEYS = {"steps", "residuals", "q", "policy"}

NO_BUCKETS = BucketPlan((), (0,), 0)


def whole_state(compression: GradientCompression) -> State:
    """All but `steps`."""
    return {
        "residuals": compression.memory.state_dict(),
        "q": compression.state_dict(),
        "policy": compression.plain_state(),
    }


def replicated_number(steps: int, state: State) -> int:
    """A signed 64-bit digest of what all ranks have alike in a `state` after so many `steps`."""
    words = json.dumps([steps, state["policy"]], sort_keys=True).encode()
    digest = blake2b(words, digest_size=8)
    for name in sorted(state["q"]):
        digest.update(name.encode())
        digest.update(state["q"][name].contiguous().view(torch.uint8).numpy())
    return int.from_bytes(digest.digest(), "big", signed=True)


def take_over(compression: GradientCompression, state: State) -> None:
    """Into one in which nothing is owed yet. Raises ValueError where it is of another model."""
    compression.absorb(state["residuals"])
    compression.load_state_dict(state["q"])
    compression.load_plain_state(state["policy"])


def merged(states: tuple[State, ...]) -> State:
    """What one rank takes over of several: the residuals of all, and what is alike on all ranks."""
    residuals: dict[str, Tensor] = {}
    for state in states:
        if not state.keys() >= KEYS:
            raise ValueError(f"a state of CommState has {', '.join(sorted(KEYS))}, and this has {', '.join(sorted(state))}")
        for name, owed in state["residuals"].items():
            residuals[name] = residuals[name] + owed if name in residuals else owed
    return {**states[0], "residuals": residuals}
