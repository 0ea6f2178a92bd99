"""Fake-quantization of weights: training feels the rounding that the integer model will have.

Symmetric, one scale per output channel, from the current weights; the gradient passes straight through the rounding
(Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LARGEST_CODE = {8: 127, 4: 7}
"""Codes are symmetric round zero: -127..127 and -7..7."""

SMALLEST_SCALE = 2.0**-23
"""For a channel whose weights are all zero."""


def weight_scale(weight: Tensor, bits: int) -> Tensor:
    """Scale of each output channel: float [out, 1] = max |w| / 127 (INT8) or / 7 (INT4) for `weight` [out, in]."""
    return (weight.abs().amax(dim=1, keepdim=True) / LARGEST_CODE[bits]).clamp_min(SMALLEST_SCALE)


def weight_codes(weight: Tensor, scale: Tensor) -> Tensor:
    """The integers round(w / scale), half to even, as floats: [out, in]."""
    return torch.round(weight / scale)


class _StraightThrough(torch.autograd.Function):
    """Forward codes * scale, exactly; backward the identity."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int) -> Tensor:
        scale = weight_scale(weight, bits)
        return weight_codes(weight, scale) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def fake_quantize(weight: Tensor, bits: int) -> Tensor:
    """The weights [out, in] that the codes of `bits` bits stand for; differentiable, straight through."""
    result: Tensor = _StraightThrough.apply(weight, bits)
    return result


class QuantLinear(nn.Linear):
    """A linear layer that computes with fake-quantized weights while `fake_quant` is true.

    Args:
        in_features, out_features, bias: as for `nn.Linear`.
        bits: 8 or 4, of a weight.
        fake_quant: off, it is a plain `nn.Linear`.

    Raises:
        ValueError: `bits` is neither 8 nor 4.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, bits: int = 8, fake_quant: bool = False
    ) -> None:
        if bits not in LARGEST_CODE:
            raise ValueError(f"a weight can have 8 or 4 bits, not {bits}")
        super().__init__(in_features, out_features, bias)
        self.bits = bits
        self.fake_quant = fake_quant

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        weight = fake_quantize(self.weight, self.bits) if self.fake_quant else self.weight
        return nn.functional.linear(input, weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}, fake_quant={self.fake_quant}"


def set_fake_quant(model: nn.Module, on: bool) -> None:
    """Turn fake-quantization of every `QuantLinear` in `model` on or off."""
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.fake_quant = on
