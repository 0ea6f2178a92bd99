"""From a trained model to one that stores integers: what INT8 and INT4 weights honestly weigh and compute."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from workers.qat.fake_quant import QuantLinear, weight_codes, weight_scale


class IntegerLinear(nn.Module):
    """A linear layer whose weights are int8 codes, or int4 codes two to a byte, with one float scale per output.

    Buffers: `codes` int8 [out, in] or uint8 [out, ceil(in / 2)], `scale` float32 [out], `bias` float32 [out] or None.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        self.bits, self.in_features, self.out_features = linear.bits, linear.in_features, linear.out_features
        weight = linear.weight.detach()
        scale = weight_scale(weight, linear.bits)
        codes = weight_codes(weight, scale).to(torch.int8)
        self.register_buffer("codes", pack_int4(codes) if linear.bits == 4 else codes)
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]: (x · codes) · scale + bias."""
        codes = unpack_int4(self.codes, self.in_features) if self.bits == 4 else self.codes
        y = nn.functional.linear(x, codes.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


def pack_int4(codes: Tensor) -> Tensor:
    """int8 codes in -8..7, [out, in], to uint8 [out, ceil(in / 2)]: the even columns in the low half of each byte."""
    nibbles = nn.functional.pad(codes, (0, codes.shape[1] % 2)).to(torch.uint8) & 0xF
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack_int4(packed: Tensor, in_features: int) -> Tensor:
    """int8 [out, in_features]: what `pack_int4` was given."""
    nibbles = torch.stack((packed & 0xF, packed >> 4), dim=2).flatten(1)[:, :in_features].to(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


def convert(model: nn.Module) -> nn.Module:
    """A copy of `model` in which every `QuantLinear` is an `IntegerLinear`; layers that were shared stay shared."""
    converted: dict[nn.Module, nn.Module] = {}

    def convert_inside(module: nn.Module) -> nn.Module:
        if module not in converted:
            if isinstance(module, QuantLinear):
                converted[module] = IntegerLinear(module)
            else:
                converted[module] = module
                for name, child in module._modules.items():
                    if child is not None:
                        module._modules[name] = convert_inside(child)
        return converted[module]

    return convert_inside(copy.deepcopy(model))


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of `model` as they are stored; what is shared counts once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def fp32_bytes(model: nn.Module) -> int:
    """Bytes of the same tensors with four bytes for each floating-point number."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * (4 if tensor.is_floating_point() else tensor.element_size()) for tensor in tensors.values())
