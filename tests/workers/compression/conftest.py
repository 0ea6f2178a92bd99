"""Codecs under test, tensors of every shape and size of number, and the sharded route in one process."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import torch
from torch import Tensor

from workers.compression.codec import Codec
from workers.compression.memory import ErrorFeedback
from workers.compression.registry import make_codec
from workers.compression.shards import cut

SPECS: dict[str, dict[str, float]] = {
    "none": {},
    "bf16": {},
    "bf16-ring": {},
    "fp16": {},
    "int8": {},
    "int4": {},
    "sign": {},
    "topk": {"density": 0.05},
    "threshold": {"density": 0.05},
}

WHOLE = "bucket"
"""The name of the only parameter where a test has no need of more."""


def codec(name: str) -> Codec:
    return make_codec(name, **SPECS[name])


@st.composite
def vectors(draw: st.DrawFn, largest: float = 126.0) -> Tensor:
    """float32 [0..1500]: zeros, blocks of magnitudes 2^-149 to 2^`largest`, and what lies within a block like gradients."""
    n = draw(st.integers(0, 1500))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(n, generator=noise, dtype=torch.float64).clamp(-3.9, 3.9) / 4
    ends = st.floats(-149, largest)
    exponents = torch.tensor([draw(ends) for _ in range(draw(st.integers(1, 4)))], dtype=torch.float64)
    x *= torch.exp2(exponents.repeat_interleave(-(-n // len(exponents)))[:n])
    x[torch.rand(n, generator=noise) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0.0
    return x.float()


class Member:
    """One rank of the sharded route: a codec, and error feedback on both sides (CC-10)."""

    def __init__(self, codec: Codec, n: int) -> None:
        self.codec = codec
        self.sender, self.owner = ErrorFeedback({WHOLE: n}), ErrorFeedback({WHOLE: n})
        self.result = torch.empty(n)

    def commit(self) -> None:
        self.sender.commit()
        self.owner.commit()

    def discard(self) -> None:
        self.sender.discard()
        self.owner.discard()

    @property
    def owed(self) -> Tensor:
        """float64 [n]: both residuals."""
        total = torch.zeros(len(self.result), dtype=torch.float64)
        for memory in (self.sender, self.owner):
            total += memory.state_dict().get(WHOLE, torch.zeros(1)).double()
        return total


def sharded_reduce(members: Sequence[Member], gradients: Sequence[Tensor]) -> int:
    """Fill every member's `result` with the decoded sum; returns the bytes that all of them sent together.

    Each member decodes what it was sent by itself, from a copy, as if it had come over a socket.
    """
    n, codec = len(gradients[0]), members[0].codec
    shards = cut(n, len(members), codec.granularity)
    sent = 0
    inbox: list[list[Tensor]] = [[] for _ in members]
    for number, (member, gradient) in enumerate(zip(members, gradients, strict=True)):
        x = member.sender.compensate(WHOLE, gradient)
        decoded = torch.empty(n)
        for index, shard in enumerate(shards):
            payload = member.codec.encode(x[shard], key=f"{index}")
            member.codec.decode(payload, len(x[shard]), out=decoded[shard])
            inbox[index].append(payload.clone())
            sent += len(payload) if index != number else 0
        member.sender.settle(WHOLE, x, decoded)
    for index, (owner, shard) in enumerate(zip(members, shards, strict=True)):
        length = shard.stop - shard.start
        total = torch.zeros(length)
        for payload in inbox[index]:
            total += owner.codec.decode(payload, length)
        x = owner.owner.compensate(WHOLE, total, start=shard.start)
        payload = owner.codec.encode(x, key="sum")
        owner.owner.settle(WHOLE, x, owner.codec.decode(payload, length), start=shard.start)
        for member in members:
            member.codec.decode(payload.clone(), length, out=member.result[shard])
        sent += len(payload) * (len(members) - 1)
    return sent
