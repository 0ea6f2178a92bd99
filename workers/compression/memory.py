"""Error feedback: what a codec left out of a step is added to the next one (CC-10).

Seide et al., "1-bit stochastic gradient descent", 2014; Karimireddy et al., "Error feedback fixes SignSGD", 2019.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from workers.compression.finite import refuse_non_finite
from workers.compression.ledger import Ledger, State

SCALES = (0.5, 2.0)


class ErrorFeedback:
    """The residuals e of one rank, float32, by parameter: sent = g + e, e ← (g + e) − decoded.

    A rank has one for what it sends. Where it adds up a shard and encodes the sum it has a second one, of the same
    parameters, for what that encoding leaves out. Both count what is still owed to the sum over all ranks, so either may be
    `absorb`ed by the other, or by another rank's: that is how a new cut into shards, and a leaver, lose nothing (CC-12).
    A joiner begins with an empty one.

    What `settle` says is pending until `commit`; a step that is discarded, or skipped, keeps the old residuals (CC-11).

    Args:
        sizes: elements of each parameter, by name.
        follow_learning_rate: multiply residuals by old/new, clamped to 0.5 to 2, when the learning rate changes: for
            optimizers whose update is the learning rate times the gradient. The invariant then holds for rate · e.
    """

    def __init__(self, sizes: Mapping[str, int], *, follow_learning_rate: bool = False) -> None:
        self._ledger = Ledger(sizes)
        self._follows = follow_learning_rate
        self._rate: float | None = None
        self._next_rate: float | None = None
        self._scale = 1.0

    def set_learning_rate(self, rate: float) -> None:
        """The learning rate of the step that begins; becomes the old one when it commits. Without effect by default.

        From or to a rate of 0, where a warm-up begins, residuals stay as they are.
        """
        if self._follows:
            self._next_rate = rate
            self._scale = min(max(self._rate / rate, SCALES[0]), SCALES[1]) if self._rate and rate else 1.0

    def compensate(self, name: str, gradient: Tensor, *, start: int = 0, out: Tensor | None = None) -> Tensor:
        """g + e, float32 of the gradient's shape.

        Args:
            gradient: float32 of any shape: elements `start` on of the parameter `name`, in its order.
            out: where to put it: float32 of that shape, contiguous; it may be `gradient` itself.

        Raises:
            NonFiniteError: g + e holds NaN or Inf.
        """
        if out is None:
            out = torch.empty(gradient.shape)
        if out is not gradient:
            out.copy_(gradient)
        self.add_to(name, out, start=start)
        refuse_non_finite(name, out)
        return out

    def add_to(self, name: str, gradient: Tensor, *, start: int = 0) -> None:
        """g ← g + e, whatever comes out; `gradient` as of `compensate`, on any device."""
        residual = self._ledger.get(name, start, gradient.numel())
        if residual is not None:
            gradient.add_(residual.view(gradient.shape).to(gradient.device), alpha=self._scale)

    def settle(self, name: str, compensated: Tensor, decoded: Tensor, *, start: int = 0) -> None:
        """What became of it: the new residual is `compensated` − `decoded`, once the step commits."""
        draft = self._ledger.draft(name, start, compensated.numel())
        torch.sub(compensated.reshape(-1), decoded.reshape(-1), out=draft)

    def draft(self, name: str) -> Tensor:
        """float32, flat, to be filled: the new residual, once the step commits."""
        return self._ledger.draft(name, 0, self._ledger.sizes[name])

    def clear(self, name: str, start: int, count: int) -> None:
        """Elements `start` on of parameter `name` were sent exactly: their residual is zero, once the step commits."""
        self._ledger.clear(name, start, count)

    def changes(self, name: str) -> Iterator[tuple[int, Tensor | None, Tensor]]:
        """Of this step, pending: the first element, what was owed to it and those after it, and what will be, float32 [n];
        None for zeros."""
        for start, draft in self._ledger.drafts(name):
            before = self._ledger.get(name, start, draft.numel())
            yield start, None if before is None else before * self._scale, draft

    def size(self, name: str) -> int:
        """Elements of parameter `name`."""
        return self._ledger.sizes[name]

    def commit(self) -> None:
        """The step is committed: its residuals become real."""
        self._ledger.commit(self._scale)
        self._rate = self._next_rate
        self._scale = 1.0

    def discard(self) -> None:
        """The step is discarded or skipped: residuals and learning rate stay as they were."""
        self._ledger.discard()
        self._next_rate, self._scale = self._rate, 1.0

    def absorb(self, state: State) -> None:
        """Add somebody else's `state_dict`: a leaver's, or the second residual before shards are cut anew.

        Raises:
            ValueError: it is of another model.
        """
        self._ledger.add(state)

    def norm(self) -> float:
        """The L2 norm of the residuals: what is lost if this rank is killed now."""
        return self._ledger.norm()

    def state_dict(self) -> dict[str, Tensor]:
        """The committed residuals, flat, by parameter name; parameters without one are absent."""
        return self._ledger.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Take over a `state_dict`, in the place of what is there. Raises ValueError when it is of another model."""
        self._ledger.load_state_dict(state)


def lost_norm(residual: float, gradient: float) -> float:
    """`residual_lost_norm`: a killed rank's last known residual norm relative to the norm of the reduced gradient."""
    if gradient == 0.0:
        return 0.0 if residual == 0.0 else float("inf")
    return residual / gradient
