"""QINS codec v1: a stored number is a sign and an 8-bit code of its logarithm, on one range per tensor.

A code at rest only: encoded to be kept, decoded before use. Sums and products of codes mean nothing (QN-1).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1e-8
"""Smaller magnitudes are stored as this one; exact zeros by their sign."""

LARGEST_CODE = 255
"""Of the smallest magnitude; 1 is the code of the largest. 0 is never written."""

LARGEST_FLOOR = 0.1
"""Of the largest magnitude; an encoder that lifted more than what is below it would keep next to no small weight."""

CHUNK = 1 << 20
"""Elements that are held in float64 at once."""

_LOWEST, _HIGHEST = -104.0, 89.0  # beyond ln of the smallest and of the largest float32

_WIDENED = {torch.float16, torch.bfloat16, torch.float64}


class Encoded(NamedTuple):
    """What `QINSCodec.encode` returns; unpacks into the arguments of `decode`.

    `stored` uint8 and `sign` int8 have the shape of the tensor; `log_min` and `log_max` are float32, 0-dim, the range of
    ln of the magnitudes.
    """

    stored: Tensor
    sign: Tensor
    log_min: Tensor
    log_max: Tensor


class QINSCodec:
    """Encodes and decodes tensors of any shape, on any device. Without state.

    With R = log_max - log_min, the relative error of a magnitude of 1e-8 or more is at most exp(R / 508) - 1, within
    float32 rounding; with a floor, that holds from `floor` times the largest magnitude on. A decoded tensor has the codes
    it was decoded from, where R is not below 0.01: there the float32 numbers between two codes run out.
    """

    @staticmethod
    def encode(
        tensor: Tensor,
        *,
        name: str = "tensor",
        cast: bool = False,
        allow_constant: bool = False,
        floor: float = 0.0,
    ) -> Encoded:
        """The code of `tensor`, float32.

        With l = ln(max(|w|, 1e-8)) in float64 and log_min, log_max its ends rounded to float32:
        n = (l - log_min) / (log_max - log_min), stored = round(255 - 254 n), half to even, within 1..255.

        Args:
            tensor: finite, at least one element, magnitudes not all equal.
            name: what the errors call it.
            cast: declares that float16, bfloat16 or float64 may be read as float32.
            allow_constant: equal magnitudes are stored with R = 0 and all codes 1.
            floor: smaller magnitudes than `floor` times the largest are stored as that, so log_min is not decided by the
                tiniest; zeros stay zeros. 0 to 0.1; 0 is the plain code.

        Raises:
            ValueError: the code cannot represent `tensor`, named with the reason; a floor that is none.
        """
        if not 0 <= floor <= LARGEST_FLOOR:
            raise ValueError(
                f"the floor is {floor:g}, but it is a share of the largest magnitude; write 0 to {LARGEST_FLOOR}"
            )
        values = _float32(tensor, name, cast)
        smallest, largest = _magnitudes(values, name)
        smallest = max(smallest, floor * largest)
        log_min, log_max = (float(np.float32(math.log(magnitude))) for magnitude in (smallest, largest))
        if log_min == log_max:
            if not allow_constant:
                raise ValueError(
                    f"QINS cannot encode {name}: all its magnitudes are equal ({smallest:g}), which leaves no range; "
                    "pass allow_constant=True or store it raw"
                )
            stored = torch.ones_like(values, dtype=torch.uint8)
        else:
            stored = codes(values, log_min, log_max)
        ends = (torch.tensor(end, dtype=torch.float32, device=values.device) for end in (log_min, log_max))
        return Encoded(stored, torch.sign(values).to(torch.int8), *ends)

    @staticmethod
    def decode(
        stored: Tensor, sign: Tensor, log_min: Tensor, log_max: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The tensor that the codes stand for: sign · exp(log_min + (255 - stored) / 254 · (log_max - log_min)).

        Raises:
            ValueError: the four are no code: wrong dtypes or shapes, the code 0, or a range that is not finite.
        """
        check_code(stored, sign, log_min, log_max)
        table = magnitudes(float(log_min), float(log_max)).to(stored.device)
        return (table[stored.to(torch.int32)] * sign).to(dtype)


def magnitudes(log_min: float, log_max: float) -> Tensor:
    """float32 [256]: the magnitude of each code, computed in float64; that of code 0, which is none, is 0."""
    n = (LARGEST_CODE - np.arange(1, LARGEST_CODE + 1, dtype=np.float64)) / (LARGEST_CODE - 1)
    exact = np.exp(log_min + n * (log_max - log_min))
    table = np.minimum(exact, float(np.finfo(np.float32).max)).astype(np.float32)  # log_max may be rounded upwards
    return torch.from_numpy(np.concatenate((np.zeros(1, np.float32), table)))


def check_code(stored: Tensor, sign: Tensor, log_min: Tensor, log_max: Tensor) -> None:
    """Raise ValueError, with a sentence, where the four cannot have come from `QINSCodec.encode`."""
    if stored.dtype != torch.uint8 or sign.dtype != torch.int8 or stored.shape != sign.shape:
        raise ValueError(
            f"a QINS code is uint8 codes and int8 signs of one shape, not {stored.dtype} {list(stored.shape)} and "
            f"{sign.dtype} {list(sign.shape)}"
        )
    for end in (log_min, log_max):
        if end.dtype != torch.float32 or end.dim() != 0:
            raise ValueError(f"the ends of a QINS range are float32 scalars, not {end.dtype} {list(end.shape)}")
    check_range(float(log_min), float(log_max))
    if stored.numel() and int(stored.min()) == 0:
        raise ValueError("a QINS code holds the code 0, which is never written")


def check_range(log_min: float, log_max: float) -> None:
    """Raise ValueError where these are not the logarithms of two float32 magnitudes, the smaller first."""
    if not _LOWEST <= log_min <= log_max <= _HIGHEST:
        raise ValueError(f"{log_min:g} to {log_max:g} is no range of logarithms of float32 magnitudes, the smaller first")


def _float32(tensor: Tensor, name: str, cast: bool) -> Tensor:
    if tensor.numel() == 0:
        raise ValueError(f"QINS cannot encode {name}: it is empty; store it raw")
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype in _WIDENED and not cast:
        raise ValueError(f"QINS cannot encode {name}: it is {kind}; pass cast=True to have it read as float32")
    if tensor.dtype not in _WIDENED | {torch.float32}:
        raise ValueError(f"QINS cannot encode {name}: it is {kind}, not floating-point; store it raw")
    return tensor.detach().to(torch.float32)


def _magnitudes(values: Tensor, name: str) -> tuple[float, float]:
    """The smallest and the largest magnitude, at least 1e-8."""
    low, high = (float(end) for end in torch.aminmax(values))
    if math.isnan(low) or math.isinf(low) or math.isinf(high):
        what = "NaN" if math.isnan(low) else "Inf"
        raise ValueError(f"QINS cannot encode {name}: it holds {what}; store it raw or repair it")
    return max(float(values.abs().min()), SMALLEST), max(-low, high, SMALLEST)


def codes(values: Tensor, log_min: float, log_max: float, floor: float = SMALLEST) -> Tensor:
    """uint8 codes 1..255 of float32 `values` of any shape on a range that is not empty; below `floor` they count as it."""
    flat = values.reshape(-1)
    stored = torch.empty_like(flat, dtype=torch.uint8)
    factor = (LARGEST_CODE - 1) / (log_max - log_min)
    for part, out in zip(flat.split(CHUNK), stored.split(CHUNK), strict=True):
        logarithm = part.to(torch.float64).abs_().clamp_min_(floor).log_()
        code = logarithm.sub_(log_min).mul_(-factor).add_(LARGEST_CODE).round_().clamp_(1, LARGEST_CODE)
        out.copy_(code)
    return stored.view(values.shape)
