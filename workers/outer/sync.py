"""The steps that a rank takes alone, and the outer step that merges what all ranks have learned in them (CC-24).

DiLoCo (Douillard et al., 2023): each rank r goes h inner steps from the common parameters θ₀ to its own θ_r. Then, with n_r
samples on rank r and μ and η of the outer step,

    Δ = Σ n_r (θ₀ − θ_r) / Σ n_r        v ← μ v + Δ        θ ← θ₀ − η (Δ + μ v)

The differences go the way of gradients, with their weights: to the engine, Δ is the gradient of one step. θ and v are the
same on all ranks, and so is the scheduler, which is stepped h times. The inner optimizer's moments are each rank's own.

Where differences go out before the round ends, θ_r is that of the time when they go. What the rank learns afterwards stays
its own: it begins the next round so far ahead of θ, and the difference that it sends then has it too. So all of it arrives,
once, and nothing is learned twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workers.collectives.shared import HostExchange
from workers.compression.finite import refuse_non_finite
from workers.outer.config import SyncConfig
from workers.outer.host import HostGradient
from workers.state import Captured, ReplicatedState


class OuterSync:
    """Of one rank; the replicated part of it is the velocity v, float32 of each parameter's shape.

    Args:
        state: of the model, the inner optimizer and the scheduler.
        config: μ and η.
        clip_norm: largest L2 norm of the gradient of an inner step; None does not clip.
        host_gradient: what ranks of a host sum their gradients in.
    """

    def __init__(
        self, state: ReplicatedState, config: SyncConfig, clip_norm: float | None, host_gradient: HostGradient | None = None
    ) -> None:
        self._state, self._config, self._clip_norm, self._host_gradient = state, config, clip_norm, host_gradient
        self._trained = {name: p for name, p in state.parameters.items() if p.requires_grad}
        self._velocity = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self._trained.items()}
        self._stepped: set[str] = set()
        self._sent: dict[str, Tensor] = {}
        self.ahead: dict[str, Tensor] = {}
        """By name: what this rank adds to θ when a round begins. It is no part of the state."""
        self._next_ahead: dict[str, Tensor] = {}
        self.start = Captured()
        """What training has changed since is a rank's own, and undone with the round."""
        state.attached["outer"] = self
        state.own_moments = True

    @torch.no_grad()
    def begin(self) -> None:
        """A round of inner steps begins from the committed state."""
        self.replay()
        self._next_ahead = {}
        for name, ahead in self.ahead.items():
            self._trained[name].add_(ahead)
        self._stepped |= self.ahead.keys()

    def replay(self) -> None:
        """What another rank has reduced follows, on the committed state."""
        self.start = self._state.capture_training()
        self._stepped.clear()
        self._sent.clear()

    def inner_step(self, host: HostExchange | None, stop: Callable[[], bool]) -> None:
        """The gradients of an inner batch are complete: one step of optimizer and scheduler.

        Args:
            host: sums the gradients of the ranks that step together; None where this rank steps alone.
            stop: whether to give up.

        Raises:
            Abandoned, ExchangeError: the sum did not come about.
        """
        if host is not None and self._host_gradient is not None:
            self._host_gradient.sum(host, stop)
        graded = {name: p for name, p in self._trained.items() if p.grad is not None}
        self._stepped |= graded.keys()
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(graded.values(), self._clip_norm)
        self._state.optimizer.step()
        if self._state.scheduler is not None:
            self._state.scheduler.step()
        for parameter in self._trained.values():
            parameter.grad = None

    def differences(self, weight: float) -> None:
        """Put (θ₀ − θ_r) · weight where gradients are, of all that was not sent before; parameters that no step has changed
        get none."""
        self._put_differences(weight, self._trained.keys() - self._sent.keys())

    def send(self, weight: float, names: Iterable[str]) -> None:
        """The same of the parameters `names`, in the middle of a round: that is what is sent of them."""
        names = list(names)
        self._put_differences(weight, names)
        self._sent |= {name: self._trained[name].detach().clone() for name in names}

    @torch.no_grad()
    def end(self) -> None:
        """All inner steps are taken. Raises NonFiniteError where what this rank has learned last is NaN or Inf."""
        self._next_ahead = {name: self._trained[name].detach() - sent for name, sent in self._sent.items()}
        for name, ahead in self._next_ahead.items():
            refuse_non_finite(name, ahead)

    def commit(self, *, took_part: bool) -> None:
        """The round is committed. Who took no part in it begins the next one at θ."""
        self.ahead, self._next_ahead = self._next_ahead if took_part else {}, {}

    def lose(self) -> None:
        """The state was taken over as a whole."""
        self.ahead, self._next_ahead = {}, {}

    @torch.no_grad()
    def _put_differences(self, weight: float, names: Iterable[str]) -> None:
        for name in names:
            parameter = self._trained[name]
            parameter.grad = None
            if name in self._stepped:
                start = self._start_of(name, parameter)
                parameter.grad = (start.float() - parameter.float()).mul_(weight).to(parameter.dtype)

    def put_back(self, *, moments: bool) -> None:
        """Return to θ₀ and to the schedule of the round's start; with `moments`, to the optimizer's state as well."""
        self._state.restore_training(self.start, moments=moments)

    @torch.no_grad()
    def merge(self, inner_steps: int) -> None:
        """The outer step, from θ₀; Δ is where gradients are, and a parameter without one stays as it is."""
        lr, momentum = self._config.outer_lr, self._config.outer_momentum
        for name, parameter in self._trained.items():
            if parameter.grad is not None:
                difference, velocity = parameter.grad.float(), self._velocity[name]
                velocity.mul_(momentum).add_(difference)
                parameter.add_(torch.add(difference, velocity, alpha=momentum), alpha=-lr)
        if self._state.scheduler is not None:
            for _ in range(inner_steps):
                self._state.scheduler.step()

    def _start_of(self, name: str, parameter: Tensor) -> Tensor:
        return self.start.tensors[f"parameter.{name}"].to(parameter.device)

    # ------------------------------------------------------------------ replicated state

    def state_dict(self) -> dict[str, Tensor]:
        return {name: velocity.cpu().clone() for name, velocity in self._velocity.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state_dict`; of a job that did not merge there is none, and v is 0."""
        for name, velocity in self._velocity.items():
            if name in state:
                velocity.copy_(state[name])
            else:
                velocity.zero_()

    def plain_state(self) -> dict[str, Any]:
        return {}

    def load_plain_state(self, plain: Mapping[str, Any]) -> None: ...
