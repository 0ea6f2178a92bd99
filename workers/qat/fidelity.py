"""How much of a spiking network's activity survives quantization, layer by layer, with the same weights (QS-30).

Sums of one rank's shard, float64, that are added over ranks (QS-39); the ratios are taken of the totals, so one rank and
many come to one result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from workers.spiking.traces import traces

DECAY = 0.9
"""Of the traces."""

_CONSTANT = 1e-12
"""A variance below this part of the mean square is rounding."""

_KINDS = ("n", "x", "y", "xx", "yy", "xy", "dd", "on", "off", "both")


@torch.no_grad()
def spike_sums(on: Mapping[str, Tensor], off: Mapping[str, Tensor]) -> dict[str, float]:
    """Compare the spikes of each layer with fake-quantization `on` and `off`.

    Args:
        on, off: by layer, [T, B, N] of zeros and ones.

    Returns:
        Of each layer `{kind}.{layer}`: `n`, the numbers; `x`, `y`, `xx`, `yy`, `xy`, `dd`, sums over traces with decay
        0.9, x with quantizers on, y off, d their difference; `on`, `off`, `both`, spikes.
    """
    sums: dict[str, float] = {}
    for layer in off:
        a, b = on[layer], off[layer]
        x, y = traces(a, DECAY).double().flatten(), traces(b, DECAY).double().flatten()
        moments = (x.sum(), y.sum(), x @ x, y @ y, x @ y, (x - y).square().sum(), a.sum(), b.sum(), (a * b).sum())
        sums[f"n.{layer}"] = float(x.numel())
        sums |= {f"{kind}.{layer}": _on_grid(float(value)) for kind, value in zip(_KINDS[1:], moments, strict=True)}
    return sums


def _on_grid(value: float) -> float:
    """The nearest multiple of 2^-26: sums of such numbers are exact below 2^27, and so the same in any order."""
    return round(value * 2.0**26) / 2.0**26


def correlation(sums: Mapping[str, float], layer: str) -> float:
    """Pearson's correlation of the traces; of constant traces 1 if they are equal, else 0."""
    n, x, y, xx, yy, xy, dd = (sums[f"{kind}.{layer}"] for kind in _KINDS[:7])
    return pearson(n, x, y, xx, yy, xy, equal=dd == 0.0)


def raw_correlation(sums: Mapping[str, float], layer: str) -> float:
    """The same of the spikes themselves; for reports only."""
    n, on, off, both = (sums[f"{kind}.{layer}"] for kind in ("n", "on", "off", "both"))
    return pearson(n, on, off, on, off, both, equal=on == off == both)


def rate_change(sums: Mapping[str, float], layer: str) -> float:
    """|spikes with quantizers on - off| / off; infinite where only quantization makes a layer fire."""
    on, off = sums[f"on.{layer}"], sums[f"off.{layer}"]
    if off == 0.0:
        return 0.0 if on == 0.0 else math.inf
    return abs(on - off) / off


def pearson(n: float, x: float, y: float, xx: float, yy: float, xy: float, *, equal: bool) -> float:
    """(n·Σxy - Σx·Σy) / √((n·Σxx - (Σx)²)(n·Σyy - (Σy)²)); where a side is constant, 1 if `equal`, else 0."""
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    if spread_x <= _CONSTANT * n * xx or spread_y <= _CONSTANT * n * yy:
        return 1.0 if equal else 0.0
    return (n * xy - x * y) / math.sqrt(spread_x * spread_y)
