"""What a spiking layer did lately: of its last hundred forward passes, the spike rate and the membranes' moments."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

CAPACITY = 100


class Rings:
    """The last `CAPACITY` values of each statistic, oldest first; local to the process and no part of a model's state.

    They are numbers of what this rank has seen, so they differ between replicas and are never saved.
    """

    def __init__(self) -> None:
        self._rows: deque[Tensor] = deque(maxlen=CAPACITY)

    def record(self, spikes: Tensor, membranes: Tensor) -> None:
        """Add the statistics of one forward pass, from tensors [T, B, N]; an empty batch adds nothing."""
        if membranes.numel() == 0:
            return
        with torch.no_grad():
            flat = membranes.detach().reshape(-1)
            mean = flat.mean()
            variance = torch.dot(flat, flat) / flat.numel() - mean * mean
            row = torch.stack((spikes.detach().mean(), mean, variance.clamp_min(0).sqrt()))
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def spike_rate(self) -> list[float]:
        """The part of the slots (step, sample, neuron) with a spike."""
        return self._column(0)

    @property
    def membrane_mean(self) -> list[float]:
        """Before the reset."""
        return self._column(1)

    @property
    def membrane_std(self) -> list[float]:
        """Before the reset; the population standard deviation."""
        return self._column(2)

    def _column(self, number: int) -> list[float]:
        return [float(row[number]) for row in self._rows]
