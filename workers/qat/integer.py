"""Integer arithmetic as hardware does it, to hold fake-quantization against (QS-19)."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.qat.scales import code_limits

MOST_INPUTS = (2**31 - 1) // (128 * 128)
"""A sum of more products of two int8 codes could leave int32."""


def integer_linear(
    x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None, y_scale: Tensor, bits: int = 8
) -> Tensor:
    """A linear layer in codes: int8 × int8, summed in int32, then one rescaling in float.

    y = clamp(round((Σ x·w · (x_scale · weight_scale) + bias) / y_scale), qmin, qmax).

    Args:
        x, weight: int8 [B, in] and int8 [out, in].
        x_scale, y_scale: float []; weight_scale: float [out]; bias: float [out].
        bits: of the result.

    Returns:
        int8 [B, out].

    Raises:
        ValueError: more inputs than an int32 sum can hold.
    """
    if x.shape[1] > MOST_INPUTS:
        raise ValueError(f"{x.shape[1]} inputs could overflow an int32 sum: split the layer, {MOST_INPUTS} are safe")
    sums = x.to(torch.int32) @ weight.to(torch.int32).T
    y = sums.to(torch.float64) * (x_scale.double() * weight_scale.double())
    y = y if bias is None else y + bias.double()
    return torch.round(y / y_scale.double()).clamp(*code_limits(bits)).to(torch.int8)
