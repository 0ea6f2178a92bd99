"""From a trained model to one that stores integers: what quantized weights honestly weigh and compute.

The converted model computes with the very numbers that training has computed with, code times scale, so its forward is the
fake-quantized forward bit for bit: no spike is lost to another order of rounding. Codes below INT8 are stored packed and
unpacked in the forward; that is emulation, no kernel of fewer bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from workers.observing import StepObserver
from workers.qat.errors import QuantizationError
from workers.qat.fake_quant import codes, fake_quantize
from workers.qat.layers import QuantActivation, QuantConv2d, QuantizedLayer, QuantLinear, StepSize
from workers.qat.packing import pack, unpack
from workers.qat.replace import replaced
from workers.qat.state_quant import StateQuantizer


class PackedWeight(nn.Module):
    """The codes of a weight, [out, ...], packed row by row.

    Buffers: `codes` int8 [out, row], or uint8 [out, packed_columns(row, bits)] below 8 bits; `scale` float [out], or [1]
    per tensor; `bias` float [out] or None.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantLinear | QuantConv2d) -> None:
        super().__init__()
        weight, scale = layer.weight.detach(), layer.quantizer.scale(layer.weight).detach()
        self.bits, self.shape = layer.quantizer.bits, weight.shape
        self.scale_convention = layer.quantizer.scale_convention
        rows = codes(weight, scale, self.bits).to(torch.int8).flatten(1)
        self.register_buffer("codes", pack(rows, self.bits))
        self.register_buffer("scale", scale.flatten())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def weight(self) -> Tensor:
        """What the codes stand for, of the weight's own shape and dtype."""
        columns = self.shape[1:].numel()
        return (unpack(self.codes, self.bits, columns).to(self.scale.dtype) * self.scale[:, None]).reshape(self.shape)

    def extra_repr(self) -> str:
        return f"weight={list(self.shape)}, bits={self.bits}"


class IntegerLinear(PackedWeight):
    """A linear layer whose weights are codes."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return nn.functional.linear(x, self.weight(), self.bias)


class IntegerConv2d(PackedWeight):
    """A convolution whose weights are codes."""

    def __init__(self, layer: QuantConv2d) -> None:
        super().__init__(layer)
        if layer.padding_mode != "zeros":
            raise QuantizationError(
                f"a convolution with padding_mode {layer.padding_mode!r} cannot be converted: use 'zeros'"
            )
        self.stride, self.padding, self.dilation, self.groups = layer.stride, layer.padding, layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H', W']."""
        return nn.functional.conv2d(x, self.weight(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class FrozenActivation(nn.Module):
    """Quantizes what passes with a scale that no longer changes; buffer `scale` float32 []."""

    scale: Tensor

    def __init__(self, activation: QuantActivation) -> None:
        super().__init__()
        self.bits, self.scale_convention = activation.bits, activation.scale_convention
        self.register_buffer("scale", activation.scale().detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Floating, any shape; of the same shape and dtype."""
        return fake_quantize(x, self.scale.to(x.dtype), self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


def convert(model: nn.Module, *, activations: bool = True, state: bool = True) -> nn.Module:
    """A copy of `model`, in evaluation mode, that stores codes and has no observers; what was shared stays shared.

    Layers that hold no quantizer, or stay in full precision, are copied as they are; `unquantized` lists their weights.

    Args:
        activations: quantize activations, each with the range of its observer; else they pass as they are.
        state: quantize neuron state, where the model has a `StateQuantizer`.

    Raises:
        QuantizationError: no layer to convert, weights that are not finite, or an activation that never saw anything.
    """
    check_convertible(model, activations=activations)
    return _replaced(model, activations=activations, state=state)


def blank(model: nn.Module, *, activations: bool = True, state: bool = True) -> nn.Module:
    """What `convert` would return, with codes and scales of no meaning: for `load_state_dict` of a converted model."""
    return _replaced(model, activations=activations, state=state)


def check_convertible(model: nn.Module, *, activations: bool = True) -> None:
    """Raise QuantizationError where `convert` cannot serve `model`."""
    named = dict(model.named_modules())
    layers = {name: module for name, module in named.items() if isinstance(module, QuantizedLayer)}
    if all(layer.fp32 for layer in layers.values()):
        raise QuantizationError(
            "the model has no layer to convert: build it with QuantLinear and QuantConv2d, or call attach(model) first"
        )
    broken = [name for name, layer in layers.items() if not bool(layer.weight.isfinite().all())]
    if broken:
        raise QuantizationError(
            f"the weights of {', '.join(broken)} are not finite: go back to a checkpoint from before that"
        )
    if activations:
        used = {n: m for n, m in named.items() if isinstance(m, QuantActivation) and not m.fp32}
        unseen = [n for n, m in used.items() if not m.observer.ready]
        if unseen:
            raise QuantizationError(
                f"the activations {', '.join(unseen)} have never been observed: run calibration batches through the model"
                " first, or convert(model, activations=False)"
            )


def unquantized(model: nn.Module) -> list[str]:
    """The names of the weights, parameters of two axes and more, that conversion leaves as they are."""
    converted = {id(m.weight) for m in model.modules() if isinstance(m, QuantizedLayer) and not m.fp32}
    return [name for name, p in model.named_parameters() if p.dim() >= 2 and id(p) not in converted]


def describe(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Of each quantized part of a converted model, by name: its kind, bits, scale convention and shape, as plain values."""
    described: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight | FrozenActivation):
            described[name] = {"bits": module.bits, "scale_convention": module.scale_convention}
            described[name]["kind"] = "activation" if isinstance(module, FrozenActivation) else "weight"
            described[name]["shape"] = [] if isinstance(module, FrozenActivation) else list(module.shape)
        elif isinstance(module, StateQuantizer) and module.fake_quant:
            described[name] = {"bits": module.bits, "levels": module.levels, "kind": "state"}
    return described


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of `model` as they are stored; what is shared counts once, observers not."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(model))


def fp32_bytes(model: nn.Module) -> int:
    """Bytes of the same tensors with four bytes for each floating-point number."""
    return sum(t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in _tensors(model))


def ratio(model: nn.Module, converted: nn.Module) -> float:
    """How many times smaller `converted` is than `model` in FP32, scales and biases included."""
    return fp32_bytes(model) / packed_bytes(converted)


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    """Each tensor of the network itself, once: what quantizers learn for training is no part of it."""
    own = (StepObserver, StepSize)
    apart = {id(t) for m in model.modules() if isinstance(m, own) for t in (*m.parameters(), *m.buffers())}
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return (tensor for key, tensor in tensors.items() if key not in apart)


def _plain(layer: QuantLinear | QuantConv2d) -> nn.Module:
    """The layer without its quantizer."""
    plain: nn.Linear | nn.Conv2d
    if isinstance(layer, QuantLinear):
        plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
    else:
        one: Any = layer  # its type stub has tuples of any length
        shape = (one.in_channels, one.out_channels, one.kernel_size, one.stride, one.padding, one.dilation, one.groups)
        plain = nn.Conv2d(*shape, padding_mode=one.padding_mode, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


def _replaced(model: nn.Module, *, activations: bool, state: bool) -> nn.Module:
    """The copy that `convert` and `blank` return."""

    def make(module: nn.Module) -> nn.Module | None:
        if isinstance(module, QuantizedLayer) and module.fp32:
            return _plain(module)
        if isinstance(module, QuantLinear):
            return IntegerLinear(module)
        if isinstance(module, QuantConv2d):
            return IntegerConv2d(module)
        if isinstance(module, QuantActivation):
            return FrozenActivation(module) if activations and not module.fp32 else nn.Identity()
        if isinstance(module, StateQuantizer):
            module.fake_quant = state
        return None

    return replaced(model, make).eval()
