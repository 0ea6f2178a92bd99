"""SQUAT: the membrane of a spiking neuron on a few levels, dense where it decides (QS-21).

After Venkatesh et al., "SQUAT: Stateful Quantization-Aware Training in Recurrent Spiking Neural Networks", 2024. The
levels are the threshold θ times fixed numbers, so they follow a threshold that learns; 0 and θ are among them.
Spikes are kept under currents that vary in time; under constant ones 2 bits lose a seventh: small steps round to nothing.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

GAP_RATIO = {2: 0.7, 4: 0.8, 8: 0.97}
"""m: a gap between levels is m times its neighbour farther from θ."""

LOWEST, HIGHEST = -1.0, 1.2
"""The ends of the levels, in θ."""

Levels = Literal["centred", "uniform"]


class StateQuantizer(nn.Module):
    """Takes each membrane to the nearest of 2^bits levels while `fake_quant` is true; stored it would take `bits` bits.

    The gradient to the membrane is 1 within the levels and 0 outside; the threshold gets none from here.

    Args:
        bits: 8, 4 or 2.
        levels: `centred`, or `uniform` for comparison.

    Raises:
        ValueError: other bits or levels.
    """

    def __init__(self, bits: int = 8, levels: Levels = "centred", *, fake_quant: bool = False) -> None:
        super().__init__()
        self.bits, self.levels, self.fake_quant = bits, levels, fake_quant
        self._relative = relative_levels(bits, levels)
        self._tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, u: Tensor, theta: Tensor) -> Tensor:
        """Membranes `u` [..., N] with the threshold `theta`, [] or [N], above 0; of the shape and dtype of `u`."""
        if not self.fake_quant:
            return u
        result: Tensor = _Nearest.apply(u, theta.detach().to(u.dtype), *self._table(u))
        return result

    def codes(self, u: Tensor, theta: Tensor) -> Tensor:
        """int8, of the shape of `u`: the number of the level, less 2^(bits - 1), as `workers.qat.packing` takes it."""
        levels, midpoints = self._table(u)
        return (torch.bucketize(u / theta, midpoints) - len(levels) // 2).to(torch.int8)

    def _table(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Levels [2^bits] and the midpoints between them [2^bits - 1], in θ, of the dtype and device of `u`."""
        key = (u.dtype, u.device)
        if key not in self._tables:
            midpoints = (self._relative[1:] + self._relative[:-1]) / 2
            self._tables[key] = self._relative.to(u), midpoints.to(u)
        return self._tables[key]

    def extra_repr(self) -> str:
        return f"bits={self.bits}, levels={self.levels!r}, fake_quant={self.fake_quant}"


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, theta: Tensor, levels: Tensor, midpoints: Tensor) -> Tensor:
        ratio = u / theta
        if u.requires_grad:
            ctx.save_for_backward((ratio >= LOWEST) & (ratio <= float(levels[-1])))
        return levels[torch.bucketize(ratio, midpoints, out_int32=True)] * theta

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, gradients[0], 0.0), None, None, None


def relative_levels(bits: int, levels: Levels = "centred") -> Tensor:
    """The 2^bits levels in units of θ, ascending, float64.

    `uniform`: equal gaps over [-1, 1.2]. `centred`: ⌊2^bits · 2 / 2.2⌋ gaps from -1 to 1 and the other ones from 1 to
    1.2, each gap m times its neighbour farther from 1; then the level nearest 0 becomes 0.
    """
    if bits not in GAP_RATIO:
        raise ValueError(f"neuron state can have 8, 4 or 2 bits, not {bits}")
    if levels not in ("centred", "uniform"):
        raise ValueError(f"levels can be centred or uniform, not {levels!r}")
    if levels == "uniform":
        return torch.linspace(LOWEST, HIGHEST, 2**bits, dtype=torch.float64)
    below = math.floor(2**bits * 2 / (HIGHEST - LOWEST))
    above = 2**bits - 1 - below
    rising = 1.0 - _distances(below, 1.0 - LOWEST, GAP_RATIO[bits]).flip(0)
    falling = 1.0 + _distances(above, HIGHEST - 1.0, GAP_RATIO[bits])
    result = torch.cat((rising, torch.ones(1, dtype=torch.float64), falling))
    result[result.abs().argmin()] = 0.0
    return result


def _distances(gaps: int, length: float, ratio: float) -> Tensor:
    """How far from θ the levels on one side of it are, [gaps], ascending; the last one is `length`."""
    widths = ratio ** torch.arange(gaps - 1, -1, -1, dtype=torch.float64)
    distances = widths.cumsum(0)
    return distances * (length / distances[-1]) if gaps else distances
