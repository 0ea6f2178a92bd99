"""Fake-quantization: numbers become those that integer codes stand for, and gradients pass straight through.

`clamp(round(x / s), qmin, qmax) · s`, halves to even; the gradient is 1 inside the range and 0 outside (QS-18; Bengio,
Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013). Plain tensor operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workers.qat.scales import code_limits


def codes(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """clamp(round(x / scale), qmin, qmax) as floats, of the shape and dtype of `x`; `scale` broadcasts."""
    return torch.div(x, scale).round_().clamp_(*code_limits(bits))


def fake_quantize(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The numbers that the nearest codes stand for; differentiable in `x`, straight through inside the range.

    Args:
        x: floating, any shape.
        scale: broadcasts against `x`: [] per tensor, [out, 1, …] per channel. It gets no gradient.
        bits: 8, 6, 4 or 2.

    Returns:
        Exactly `codes(x, scale, bits) * scale`.
    """
    result: Tensor = _StraightThrough.apply(x, scale, bits)
    return result


def learned_step_quantize(x: Tensor, scale: Tensor, bits: int, features: int) -> Tensor:
    """As `fake_quantize`, and the scale learns as well (Esser et al., "Learned Step Size Quantization", ICLR 2020).

    With v = x / scale, the gradient to the scale is that of the output times `round(v) - v` inside the range and times
    qmin or qmax outside, summed to the scale's shape, times 1/√(features · qmax).

    Args:
        features: numbers that share one scale, not counting the samples of a batch.
    """
    result: Tensor = _LearnedStep.apply(x, scale, bits, features)
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bits: int) -> Tensor:
        rounded = torch.div(x, scale).round_()
        if x.requires_grad:
            clamped = rounded.clamp(*code_limits(bits))
            ctx.save_for_backward(clamped == rounded)
        else:
            clamped = rounded.clamp_(*code_limits(bits))
        return clamped.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, gradients[0], 0.0), None, None


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bits: int, features: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.limits, ctx.features = code_limits(bits), features
        return codes(x, scale, bits) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scale = ctx.saved_tensors
        smallest, largest = ctx.limits
        ratio = x / scale
        rounded = ratio.round()
        clamped = rounded.clamp(smallest, largest)
        inside = rounded == clamped
        slope = torch.where(inside, rounded - ratio, clamped)
        to_scale = (gradients[0] * slope).sum_to_size(scale.shape) / (ctx.features * largest) ** 0.5
        return torch.where(inside, gradients[0], 0.0), to_scale, None, None
