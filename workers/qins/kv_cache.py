"""The attention cache of a layer: keys in float16, values in QINS codes (QN-10).

Each value vector of D numbers, of one sample, head and token, has a range of its own, so that no request touches another.
What is encoded are the values as float16, of which there are so few that their logarithms stand in a table: so the codes
do not depend on how many come at once.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

VFormat = Literal["fp16", "v1", "packed7"]
"""How values are kept; bytes for each of D = 128: 2, 2.06, 1.03."""

FORMATS: tuple[VFormat, ...] = get_args(VFormat)

LEVELS = {"v1": 255, "packed7": 126}
"""Magnitudes that the codes of a vector tell apart, from the smallest to the largest."""

NAN = 127
"""The code of `packed7` for what is no finite float16; 0 is zero."""

FLOOR = 1e-3
"""With `packed7`, smaller magnitudes than this share of the vector's largest are kept as that: one tiny number would make
the steps of all others larger."""

_SIGN = 0x80


class QINSKVCache:
    """Keys and values of the tokens so far, of up to `max_batch` samples.

    Args:
        max_batch: B at most.
        max_seq: tokens at most.
        n_heads: H.
        head_dim: D.
        v_format: `packed7`, a byte with the sign and a code of 126 magnitudes; `v1`, a code of 255 and a sign byte; `fp16`.
        device: where it is.

    `current_len` tokens are kept, `nbytes` is what all of it takes, full or not.
    """

    def __init__(
        self,
        max_batch: int,
        max_seq: int,
        n_heads: int,
        head_dim: int,
        v_format: VFormat = "packed7",
        device: torch.device | str = "cpu",
    ) -> None:
        if min(max_batch, max_seq, n_heads, head_dim) < 1:
            raise ValueError(f"a cache of {max_batch} × {n_heads} × {max_seq} × {head_dim} holds nothing; write 1 or more")
        if v_format not in FORMATS:
            raise ValueError(f"v_format is {v_format!r}; write one of {', '.join(FORMATS)}")
        self.v_format, self.current_len = v_format, 0
        self._batch = 0
        shape = (max_batch, n_heads, max_seq, head_dim)
        self._keys = torch.zeros(shape, dtype=torch.float16, device=device)
        self._values = torch.zeros(shape, dtype=torch.float16 if v_format == "fp16" else torch.uint8, device=device)
        self._signs = torch.zeros(shape if v_format == "v1" else (0,), dtype=torch.int8, device=device)
        ends = torch.float32 if v_format == "v1" else torch.float16
        self._ends = torch.zeros((*shape[:3], 2) if v_format != "fp16" else (0,), dtype=ends, device=device)

    @property
    def nbytes(self) -> int:
        """Of its tensors."""
        return sum(each.nbytes for each in (self._keys, self._values, self._signs, self._ends))

    @property
    def max_seq(self) -> int:
        """Tokens that there is room for."""
        return self._keys.shape[2]

    def update(self, k: Tensor, v: Tensor) -> None:
        """Append `k` and `v`, floating-point [B, H, t, D]; beyond the range of float16 they count as infinite.

        Raises:
            ValueError: they do not fit, or are of another batch than the tokens before. Nothing is changed.
        """
        self._check(k, v)
        batch, _, length, _ = k.shape
        here = slice(batch), slice(None), slice(self.current_len, self.current_len + length)
        self._keys[here] = k.detach().to(torch.float16)
        halves = v.detach().to(torch.float16)
        if self.v_format == "fp16":
            self._values[here] = halves
        elif self.v_format == "v1":
            self._values[here], self._signs[here], self._ends[here] = _encode_v1(halves)
        else:
            self._values[here], self._ends[here] = _encode_packed7(halves)
        self.current_len += length
        self._batch = batch

    def get_kv(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Keys and decoded values of the first samples, float16 [B, H, current_len, D]; the keys are no copy.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 < batch_size <= max(self._batch, 1):
            raise ValueError(f"the cache holds {self._batch} samples, not {batch_size}")
        here = slice(batch_size), slice(None), slice(self.current_len)
        if self.v_format == "fp16":
            return self._keys[here], self._values[here]
        if self.v_format == "v1":
            return self._keys[here], _decode_v1(self._values[here], self._signs[here], self._ends[here])
        return self._keys[here], _decode_packed7(self._values[here], self._ends[here])

    def truncate(self, n: int) -> None:
        """Keep the first `n` tokens only. Raises ValueError where there are fewer."""
        if not 0 <= n <= self.current_len:
            raise ValueError(f"the cache holds {self.current_len} tokens; it cannot be cut to {n}")
        self.current_len = n

    def reset(self) -> None:
        """Keep nothing; the next batch may be of another size."""
        self.current_len = self._batch = 0

    def _check(self, k: Tensor, v: Tensor) -> None:
        most, heads, room, size = self._keys.shape
        if k.shape != v.shape or k.dim() != 4 or (k.shape[1], k.shape[3]) != (heads, size):
            raise ValueError(
                f"keys {list(k.shape)} and values {list(v.shape)} are not of one shape [batch, {heads}, tokens, {size}]"
            )
        if not (k.is_floating_point() and v.is_floating_point()):
            raise ValueError(f"keys and values are {k.dtype} and {v.dtype}, not floating-point")
        batch, length = k.shape[0], k.shape[2]
        if not 0 < batch <= most:
            raise ValueError(f"{batch} samples do not fit in a cache for {most}")
        if self.current_len and batch != self._batch:
            raise ValueError(f"the cache holds {self._batch} samples, not {batch}; reset it first")
        if self.current_len + length > room:
            raise ValueError(f"{length} tokens do not fit after {self.current_len} in a cache for {room}")


def _encode_packed7(values: Tensor) -> tuple[Tensor, Tensor]:
    """float16 [..., D] to codes uint8 [..., D] and the ends of the magnitudes float16 [..., 2]."""
    magnitudes, is_coded = _coded(values)
    high = magnitudes.where(is_coded, 0.0).amax(-1, keepdim=True)
    low = magnitudes.where(is_coded, math.inf).amin(-1, keepdim=True).minimum(high)
    low = low.maximum(_upwards(high.float() * FLOOR))
    code = _codes(magnitudes, low, high, LEVELS["packed7"])
    code = code.where(is_coded, torch.where(values == 0, 0, NAN).to(torch.uint8))
    sign = torch.signbit(values) & is_coded
    return code | (sign.to(torch.uint8) * _SIGN), torch.cat((low, high), -1)


def _decode_packed7(stored: Tensor, ends: Tensor) -> Tensor:
    code = stored & NAN
    magnitudes = _magnitudes(code, ends, LEVELS["packed7"])
    magnitudes = magnitudes.where(code != 0, 0.0).where(code != NAN, math.nan)
    return torch.where(stored >= _SIGN, -magnitudes, magnitudes).to(torch.float16)


def _encode_v1(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float16 [..., D] to codes uint8, signs int8 and the ends of the magnitudes float32 [..., 2]: the code v1, with 1 for
    the largest; of what is not finite the sign is -128."""
    magnitudes, is_coded = _coded(values)
    high = magnitudes.where(is_coded, 0.0).amax(-1, keepdim=True)
    low = magnitudes.where(is_coded, math.inf).amin(-1, keepdim=True).minimum(high)
    levels = LEVELS["v1"]
    code = levels + 1 - _codes(magnitudes, low, high, levels).where(is_coded, 1)
    sign = torch.sign(values).nan_to_num(0.0).to(torch.int8)
    return code, sign.where(is_coded | (values == 0), -128), torch.cat((low, high), -1).float()


def _decode_v1(stored: Tensor, sign: Tensor, ends: Tensor) -> Tensor:
    magnitudes = _magnitudes(LEVELS["v1"] + 1 - stored, ends, LEVELS["v1"])
    return (magnitudes * sign).where(sign != -128, math.nan).to(torch.float16)


def _coded(values: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes, and which of them are finite and not 0."""
    magnitudes = values.abs()
    return magnitudes, torch.isfinite(values) & (magnitudes > 0)


def _codes(magnitudes: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
    """uint8 1…levels of float16 magnitudes: evenly spaced in their logarithm."""
    logarithm, first, last = (_logarithm(each) for each in (magnitudes, low, high))
    scale = torch.where(last > first, (levels - 1) / (last - first), 0.0)
    return ((logarithm - first).clamp_min(0) * scale).clamp_max(levels - 1).round_().add_(1).to(torch.uint8)


def _magnitudes(code: Tensor, ends: Tensor, levels: int) -> Tensor:
    """float32 that codes 1…levels stand for."""
    first, last = _logarithm(ends[..., :1].half()), _logarithm(ends[..., 1:].half())
    return torch.exp(first + (code.float() - 1) * ((last - first) / (levels - 1)))


def _logarithm(magnitudes: Tensor) -> Tensor:
    """float32, natural, of float16 magnitudes; 0 of what has none."""
    return _table(magnitudes.device)[magnitudes.contiguous().view(torch.int16).int() & 0x7FFF]


@cache
def _table(device: torch.device) -> Tensor:
    """float32 [32768]: the logarithm of each float16 by its bits."""
    values = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log(values)
    return torch.from_numpy(np.where(np.isfinite(logarithms), logarithms, 0.0).astype(np.float32)).to(device)


def _upwards(values: Tensor) -> Tensor:
    """float32 to float16, never below."""
    halves = values.half()
    bits = halves.view(torch.int16)
    return torch.where(halves.float() < values, bits + 1, bits).view(torch.float16)
