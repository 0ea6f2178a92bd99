"""The range of an activation: a moving average of what all ranks have seen in a step (QS-17, QS-36, QS-40)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from workers.observing import StepObserver

AVERAGING = 0.01
"""Share of a step's range in the average; 0.02 suits noisy data."""


class RangeObserver(StepObserver):
    """Follows the smallest and the largest value of one tensor, over the union of the ranks.

    `seen` is [-min, max], so one maximum over the ranks gives both ends. The first step that saw something sets the range;
    step n moves it by `averaging`, or while `calibrating` by max(averaging, 1/n): the mean of the steps until 1/n is
    the smaller, so a short calibration still follows what it sees. Computed in float64 and stored in float32, alike
    on every rank.

    Buffers: `low` and `high` float32 [], the range; `updates` int64 [], how many steps it is made of; `calibrating` bool
    []. They change in `take` and `restart` only, so a rank that joins half-way averages as the others do.

    Attributes:
        observing: off, what passes is not looked at. Of the step alone, alike on every rank, like `averaging`;
            evaluation mode does not change it.

    Raises:
        ValueError: `averaging` is not in (0, 1].
    """

    low: Tensor
    high: Tensor
    updates: Tensor
    calibrating: Tensor

    def __init__(self, averaging: float = AVERAGING) -> None:
        super().__init__(2)
        if not 0.0 < averaging <= 1.0:
            raise ValueError(f"averaging must be above 0 and at most 1, not {averaging}")
        self.averaging = averaging
        self.observing = True
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("calibrating", torch.zeros((), dtype=torch.bool))

    @property
    def ready(self) -> bool:
        """Whether there is a range yet."""
        return int(self.updates) > 0

    def forward(self, x: Tensor) -> Tensor:
        """`x`, floating, any shape, as it is; looked at while `observing`."""
        if self.observing and x.numel():
            low, high = torch.aminmax(x.detach())
            self.saw(torch.stack((-low, high)))
        return x

    @torch.no_grad()
    def take(self, reduced: Tensor) -> None:
        """Move the range towards `reduced`, [-min, max] over all ranks; -inf, nothing seen, leaves it as it is."""
        low, high = -float(reduced[0]), float(reduced[1])
        if not (math.isfinite(low) and math.isfinite(high)):
            return
        self.updates += 1
        share = averaging_constant(int(self.updates), self.averaging, bool(self.calibrating))
        self.low.fill_(float(self.low) + share * (low - float(self.low)))
        self.high.fill_(float(self.high) + share * (high - float(self.high)))

    @torch.no_grad()
    def restart(self, *, calibrating: bool = False) -> None:
        """Forget the range, to be observed anew, or calibrated. Between two steps, at the same one on every rank."""
        for buffer in (self.low, self.high, self.updates):
            buffer.zero_()
        self.calibrating.fill_(calibrating)

    def extra_repr(self) -> str:
        return f"averaging={self.averaging}, observing={self.observing}"


def averaging_constant(update: int, averaging: float = AVERAGING, calibrating: bool = False) -> float:
    """The share of update number `update`, from 1, in the average: 1 for the first one (QS-17)."""
    if update == 1:
        return 1.0
    return max(averaging, 1.0 / update) if calibrating else averaging


def range_observers(model: nn.Module) -> dict[str, RangeObserver]:
    """Those of a model, by their names in it."""
    return {name: module for name, module in model.named_modules() if isinstance(module, RangeObserver)}
