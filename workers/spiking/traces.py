"""Traces, in which a spike that comes a step later is a small difference and not a miss, and times of first spikes."""

from __future__ import annotations

import torch
from torch import Tensor

DECAY = 0.9


def traces(spikes: Tensor, decay: float = DECAY) -> Tensor:
    """r_t = decay * r_{t-1} + s_t, with r before the first step 0: [T, ...] of the dtype of `spikes` [T, ...].

    Differentiable. Raises ValueError where `decay` is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the decay of a spike trace must be at least 0 and below 1, not {decay}")
    trace, steps = torch.zeros_like(spikes[0]), []
    for s in spikes.unbind():
        trace = decay * trace + s
        steps.append(trace)
    return torch.stack(steps)


def first_spike_times(spikes: Tensor) -> Tensor:
    """The step of each neuron's first spike, T if there is none: [...] for `spikes` [T, ...]; differentiable.

    It is sum over t of t s_t q_t, plus T q_T, where q_t = product over v < t of (1 - s_v) says that nothing has spiked
    yet. As s_t q_t = q_t - q_{t+1}, that is the sum of q_1 ... q_T.
    """
    return torch.cumprod(1 - spikes, dim=0).sum(dim=0)
