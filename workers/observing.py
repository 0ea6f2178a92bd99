"""What the ranks have seen between them: the largest values of a step, taken over as part of its commit (QS-36)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NOTHING = -float("inf")
"""The identity of the maximum: what a rank sends that has seen nothing."""


class StepObserver(nn.Module):
    """A module that looks at what passes through it, and learns from what all ranks have seen, once a step is committed.

    `forward` raises `seen`, float32 [n], outside the state; -inf stands for nothing. At the end of the step the elementwise
    maximum over all ranks is given to `take`, on every rank, as part of the commit: a step that is discarded leaves no
    trace. The buffers change in `take` only, so the forward pass of step s uses what step s - 1 has left.

    Args:
        width: n.
    """

    seen: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seen = torch.full((width,), NOTHING)

    def saw(self, values: Tensor) -> None:
        """Raise `seen` to `values`, [n]; what is NaN or infinite is left out."""
        values = values.detach().to(self.seen)
        torch.maximum(self.seen, torch.where(values.isfinite(), values, NOTHING), out=self.seen)

    def take(self, reduced: Tensor) -> None:
        """Learn from the maximum over all ranks, float32 [n]. Deterministic, and of `reduced` and the buffers alone."""
        raise NotImplementedError


class Observers:
    """Those of a model, as one row of numbers."""

    def __init__(self, model: nn.Module) -> None:
        self._all = [module for module in model.modules() if isinstance(module, StepObserver)]
        self.width = sum(len(observer.seen) for observer in self._all)

    def owned(self) -> Iterable[int]:
        """`id()` of every buffer that belongs to one of them."""
        return (id(buffer) for observer in self._all for buffer in observer.buffers())

    def forget(self) -> None:
        """Before the first forward pass of a step."""
        for observer in self._all:
            observer.seen.fill_(NOTHING)

    def seen(self) -> Tensor:
        """float32 [width]: what this rank has seen since."""
        return torch.cat([observer.seen for observer in self._all]) if self._all else torch.empty(0)

    def take(self, reduced: Tensor) -> None:
        """Hand the reduced row out, [width] of any floating dtype."""
        start = 0
        for observer in self._all:
            observer.take(reduced[start : start + len(observer.seen)].to(observer.seen))
            start += len(observer.seen)
