"""The time loop of a layer of LIF neurons as one autograd function: a twenty-fifth of the graph, and no copies kept.

Its backward pass is back-propagation through time by hand (Werbos, 1990):

    g_t = dL/du_t + dL/ds_t h(u_t - theta) + carry_t r_t,    carry_{t-1} = beta g_t,

with r_t = 1 - s_t where a spike sets the membrane to v_reset and 1 where it subtracts theta. It consists of differentiable
operations on inputs and outputs, so that it can be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workers.spiking.surrogates import Surrogate


def run_unrolled(
    surrogate: Surrogate, subtract: bool, currents: Tensor, state: Tensor, beta: Tensor, theta: Tensor, v_reset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes and membranes before the reset, [T, B, N], and the state [B, N] after the last step.

    Args:
        surrogate: the backward slope.
        subtract: a spike lowers the membrane by theta, instead of setting it to `v_reset`.
        currents, state: [T, B, N] and [B, N].
        beta, theta, v_reset: of a shape that broadcasts to [B, N].
    """
    outputs: tuple[Tensor, Tensor, Tensor] = _Unrolled.apply(
        surrogate, subtract, currents, state, beta, theta, v_reset, *surrogate.values()
    )
    return outputs


class _Unrolled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        surrogate: Surrogate,
        subtract: bool,
        currents: Tensor,
        state: Tensor,
        beta: Tensor,
        theta: Tensor,
        v_reset: Tensor,
        *values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        first = state
        spikes, membranes = torch.empty_like(currents), torch.empty_like(currents)
        for current, s, u in zip(currents.unbind(), spikes.unbind(), membranes.unbind(), strict=True):
            torch.mul(state, beta, out=u)
            u += current
            torch.ge(u, theta, out=s)
            state = _after_reset(subtract, u, s, theta, v_reset)
        ctx.surrogate, ctx.subtract = surrogate, subtract
        ctx.save_for_backward(spikes, membranes, first, beta, theta, v_reset, *values)
        ctx.set_materialize_grads(False)
        return spikes, membranes, state

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        spikes, membranes, state, beta, theta, v_reset, *values = ctx.saved_tensors
        to_spikes, to_membranes, to_state = gradients
        spikes, sums = spikes.detach(), _Sums(ctx.needs_input_grad[4:], (beta, theta, v_reset, *values))
        carry = torch.zeros_like(state) if to_state is None else to_state
        to_currents = []
        for t in range(len(spikes) - 1, -1, -1):
            u, s = membranes[t], spikes[t]
            g = _through_reset(ctx.subtract, carry, s, sums)
            if to_spikes is not None:
                g = g + _through_spike(ctx.surrogate, to_spikes[t], u - theta, values, sums)
            if to_membranes is not None:
                g = g + to_membranes[t]
            if sums.needed[_BETA]:
                before = state if t == 0 else _after_reset(ctx.subtract, membranes[t - 1], spikes[t - 1], theta, v_reset)
                sums.add(_BETA, g * before)
            to_currents.append(g)
            carry = g * beta
        return None, None, torch.stack(to_currents[::-1]), carry, *sums.totals


_BETA, _THETA, _V_RESET, _VALUES = range(4)


class _Sums:
    """The gradients to beta, theta, v_reset and the surrogate's values, as they add up over time."""

    def __init__(self, needed: tuple[bool, ...], like: tuple[Tensor, ...]) -> None:
        self.needed = needed
        self.totals: list[Tensor | None] = [
            torch.zeros_like(one) if wanted else None for one, wanted in zip(like, needed, strict=True)
        ]

    def add(self, number: int, gradient: Tensor, sign: float = 1) -> None:
        """Add `sign` times `gradient`, which broadcasting has made larger than the tensor it belongs to."""
        total = self.totals[number]
        if total is not None:
            self.totals[number] = torch.add(total, gradient.sum_to_size(total.shape), alpha=sign)


def _after_reset(subtract: bool, u: Tensor, s: Tensor, theta: Tensor, v_reset: Tensor) -> Tensor:
    return u - theta * s if subtract else torch.where(s > 0, v_reset, u)


def _through_reset(subtract: bool, carry: Tensor, s: Tensor, sums: _Sums) -> Tensor:
    """From the gradient to the membrane after the reset to the one before it."""
    lost = carry * s
    if subtract:
        sums.add(_THETA, lost, sign=-1)
        return carry
    sums.add(_V_RESET, lost)
    return carry - lost


def _through_spike(surrogate: Surrogate, gradient: Tensor, x: Tensor, values: list[Tensor], sums: _Sums) -> Tensor:
    """From the gradient to the spikes to the one to the membranes."""
    to_u = gradient * surrogate.slope(x, *values)
    sums.add(_THETA, to_u, sign=-1)
    if any(sums.needed[_VALUES:]):
        for number, to_value in enumerate(surrogate.pull_back(gradient, x, *values), _VALUES):
            sums.add(number, to_value)
    return to_u
