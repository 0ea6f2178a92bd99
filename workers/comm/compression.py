"""What a rank keeps to compress gradients, beyond one layout of buckets, and what of it goes into a checkpoint (CC-25)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from workers.collectives.buckets import BucketPlan
from workers.compression.config import CompressionConfig
from workers.compression.controller.controller import Controller
from workers.compression.fixed import Fixed
from workers.compression.gradients import GradientCompression

State = Mapping[str, Any]
"""`residuals` of one rank; and alike on all ranks: `steps`, `q` of PowerSGD, and `policy`, plain values."""

KEYS = {"steps", "residuals", "q", "policy"}

NO_BUCKETS = BucketPlan((), (0,), 0)


class Compression(GradientCompression):
    """Of one rank and one layout of buckets, for a training whose number of steps nobody knows."""

    def __init__(self, plan: BucketPlan, config: CompressionConfig, seed: int) -> None:
        controller = None if config.policy == "fixed" else Controller(plan, config, 0, seed)
        super().__init__(
            plan,
            partial(Fixed(config, 0), plan) if controller is None else controller.choices,
            seed=seed,
            follow_learning_rate=config.follow_learning_rate,
            max_rank=config.max_rank,
            controller=controller,
        )

    def whole_state(self) -> State:
        """All but `steps`."""
        return {"residuals": self.memory.state_dict(), "q": self.state_dict(), "policy": self.plain_state()}

    def take_over(self, state: State) -> None:
        """In the place of what is there. Raises ValueError where it is of another model."""
        self.absorb(state["residuals"])
        self.load_state_dict(state["q"])
        self.load_plain_state(state["policy"])


def merged(states: tuple[State, ...]) -> State:
    """What one rank takes over of several: the residuals of all, and what is alike on all ranks."""
    residuals: dict[str, Tensor] = {}
    for state in states:
        if not state.keys() >= KEYS:
            raise ValueError(f"a state of CommState has {', '.join(sorted(KEYS))}, and this has {', '.join(sorted(state))}")
        for name, owed in state["residuals"].items():
            residuals[name] = residuals[name] + owed if name in residuals else owed
    return {**states[0], "residuals": residuals}
