"""Codecs that change the type only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.compression.codec import Codec, chunks, float_scratch, largest_magnitude

BELOW_2_15 = 32752.0
"""The largest float16 below 2^15."""

LARGEST_BF16 = float(torch.finfo(torch.bfloat16).max)


class NoneCodec(Codec):
    """float32 as it is: 4n bytes."""

    name = "none"

    def _size(self, n: int) -> int:
        return 4 * n

    def _encode(self, x: Tensor, payload: Tensor, key: str) -> None:
        payload.view(torch.float32).copy_(x)

    def _decode(self, payload: Tensor, out: Tensor) -> None:
        out.copy_(payload.view(torch.float32))


class BF16Codec(Codec):
    """bfloat16, rounded to nearest: 2n bytes, relative error at most 2^-8.

    A magnitude above the largest bfloat16, 3.3895e38, becomes that one and not Inf.
    """

    name = "bf16"

    def _size(self, n: int) -> int:
        return 2 * n

    def _encode(self, x: Tensor, payload: Tensor, key: str) -> None:
        codes = payload.view(torch.bfloat16)
        for part in chunks(x.numel()):
            within = float_scratch(part.stop - part.start)
            codes[part] = torch.clamp(x[part], -LARGEST_BF16, LARGEST_BF16, out=within)

    def _decode(self, payload: Tensor, out: Tensor) -> None:
        out.copy_(payload.view(torch.bfloat16)[: out.numel()])


class BF16RingCodec(BF16Codec):
    """The same, and what hosts have encoded is added up as it is, in gloo's ring, where all have as many ranks.

    Half of what `bf16` has a processor do. Sums of several hosts are rounded to bfloat16 as well, by up to 2^-8 for each,
    and nobody is owed that; what the encoding of this rank's shard lost is. Elsewhere it is `bf16`.
    """

    name = "bf16-ring"
    sums_in = torch.bfloat16


class FP16Codec(Codec):
    """float16 of x / f, with one power of two f for the payload: 4 + 2n bytes.

    f brings the largest magnitude to between 2^14 and 2^15. So no number is above 65504 and becomes Inf, none of a bucket
    of small gradients vanishes as it would in plain float16, and dividing by f is exact. The sum is made in float32 of what
    is decoded, which is why its range is of no concern here.
    |error| <= 2^-11 |x| + 2^-25 f.
    """

    name = "fp16"

    def _size(self, n: int) -> int:
        return 4 + 2 * n

    def _encode(self, x: Tensor, payload: Tensor, key: str) -> None:
        exponent = max(math.frexp(largest_magnitude(x))[1] - 15, -126)  # f stays a normal float32, and so does 1/f
        payload[:4].view(torch.float32)[0] = math.ldexp(1.0, exponent)
        codes = payload[4:].view(torch.float16)
        for part in chunks(x.numel()):
            scaled = float_scratch(part.stop - part.start)
            torch.mul(x[part], math.ldexp(1.0, -exponent), out=scaled)
            # Near float32's end a magnitude would be rounded up to 2^15 · f = 2^128, which is Inf.
            codes[part] = scaled.clamp_(-BELOW_2_15, BELOW_2_15) if exponent == 113 else scaled

    def _decode(self, payload: Tensor, out: Tensor) -> None:
        out.copy_(payload[4:].view(torch.float16)[: out.numel()])
        out.mul_(float(payload[:4].view(torch.float32)))
