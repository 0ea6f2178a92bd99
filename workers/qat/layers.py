"""Layers that compute with fake-quantized weights, and what stands between layers and fake-quantizes their outputs.

`fp32` of such a module keeps it in full precision whatever the switches say: see `set_first_layer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workers.qat.errors import QuantizationError
from workers.qat.fake_quant import fake_quantize, learned_step_quantize
from workers.qat.observers import RangeObserver
from workers.qat.scales import (
    MOST_PER_TENSOR_OUTPUTS,
    SMALLEST_SCALE,
    ScaleConvention,
    activation_scale,
    check_bits,
    check_convention,
    weight_scale,
)
from workers.qat.state_quant import StateQuantizer


class StepSize(nn.Module):
    """What a learned scale adds to a model: `multiplier` [], which the scale of QS-15 is multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplier = nn.Parameter(torch.ones(()))

    def forward(self, scale: Tensor) -> Tensor:
        """The learned scale, of the shape of `scale`; at least 2^-23."""
        return (scale * self.multiplier).clamp_min(SMALLEST_SCALE)


class WeightQuantizer(nn.Module):
    """Fake-quantizes a weight, [out, ...], by its present values: per channel of axis 0, or per tensor.

    Args:
        bits: 8, 6, 4 or 2; may be changed later (`set_bits`).
        per_channel: one scale per output.
        learned_step: the scale of 4 and 2 bits learns (LSQ), from where the search over c puts it.
        scale_convention: see `workers.qat.scales`.

    Raises:
        ValueError: bits or convention that do not exist; per tensor with more than 512 outputs.
    """

    def __init__(
        self,
        outputs: int,
        bits: int = 8,
        *,
        per_channel: bool = True,
        learned_step: bool = False,
        scale_convention: ScaleConvention = "integer",
    ) -> None:
        super().__init__()
        if not per_channel and outputs > MOST_PER_TENSOR_OUTPUTS:
            raise ValueError(
                f"a weight of {outputs} outputs needs one scale for each: leave per_channel on; one scale for all"
                f" serves {MOST_PER_TENSOR_OUTPUTS} outputs at most"
            )
        self.bits, self.per_channel = check_bits(bits), per_channel
        self.scale_convention = check_convention(scale_convention)
        self.step = StepSize() if learned_step else None

    def scale(self, weight: Tensor) -> Tensor:
        """[out, 1, ...] or [1, 1, ...]."""
        scale = weight_scale(weight, self.bits, per_channel=self.per_channel, convention=self.scale_convention)
        return scale if self.step is None or self.bits > 4 else self.step(scale)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that its codes stand for."""
        scale = self.scale(weight)
        if scale.requires_grad:
            return learned_step_quantize(weight, scale, self.bits, weight.numel() // scale.numel())
        return fake_quantize(weight, scale, self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, per_channel={self.per_channel}, scale_convention={self.scale_convention!r}"


class QuantLinear(nn.Linear):
    """A linear layer that computes with fake-quantized weights while `fake_quant` is true.

    Args:
        in_features, out_features, bias: as for `nn.Linear`.
        bits: of a weight: 8, 6, 4 or 2.
        fake_quant: off, it is a plain `nn.Linear`.
        options: of `WeightQuantizer`: per_channel, learned_step, scale_convention.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bits: int = 8,
        fake_quant: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.quantizer = WeightQuantizer(out_features, bits, **options)
        self.fake_quant, self.fp32 = fake_quant, False

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        weight = self.quantizer(self.weight) if self.fake_quant else self.weight
        return nn.functional.linear(input, weight, self.bias)


class QuantConv2d(nn.Conv2d):
    """A convolution that computes with fake-quantized weights while `fake_quant` is true.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as for `nn.Conv2d`.
        bits, fake_quant, options: as for `QuantLinear`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        bits: int = 8,
        fake_quant: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.quantizer = WeightQuantizer(out_channels, bits, **options)
        self.fake_quant, self.fp32 = fake_quant, False

    def forward(self, input: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H', W']."""
        weight = self.quantizer(self.weight) if self.fake_quant else self.weight
        return self._conv_forward(input, weight, self.bias)


class QuantActivation(nn.Module):
    """Observes one tensor and, once its observer has a range, fake-quantizes it while `fake_quant` is true.

    It has its own observer and its own switch, so a range can be followed before it is acted upon. Per tensor, so one
    firing threshold holds for a layer (QS-16). The forward of a step uses the range that the step before has committed.

    Args:
        bits: 8, 6, 4 or 2; may be changed later (`set_bits`).
        observer: of this tensor alone.
        learned_step: the scale of 4 and 2 bits learns (LSQ).
    """

    def __init__(
        self,
        bits: int = 8,
        observer: RangeObserver | None = None,
        *,
        fake_quant: bool = False,
        learned_step: bool = False,
        scale_convention: ScaleConvention = "integer",
    ) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.scale_convention = check_convention(scale_convention)
        self.observer = RangeObserver() if observer is None else observer
        self.step = StepSize() if learned_step else None
        self.fake_quant, self.fp32 = fake_quant, False

    def scale(self) -> Tensor:
        """float32 [], from the observer's range."""
        scale = activation_scale(self.observer.low, self.observer.high, self.bits, self.scale_convention)
        return scale if self.step is None or self.bits > 4 else self.step(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Floating, any shape; of the same shape and dtype."""
        self.observer(x)
        if not (self.fake_quant and self.observer.ready):
            return x
        scale = self.scale().to(x.dtype)
        if scale.requires_grad:
            return learned_step_quantize(x, scale, self.bits, x.shape[-1] if x.dim() else 1)
        return fake_quantize(x, scale, self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, fake_quant={self.fake_quant}, scale_convention={self.scale_convention!r}"


QuantizedLayer = (QuantLinear, QuantConv2d)
"""Those that hold a `WeightQuantizer` named `quantizer`."""


def set_switches(model: nn.Module, *, weights: bool, activations: bool, state: bool, observing: bool) -> None:
    """Set the four switches of everything in `model`: fake-quantization of weights, of activations and of neuron
    state, and observation. A job sets them by the step alone, so that every rank has them alike (QS-37)."""
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.fake_quant = weights and not module.fp32
        elif isinstance(module, QuantActivation):
            module.fake_quant = activations and not module.fp32
        elif isinstance(module, StateQuantizer):
            module.fake_quant = state
        elif isinstance(module, RangeObserver):
            module.observing = observing


def set_fake_quant(model: nn.Module, on: bool) -> None:
    """Turn fake-quantization of the weights of `model` on or off."""
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.fake_quant = on and not module.fp32


def first_layer(model: nn.Module) -> list[nn.Module]:
    """The first layer to quantize, in the order of the tree, with the activations before it; with the one after it where
    there are none, as activations then stand behind their layers.

    Without these where no others would be left; nothing at all where it is the only layer.
    """
    parts = [module for module in model.modules() if isinstance(module, (*QuantizedLayer, QuantActivation))]
    layers = [module for module in parts if isinstance(module, QuantizedLayer)]
    activations = [module for module in parts if isinstance(module, QuantActivation)]
    if len(layers) < 2:
        return []
    around = activations[: parts.index(layers[0])] or activations[:1]
    return [layers[0], *(around if len(around) < len(activations) else [])]


def set_first_layer(model: nn.Module, *, fp32: bool) -> None:
    """Keep the first layer of `model` in full precision, or no longer (TA-19); heeded when switches are set again."""
    first = first_layer(model)
    for module in model.modules():
        if isinstance(module, (*QuantizedLayer, QuantActivation)):
            module.fp32 = fp32 and module in first


def set_bits(model: nn.Module, bits: Mapping[str, int]) -> None:
    """Give quantizers other numbers of bits: 8 → 4 → 2 (QS-23), or what a Hessian suggests (QS-26).

    Weights carry over. An activation's observer keeps its range: restart it where it shall be observed anew.

    Args:
        bits: by the name in `model` of a `QuantLinear`, `QuantConv2d` or `QuantActivation`.

    Raises:
        QuantizationError: a name that is no such module's.
        ValueError: bits that do not exist.
    """
    modules = dict(model.named_modules())
    for name, number in bits.items():
        module = modules.get(name)
        if isinstance(module, QuantizedLayer):
            module.quantizer.bits = check_bits(number)
        elif isinstance(module, QuantActivation):
            module.bits = check_bits(number)
        else:
            raise QuantizationError(
                f"{name!r} has no bits to set: name one of {', '.join(quantized_names(model)) or 'none'}"
            )


def set_weight_bits(model: nn.Module, bits: int) -> None:
    """Give all weights of `model` so many bits (QS-23). Raises ValueError where these do not exist."""
    set_bits(model, {name: bits for name, module in model.named_modules() if isinstance(module, QuantizedLayer)})


def quantized_names(model: nn.Module) -> list[str]:
    """The names of the layers and activations in `model` that have a number of bits."""
    return [name for name, module in model.named_modules() if isinstance(module, (*QuantizedLayer, QuantActivation))]
