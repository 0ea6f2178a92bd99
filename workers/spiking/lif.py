"""Leaky integrate-and-fire layers with learnable leak, threshold and reset value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workers.spiking.rings import Rings
from workers.spiking.surrogates import FastSigmoid, Surrogate, bounded
from workers.spiking.unrolled import run_unrolled

StateQuant = Callable[[Tensor, Tensor], Tensor]
"""From membranes [B, N] and the threshold to quantized membranes [B, N]."""

LOWEST_THRESHOLD = 0.1
RESET_MARGIN = 1e-3
"""The reset value stays this far below the threshold."""


class LIFOutput(NamedTuple):
    """`spikes` and `membranes` (before the reset), both [T, B, N], and the `state` after the last step, [B, N]."""

    spikes: Tensor
    membranes: Tensor
    state: Tensor


class Leak(nn.Module):
    """The leak beta of a layer, 0 < beta < 1: the sigmoid of what is learnt, so that no step leaves the interval.

    Args:
        beta: at first; 0.9 to 0.98 is usual.
        learnable: a parameter if true, else a buffer.
        size: N for one beta per neuron; None for one in all.
    """

    beta_logit: Tensor

    def __init__(self, beta: float, learnable: bool, size: int | None) -> None:
        super().__init__()
        if not 0 < beta < 1:
            raise ValueError(f"beta, the part of a membrane that stays, must be between 0 and 1, not {beta}")
        self._hold("beta_logit", math.log(beta / (1 - beta)), learnable, size)

    def _hold(self, name: str, value: float, learnable: bool, size: int | None) -> None:
        values = torch.full((size,) if size is not None else (), value)
        if learnable:
            self.register_parameter(name, nn.Parameter(values))
        else:
            self.register_buffer(name, values)

    @property
    def beta(self) -> Tensor:
        """float [] or [N]."""
        return torch.sigmoid(self.beta_logit)


class LIF(Leak):
    """A layer of leaky integrate-and-fire neurons (QS-5).

    In each step u = beta state + I; s = 1 if u >= theta, else 0; then the state becomes `v_reset` where s is 1 and
    stays u elsewhere, or, with `reset="subtract"`, becomes u - theta s. No gradient passes through the spike in the reset.

    Args:
        surrogate: its backward slope; fast sigmoid with k = 25 if None.
        beta: the part of a membrane that stays; learnt as a logit.
        theta: threshold, held at 0.1 or above.
        v_reset: held below theta.
        reset: `value` or `subtract`.
        learnable: beta, theta and v_reset (if it is used) are parameters, otherwise buffers.
        size: N for parameters of each neuron; None for one of the layer.
        state_quant: applied to u before it is compared with the threshold; None for none.
        record: keep `rings`, statistics of the last 100 forward passes; about a tenth of the layer's time.

    Raises:
        ValueError: beta, theta, v_reset or reset is impossible.
    """

    theta: Tensor
    v_reset: Tensor

    def __init__(
        self,
        surrogate: Surrogate | None = None,
        *,
        beta: float = 0.95,
        theta: float = 1.0,
        v_reset: float = 0.0,
        reset: str = "value",
        learnable: bool = True,
        size: int | None = None,
        state_quant: StateQuant | None = None,
        record: bool = True,
    ) -> None:
        super().__init__(beta, learnable, size)
        if theta < LOWEST_THRESHOLD:
            raise ValueError(f"theta, the threshold, must be at least {LOWEST_THRESHOLD}, not {theta}")
        if v_reset > theta - RESET_MARGIN:
            raise ValueError(f"v_reset must be below theta, {theta}, not {v_reset}: a reset neuron would fire again")
        if reset not in ("value", "subtract"):
            raise ValueError(f"reset is {reset!r}; write value or subtract")
        self._hold("theta", theta, learnable, size)
        self._hold("v_reset", v_reset, learnable and reset == "value", size)
        self.surrogate = surrogate if surrogate is not None else FastSigmoid()
        self.reset = reset
        self.state_quant = state_quant
        self.record = record
        self.rings = Rings()

    @property
    def threshold(self) -> Tensor:
        """`theta` inside its bound: float [] or [N]."""
        return bounded(self.theta, LOWEST_THRESHOLD, math.inf)

    def reset_value(self, threshold: Tensor) -> Tensor:
        """`v_reset` inside its bound: float [] or [N]."""
        return bounded(self.v_reset, -math.inf, threshold.detach() - RESET_MARGIN)

    def forward(self, currents: Tensor, state: Tensor | None = None) -> LIFOutput:
        """From currents [T, B, N] and the state [B, N] that an earlier call returned, zeros if None."""
        if state is None:
            state = torch.zeros_like(currents[0])
        threshold = self.threshold
        numbers = (self.beta, threshold, self.reset_value(threshold))
        if self.state_quant is None or not getattr(self.state_quant, "fake_quant", True):
            run = run_unrolled(self.surrogate, self.reset == "subtract", currents, state, *numbers)
            output = LIFOutput(*run)
        else:
            output = self.forward_stepwise(currents, state, *numbers)
        if self.record:
            self.rings.record(output.spikes, output.membranes)
        return output

    def forward_stepwise(
        self, currents: Tensor, state: Tensor, beta: Tensor, threshold: Tensor, reset_value: Tensor
    ) -> LIFOutput:
        """The definition, one step after the other: with `state_quant`, and the reference of the faster path."""
        spikes, membranes = [], []
        for current in currents.unbind():
            u = beta * state + current
            if self.state_quant is not None:
                u = self.state_quant(u, threshold)
            s = self.surrogate(u, threshold)
            fired = s.detach()
            state = u - threshold * fired if self.reset == "subtract" else (1 - fired) * u + fired * reset_value
            spikes.append(s)
            membranes.append(u)
        return LIFOutput(torch.stack(spikes), torch.stack(membranes), state)

    def extra_repr(self) -> str:
        return f"reset={self.reset}, state_quant={self.state_quant is not None}"


class Integrator(Leak):
    """A layer that leaks and integrates and never fires: u = beta u + I. For outputs that are read as membranes.

    Args:
        beta, learnable, size: as for `LIF`.
    """

    def __init__(self, *, beta: float = 0.95, learnable: bool = True, size: int | None = None) -> None:
        super().__init__(beta, learnable, size)

    def forward(self, currents: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From currents [T, B, N] and a state [B, N], zeros if None, to membranes [T, B, N] and the state."""
        u = torch.zeros_like(currents[0]) if state is None else state
        beta, membranes = self.beta, []
        for current in currents.unbind():
            u = beta * u + current
            membranes.append(u)
        return torch.stack(membranes), u
