"""What a codec did to weights, in numbers (QN-15)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from workers.qins.codec import SMALLEST


@dataclass(frozen=True)
class Fidelity:
    """Weights beside what they were decoded to, over all of `num_weights`. Shares from 0 to 1.

    `mean_relative_error` = mean |d - w| / |w| over |w| ≥ 1e-8; `nrmse` = ‖d - w‖ / ‖w‖; `sign_preservation`: how many
    have sign(d) = sign(w), zeros included.
    """

    num_weights: int
    mean_relative_error: float
    nrmse: float
    sign_preservation: float


def fidelity(pairs: Iterable[tuple[Tensor, Tensor]]) -> Fidelity:
    """Of pairs (weight, decoded) of equal shapes, all together, in float64; 0, 0 and 1 where there are none."""
    count = num_large = num_kept = 0
    relative = squares = norm = 0.0
    for weight, decoded in pairs:
        w, d = weight.detach().double(), decoded.detach().double()
        large = w.abs() >= SMALLEST
        count, num_large = count + w.numel(), num_large + int(large.sum())
        num_kept += int((d.sign() == w.sign()).sum())
        relative += float(((d - w)[large] / w[large]).abs().sum())
        squares, norm = squares + float((d - w).square().sum()), norm + float(w.square().sum())
    nrmse = math.sqrt(squares / norm) if norm else 0.0
    return Fidelity(count, relative / max(1, num_large), nrmse, num_kept / count if count else 1.0)
