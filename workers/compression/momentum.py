"""Momentum correction and the density ramp of deep gradient compression (Lin et al. 2018; CC-13)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from workers.compression.finite import refuse_non_finite
from workers.compression.ledger import Ledger, State

RAMP = (0.25, 0.0625, 0.0156, 0.004, 0.001)
"""Densities of the first epochs."""


def ramped_density(epoch: int, target: float) -> float:
    """The density of epoch 0, 1, …: that of `RAMP`, but never below `target`; after the ramp, `target`."""
    return max(RAMP[epoch], target) if epoch < len(RAMP) else target


class MomentumCorrection:
    """In the place of `ErrorFeedback` for `topk` and `threshold`: momentum is accumulated before the choice, not after.

    u ← m u + g;  v ← v + u;  v is encoded. What is sent of v is taken off it, and u is zero where something was sent
    (momentum masking), so no stale momentum follows. The optimizer must have no momentum of its own.
    Over any window, Σ sent + Σ v = Σ u.

    Args:
        sizes: elements of each parameter, by name.
        momentum: m, in [0, 1).
    """

    def __init__(self, sizes: Mapping[str, int], momentum: float) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"the momentum is at least 0 and below 1, and not {momentum:g}; write 0.9")
        self.momentum = momentum
        self._velocity, self._owed = Ledger(sizes), Ledger(sizes)

    def compensate(self, name: str, gradient: Tensor, *, start: int = 0, out: Tensor | None = None) -> Tensor:
        """v, float32 of the shape of `gradient`, which is elements `start` on of the parameter `name`.

        u moves with the commit of the step, so what is compensated has to be settled before it.

        Raises:
            NonFiniteError: it holds NaN or Inf.
        """
        if out is None:
            out = torch.empty(gradient.shape)
        count = gradient.numel()
        velocity, owed = self._velocity.get(name, start, count), self._owed.get(name, start, count)
        draft = self._velocity.draft(name, start, count)
        draft.copy_(gradient.reshape(-1))
        if velocity is not None:
            draft.add_(velocity, alpha=self.momentum)
        out.copy_(draft.view(gradient.shape))
        if owed is not None:
            out.add_(owed.view(gradient.shape))
        refuse_non_finite(name, out)
        return out

    def settle(self, name: str, compensated: Tensor, decoded: Tensor, *, start: int = 0) -> None:
        """What became of it, after `compensate` in the same step: v − `decoded`, and u where that is zero."""
        count = compensated.numel()
        sent = decoded.reshape(-1)
        torch.sub(compensated.reshape(-1), sent, out=self._owed.draft(name, start, count))
        self._velocity.pending(name, start).masked_fill_(sent != 0, 0.0)

    def commit(self) -> None:
        """The step is committed: u and v become real."""
        self._velocity.commit()
        self._owed.commit()

    def discard(self) -> None:
        """The step is discarded or skipped: u and v stay as they were."""
        self._velocity.discard()
        self._owed.discard()

    def absorb(self, state: State) -> None:
        """Add a leaver's `state_dict`, both u and v."""
        velocity, owed = _apart(state)
        self._velocity.add(velocity)
        self._owed.add(owed)

    def norm(self) -> float:
        """The L2 norm of v: what is lost if this rank is killed now."""
        return self._owed.norm()

    def owed(self) -> dict[str, Tensor]:
        """v, flat, by parameter: what is still to be sent."""
        return self._owed.state_dict()

    def state_dict(self) -> dict[str, Tensor]:
        """u and v, flat, as `velocity/NAME` and `owed/NAME`."""
        velocity = {f"velocity/{name}": tensor for name, tensor in self._velocity.state_dict().items()}
        return velocity | {f"owed/{name}": tensor for name, tensor in self._owed.state_dict().items()}

    def load_state_dict(self, state: State) -> None:
        """Take over a `state_dict`, in the place of what is there. Raises ValueError when it is of another model."""
        velocity, owed = _apart(state)
        self._velocity.load_state_dict(velocity)
        self._owed.load_state_dict(owed)


def _apart(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    kinds: dict[str, dict[str, Tensor]] = {"velocity": {}, "owed": {}}
    for key, tensor in state.items():
        kind, _, name = key.partition("/")
        if kind not in kinds:
            raise ValueError(f"{key} is no state of momentum correction; its keys are velocity/NAME and owed/NAME")
        kinds[kind][name] = tensor
    return kinds["velocity"], kinds["owed"]
