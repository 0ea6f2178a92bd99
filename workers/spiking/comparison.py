"""All spike encodings of the same values side by side, with what tells them apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.spiking.encoders import METHODS, Encoding
from workers.spiking.traces import first_spike_times


@dataclass(frozen=True)
class Encoded:
    """The spikes of one method, float32 [T, B, ...], and their statistics.

    `spike_rate` is the part of the slots (step, sample, neuron) with a spike, `sparsity` the part without.
    `mean_first_spike` is in steps, T for a neuron that stays silent. `time_std` is the standard deviation, in steps, of
    the times of all spikes; 0 without any. `entropy` is that of one slot, in bits: -p log2 p - (1 - p) log2 (1 - p) with
    p the spike rate.
    """

    spikes: Tensor
    spike_rate: float
    sparsity: float
    mean_first_spike: float
    time_std: float
    entropy: float


def encode_all(
    x: Tensor, ids: Tensor | NDArray[np.int64], seed: int, epoch: int, encoding: Encoding | None = None
) -> dict[str, Encoded]:
    """Every method's spikes of the values `x` [B, *F] of the samples `ids` [B] (QS-4).

    The settings other than the method are those of `encoding`; without one, the defaults with 128 steps.

    Raises:
        ValueError: as `Encoding` and its `encode`.
    """
    encoding = encoding or Encoding(num_steps=128)
    return {method: describe(replace(encoding, method=method).encode(x, ids, seed, epoch)) for method in METHODS}


def describe(spikes: Tensor) -> Encoded:
    """The statistics of `spikes` [T, B, ...]."""
    per_step = spikes.flatten(1).to(torch.float64).sum(dim=1)
    rate = float(per_step.sum()) / max(spikes.numel(), 1)
    chances = torch.tensor([rate, 1 - rate], dtype=torch.float64)
    return Encoded(
        spikes=spikes,
        spike_rate=rate,
        sparsity=1 - rate,
        mean_first_spike=float(first_spike_times(spikes).mean(dtype=torch.float64)),
        time_std=_time_std(per_step),
        entropy=float(-torch.xlogy(chances, chances).sum() / math.log(2.0)),
    )


def _time_std(per_step: Tensor) -> float:
    """Of the spike times, given the number of spikes in each step, [T]."""
    total = per_step.sum().clamp_min(1)
    times = torch.arange(len(per_step), dtype=per_step.dtype, device=per_step.device)
    mean = (per_step * times).sum() / total
    return float(((per_step * (times - mean) ** 2).sum() / total).sqrt())
