"""The JobSpec's group `compression`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.compression.choice import MAX_RANK, Choice
from workers.compression.controller.config import ControllerConfig


class CompressionConfig(ControllerConfig):
    """How gradients travel between hosts."""

    policy: Literal["adaptive", "latency_ladder", "fixed"] = Field(
        "fixed",
        description="`fixed`: always `codec`; `adaptive` measures links and codecs, and decides; `latency_ladder` goes by "
        "the round-trip time alone.",
    )
    follow_learning_rate: bool = Field(
        False,
        description="Scale what error feedback has kept when the learning rate changes, by old/new between 0.5 and 2; for "
        "optimizers whose update is the learning rate times the gradient.",
    )
    momentum: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Momentum correction of `topk` and `threshold`: momentum is accumulated before it is chosen what is "
        "sent. The optimizer must have none of its own then.",
    )
    ramp: bool = Field(
        False,
        description="With policy `fixed` and `topk` or `threshold`: densities of 25, 6.25, 1.56, 0.4 and 0.1 % in the "
        "first five epochs, but never below the one of `codec`.",
    )

    @property
    def compresses(self) -> bool:
        """Whether gradients may be encoded at all."""
        return self.policy != "fixed" or self.codec != "none"

    @property
    def max_rank(self) -> int:
        """The highest rank of PowerSGD that may be in force; 0 where none may."""
        if self.policy != "fixed":
            return MAX_RANK
        choice = Choice.parse(self.codec)
        return int(choice.value or 0) if choice.codec == "powersgd" else 0
