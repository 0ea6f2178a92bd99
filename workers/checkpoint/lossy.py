"""The codecs of the qins tier: one tensor as bytes that zstd then compresses, chunk by chunk.

| name | payload of a chunk of n elements |
|---|---|
| `qins.v1/1` | log_min, log_max (float32), n codes, ⌈n / 8⌉ bytes of sign bits, lowest bit first, 1 for negative |
| `qins.log8u/1` | log_min, log_max (float32), n codes |
| `int8.128/1`, `int6.128/1`, `int4.128/1` | ⌈n / 128⌉ scales (bfloat16), n codes int8 |
| `qins.log7/1`, `qins.log8/1` | those of `workers.qins.blocks`, longer by what is no number |

Codes of the first two are those of `workers.qins.codec`; 0 stands for an exact zero. In `qins.v1/1` that is lossless: v1
gives every zero the code 255 and the sign 0. `qins.log8u/1` has v1's formulas without its floor of 1e-8, because second
moments lie below it, and on the range of what is not zero. In `int8.128/1` a block of 128 elements has the scale
max |x| / 127, rounded to bfloat16, and x is stored as round(x / scale); the largest |x| still as 127, so that what was
decoded has the codes that it came from. `int6.128/1` has 31 in place of 127, `int4.128/1` has 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.checkpoint.planes import Bytes
from workers.qins import blocks
from workers.qins.blocks import BlockCode
from workers.qins.codec import QINSCodec, check_range, codes, magnitudes

V1, LOG8U = "qins.v1/1", "qins.log8u/1"
INT8, INT6, INT4 = "int8.128/1", "int6.128/1", "int4.128/1"
LOG7, LOG8 = "qins.log7/1", "qins.log8/1"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BLOCK = 128
RANGE_BYTES = 8
SCALE_BYTES = 2


class Lossy(NamedTuple):
    """`size(n)`: payload bytes of a chunk of n elements, at least; `most(n)` at most. `pack(name, values, n)` yields the
    payloads of a float32 tensor [N] in chunks of n, or raises ValueError with the reason. `unpack(payload, n)` gives
    float32 [n], or raises ValueError.
    """

    size: Callable[[int], int]
    most: Callable[[int], int]
    pack: Callable[[str, Tensor, int], Iterator[bytes]]
    unpack: Callable[[Bytes, int], Tensor]


def _of_one_size(
    size: Callable[[int], int], pack: Callable[[str, Tensor, int], Iterator[bytes]], unpack: Callable[[Bytes, int], Tensor]
) -> Lossy:
    return Lossy(size, size, pack, unpack)


def _in_blocks(code: BlockCode) -> Lossy:
    def pack(name: str, values: Tensor, chunk: int) -> Iterator[bytes]:
        whole = values.numpy()
        for start in range(0, len(whole), chunk):
            yield code.encode(whole[start : start + chunk], name)

    return Lossy(code.least_bytes, code.most_bytes, pack, lambda payload, n: torch.from_numpy(code.decode(payload, n)))


def _v1_pack(name: str, values: Tensor, chunk: int) -> Iterator[bytes]:
    stored, sign, log_min, log_max = QINSCodec.encode(values, name=name)
    ends = _ends(float(log_min), float(log_max))
    code, negative = torch.where(sign == 0, 0, stored).numpy(), (sign < 0).numpy()
    for start in range(0, len(code), chunk):
        part = slice(start, start + chunk)
        yield ends + code[part].tobytes() + np.packbits(negative[part], bitorder="little").tobytes()


def _v1_unpack(payload: Bytes, n: int) -> Tensor:
    values = _log8u_unpack(payload[: RANGE_BYTES + n], n)
    negative = np.unpackbits(payload[RANGE_BYTES + n :], count=n, bitorder="little")
    return torch.where(torch.from_numpy(negative).bool() & (values != 0), -values, values)


def _log8u_pack(name: str, values: Tensor, chunk: int) -> Iterator[bytes]:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} holds NaN or Inf")
    if bool((values < 0).any()):
        raise ValueError(f"{name} holds negative numbers, which an unsigned code cannot")
    positive = values[values > 0]
    ends = [float(np.float32(math.log(float(end)))) for end in torch.aminmax(positive)] if len(positive) else [0.0, 0.0]
    if ends[0] == ends[1]:
        raise ValueError(f"all numbers of {name} that are not 0 are equal")
    code = torch.where(values == 0, 0, codes(values, ends[0], ends[1], floor=float(positive.min()))).numpy()
    for start in range(0, len(code), chunk):
        yield _ends(*ends) + code[start : start + chunk].tobytes()


def _log8u_unpack(payload: Bytes, n: int) -> Tensor:
    log_min, log_max = payload[:RANGE_BYTES].view("<f4").tolist()
    check_range(log_min, log_max)
    return magnitudes(log_min, log_max)[torch.from_numpy(payload[RANGE_BYTES:].astype(np.int32))]


def _linear(levels: int) -> Lossy:
    """In blocks of 128; codes from -levels to levels."""

    def pack(name: str, values: Tensor, chunk: int) -> Iterator[bytes]:
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} holds NaN or Inf")
        for part in values.split(chunk):
            blocks = torch.nn.functional.pad(part, (0, -len(part) % BLOCK)).view(-1, BLOCK)
            scale = (blocks.abs().amax(dim=1, keepdim=True) / levels).to(torch.bfloat16)
            steps = (blocks / torch.where(scale == 0, 1.0, scale.float())).round_().clamp_(-levels, levels)
            yield (
                scale.view(torch.int16).numpy().astype("<i2").tobytes()
                + steps.to(torch.int8).view(-1)[: len(part)].numpy().tobytes()
            )

    def unpack(payload: Bytes, n: int) -> Tensor:
        head = SCALE_BYTES * num_blocks(n)
        steps = torch.from_numpy(payload[head:].view(np.int8).astype(np.float32))
        products = steps * torch.from_numpy(scales_of(payload[:head])).repeat_interleave(BLOCK)[:n]
        largest = torch.finfo(torch.float32).max  # beyond which a scale that was rounded upwards may lead
        return products.clamp_(-largest, largest)

    return _of_one_size(lambda n: SCALE_BYTES * num_blocks(n) + n, pack, unpack)


def scales_of(head: Bytes) -> NDArray[np.float32]:
    """The scales, one for each block, that a linear payload begins with. Raises ValueError where one is none."""
    scales = torch.from_numpy(head.view("<i2").astype(np.int16)).view(torch.bfloat16).float()
    if not bool((torch.isfinite(scales) & (scales >= 0)).all()):
        raise ValueError("a chunk has a scale that is negative, NaN or Inf")
    found: NDArray[np.float32] = scales.numpy()
    return found


def num_blocks(n: int) -> int:
    """Of 128, the last one may be shorter."""
    return -(-n // BLOCK)


def _ends(log_min: float, log_max: float) -> bytes:
    return np.array([log_min, log_max], "<f4").tobytes()


LOSSY = {
    V1: _of_one_size(lambda n: RANGE_BYTES + n + -(-n // 8), _v1_pack, _v1_unpack),
    LOG8U: _of_one_size(lambda n: RANGE_BYTES + n, _log8u_pack, _log8u_unpack),
    INT8: _linear(127),
    INT6: _linear(31),
    INT4: _linear(7),
    LOG7: _in_blocks(blocks.LOG7),
    LOG8: _in_blocks(blocks.LOG8),
}

WEIGHTS = {"int8": INT8, "v1": V1, "log7": LOG7, "log8": LOG8}
"""Codecs of weights by their name in the JobSpec."""

_MOMENTS = {"exp_avg": INT8, "momentum_buffer": INT8, "exp_avg_sq": LOG8U, "max_exp_avg_sq": LOG8U}


def codecs_of(tensors: Mapping[str, Tensor], weights: str = "int8", is_whole: bool = True) -> dict[str, str]:
    """The codec that the qins tier has for a tensor of a state (workers/state.py), by name; the rest is kept bit for bit.

    Weights, those kept from an earlier epoch too, in `WEIGHTS[weights]`; first moments in int8 blocks, or int4 where the
    checkpoint is a difference to another, as theirs would take no fewer bits; second moments in an unsigned logarithmic
    code: a linear one would round the small ones to 0, and Adam divides by their root (QN-21).
    """
    first = INT8 if is_whole else INT4
    codecs = {
        name: _codec_of(name, tensors, WEIGHTS[weights], first) for name, each in tensors.items() if each.dtype in FLOATS
    }
    return {name: codec for name, codec in codecs.items() if codec is not None}


def is_first_moment(name: str) -> bool:
    """Whether a tensor of a state is one, by its name."""
    return _MOMENTS.get(name.rpartition("|")[2]) == INT8


def _codec_of(name: str, tensors: Mapping[str, Tensor], weights: str, first: str) -> str | None:
    field, _, rest = name.partition(".")
    match field:
        case "parameter":
            return weights
        case "kept":  # buffers among them stand in no optimizer
            return weights if f"parameter.{rest}" in tensors else None
        case "optimizer":
            return first if is_first_moment(name) else _MOMENTS.get(rest.rpartition("|")[2])
    return None


def as_float32(name: str, tensor: Tensor) -> Tensor:
    """`tensor` as contiguous float32 [N] on the CPU. Raises ValueError where it is empty or has no such form, float64 that
    would become 0 or infinite included."""
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise ValueError(f"{name} is sparse or without storage")
    if tensor.numel() == 0:
        raise ValueError(f"{name} is empty")
    raw = tensor.detach().resolve_neg().cpu().reshape(-1)
    values = raw.to(torch.float32).contiguous()
    if raw.dtype == torch.float64 and bool(((raw != 0) & (values == 0) | torch.isfinite(raw) & torch.isinf(values)).any()):
        raise ValueError(f"{name} holds float64 numbers beyond the range of float32")
    return values
