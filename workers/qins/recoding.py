"""A model as each codec gives it back: v1, bfloat16, linear INT8, all on the same layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from workers.checkpoint.codec import Decoder, Encoder
from workers.checkpoint.lossy import WEIGHTS
from workers.models.transformer import ByteTransformer
from workers.qins.codec import QINSCodec
from workers.qins.convert import FLOOR, convert_model_to_projective, linear_layers, report_of
from workers.qins.fidelity import Fidelity, fidelity

Codec = Callable[[Tensor, str], dict[str, Tensor]]
"""A weight [out, in] and its name to what is stored of it, by name, and under "" the weight that this is decoded to."""


@dataclass(frozen=True)
class Recoded:
    """A model whose `num_layers` linear layers hold what a codec gave back; `ratio` is float32 bytes over those of the
    file of tensors."""

    model: ByteTransformer
    num_layers: int
    fidelity: Fidelity
    ratio: float


def recode(model: ByteTransformer, codec: Codec) -> Recoded:
    """A copy of `model` after `codec` on the linear layers that v1 can hold.

    Raises:
        ValueError: a weight that QINS refuses.
    """
    other = copy.deepcopy(model)
    state = dict(model.state_dict())
    fp32_bytes = len(save(_stored(state)))
    pairs: list[tuple[Tensor, Tensor]] = []
    layers = {names[0]: layer for layer, names in linear_layers(other).items()}
    encoded = report_of(convert_model_to_projective(copy.deepcopy(model), use_codec=True)).layers
    for name in encoded:
        weight = state.pop(f"{name}.weight")
        coded = codec(weight, f"{name}.weight")
        decoded = coded.pop("")
        state |= {f"{name}.{key}": tensor for key, tensor in coded.items()}
        pairs.append((weight, decoded))
        layers[name].weight.data.copy_(decoded)
    return Recoded(other, len(encoded), fidelity(pairs), fp32_bytes / len(save(_stored(state))))


def linear_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric codes int8 [out, in] of a weight, and the scale max |w| / 127 of each row, float32 [out, 1]."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def v1(weight: Tensor, name: str, floor: float = 0.0) -> dict[str, Tensor]:
    """`Codec` of `QINSCodec`."""
    code = QINSCodec.encode(weight, name=name, floor=floor)
    return {**code._asdict(), "": QINSCodec.decode(*code)}


def _bf16(weight: Tensor, name: str) -> dict[str, Tensor]:
    cast = weight.to(torch.bfloat16)
    return {"weight": cast, "": cast.to(weight.dtype)}


def _int8(weight: Tensor, name: str) -> dict[str, Tensor]:
    codes, scale = linear_int8(weight)
    return {"codes": codes, "scale": scale, "": codes * scale}


def _exact(weight: Tensor, name: str) -> dict[str, Tensor]:
    record, frames = Encoder().encode(name, weight)
    return {**_frames(frames), "": Decoder().decode(record, [np.frombuffer(frame, np.uint8) for frame in frames])}


def _tier(codec: str) -> Codec:
    """As a checkpoint of the qins tier holds it: bit for bit, where the codec cannot."""

    def code(weight: Tensor, name: str) -> dict[str, Tensor]:
        try:
            record, frames = Encoder().encode_lossy(name, weight, codec)
        except ValueError:
            return _exact(weight, name)
        return {**_frames(frames), "": Decoder().decode(record, [np.frombuffer(frame, np.uint8) for frame in frames])}

    return code


def _frames(frames: Sequence[bytes]) -> dict[str, Tensor]:
    return {str(index): torch.frombuffer(bytearray(frame), dtype=torch.uint8) for index, frame in enumerate(frames)}


TIERS: Mapping[str, Codec] = {
    **{f"tier_{name}": _tier(codec) for name, codec in WEIGHTS.items()},
    "tier_exact": _exact,
}
"""Of the v2 container, compressed with zstd; `tier_v1` has v1's numbers."""

CODECS: Mapping[str, Codec] = {
    "v1": v1,
    "v1_floor": partial(v1, floor=FLOOR),
    "bf16": _bf16,
    "int8": _int8,
}
"""`v1_floor` is what a conversion does unless told otherwise."""


def _stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
