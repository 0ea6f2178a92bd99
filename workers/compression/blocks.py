"""Codecs of a few bits an element and one scale for each block of neighbours.

A scale is a bfloat16: the two bytes of a float16, but the range of float32, so that the scale of no finite block is Inf or
zero. A block whose magnitudes are all zero, or too small for float32's normal range, decodes to zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from workers.compression.casts import LARGEST_BF16
from workers.compression.codec import CHUNK, Codec, CodecError, chunks, code_scratch, float_scratch
from workers.compression.finite import is_finite

SMALLEST_NORMAL = 2.0**-126
BLOCKS = tuple(1 << exponent for exponent in range(4, 17))


class BlockCodec(Codec):
    """`bits` an element behind one scale for each block of `block` elements, the last block shorter."""

    bits: int

    def __init__(self, block: int) -> None:
        if not isinstance(block, int) or block not in BLOCKS:
            raise CodecError(
                f"{self.name} has blocks of a power of two, {BLOCKS[0]} to {BLOCKS[-1]}, and not of {block}; "
                "write block: 256"
            )
        self.block = self.granularity = block

    @property
    def parameters(self) -> Mapping[str, float]:
        return {"block": self.block}

    def _size(self, n: int) -> int:
        return 2 * self._num_blocks(n) + -(-self.bits * n // 8)

    def _num_blocks(self, n: int) -> int:
        return -(-n // self.block)

    def _split(self, payload: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The scales, bfloat16 [..., blocks], and the codes, uint8, of a payload, or of several, [..., nbytes]."""
        cut = 2 * self._num_blocks(n)
        return payload.narrow(-1, 0, cut).view(torch.bfloat16), payload.narrow(-1, cut, self._size(n) - cut)

    def _rows(self, flat: Tensor, scales: Tensor) -> list[tuple[Tensor, Tensor]]:
        """`flat`, [n], as [blocks, block] and, where n is no multiple of the block, the rest as [1, rest]; with scales."""
        n = flat.numel()
        whole = n // self.block
        cut = whole * self.block
        rows = [(flat[:cut].view(whole, self.block), scales[:whole])] if whole else []
        return [*rows, (flat[cut:].view(1, -1), scales[whole:])] if cut < n else rows

    def _scale(self, out: Tensor, scales: Tensor) -> None:
        """Multiply each block of `out`, [..., n], by its scale, in place."""
        n, scales = out.shape[-1], scales.float()
        whole = n // self.block
        cut = whole * self.block
        if whole:
            blocks = out.narrow(-1, 0, cut).view(*out.shape[:-1], whole, self.block)
            blocks.mul_(scales.narrow(-1, 0, whole).unsqueeze(-1))
        if cut < n:
            out.narrow(-1, cut, n - cut).mul_(scales.narrow(-1, whole, 1))


class _Quantizer(BlockCodec):
    """Symmetric and linear: code = round(x / scale), half to even, with scale = max |x| of the block / L, rounded up.

    |error| <= scale / 2, where scale <= (1 + 2^-7) max |x| / L.
    """

    def __init__(self, block: int) -> None:
        super().__init__(block)
        self._levels = (1 << (self.bits - 1)) - 1
        # The largest bfloat16 of which L times is still a float32; a larger one is asked for by no finite block, but for
        # being rounded up.
        largest = torch.tensor(torch.finfo(torch.float32).max / self._levels)
        self._largest_scale = float((largest.view(torch.int32) & -65536).view(torch.float32))

    def _quantize(self, x: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Fill int8 `codes`, [n], and the scales of its blocks."""
        for part in chunks(x.numel()):
            blocks = slice(part.start // self.block, self._num_blocks(part.stop))
            pairs = zip(self._rows(x[part], scales[blocks]), self._rows(codes[part], scales[blocks]), strict=True)
            for (rows, each), (out, _) in pairs:
                exact = torch.maximum(rows.amax(1), rows.amin(1).neg_()).mul_(1 / self._levels)
                exact.view(torch.int32).add_(0xFFFF).bitwise_and_(-65536)  # up to the next bfloat16
                exact.clamp_(SMALLEST_NORMAL, self._largest_scale)
                each.copy_(exact)
                codes_as_floats = float_scratch(rows.numel()).view(rows.shape)
                out.copy_(torch.mul(rows, exact.reciprocal_().unsqueeze(1), out=codes_as_floats).round_())


class Int8Codec(_Quantizer):
    """Codes -127 to 127: n bytes, and 2 for each block; 1.008 n with blocks of 256."""

    name = "int8"
    bits = 8

    def __init__(self, block: int = 256) -> None:
        super().__init__(block)

    def _encode(self, x: Tensor, payload: Tensor, key: str) -> None:
        scales, codes = self._split(payload, x.numel())
        self._quantize(x, codes.view(torch.int8), scales)

    def _decode(self, payload: Tensor, out: Tensor) -> None:
        scales, codes = self._split(payload, out.shape[-1])
        out.copy_(codes.view(torch.int8))
        self._scale(out, scales)

    def _decode_all(self, payloads: Tensor, out: Tensor) -> None:
        self._decode(payloads, out)


class Int4Codec(_Quantizer):
    """Codes -7 to 7, two a byte: n/2 bytes, and 2 for each block; 0.53 n with blocks of 64.

    The low halves of the bytes hold the first half of the blocks, the high ones the rest: packing moves no neighbours.
    """

    name = "int4"
    bits = 4

    def __init__(self, block: int = 64) -> None:
        super().__init__(block)

    def _size(self, n: int) -> int:
        return 2 * self._num_blocks(n) + self._half(n)

    def _half(self, n: int) -> int:
        return min(n, -(-self._num_blocks(n) // 2) * self.block)

    def _encode(self, x: Tensor, payload: Tensor, key: str) -> None:
        scales, packed = self._split(payload, x.numel())
        half = packed.numel()
        if x.numel() <= CHUNK:
            codes = code_scratch(x.numel())
            self._quantize(x, codes, scales)
            _pack(codes[:half], codes[half:], packed)
            return
        cut = half // self.block
        low = packed.view(torch.int8)
        self._quantize(x[:half], low, scales[:cut])
        for part in chunks(x.numel() - half):
            high = code_scratch(part.stop - part.start)
            blocks = slice(cut + part.start // self.block, cut + self._num_blocks(part.stop))
            self._quantize(x[half:][part], high, scales[blocks])
            _pack(low[part], high, packed[part])
        packed[x.numel() - half :].bitwise_and_(15)

    def _decode(self, payload: Tensor, out: Tensor) -> None:
        scales, packed = self._split(payload, out.numel())
        codes, half = packed.view(torch.int8), packed.numel()
        for part in chunks(half):
            low = code_scratch(part.stop - part.start)
            torch.bitwise_left_shift(codes[part], 4, out=low)
            out[part] = low.bitwise_right_shift_(4)  # of int8, so the sign comes back
        for part in chunks(out.numel() - half):
            high = code_scratch(part.stop - part.start)
            out[half:][part] = torch.bitwise_right_shift(codes[part], 4, out=high)
        self._scale(out, scales)


def _pack(low: Tensor, high: Tensor, out: Tensor) -> None:
    """uint8 `out`: the codes `low`, int8, in the low halves, and `high`, of which there may be fewer, in the high ones."""
    torch.bitwise_and(low.view(torch.uint8), 15, out=out)
    out[: high.numel()].bitwise_or_(high.view(torch.uint8).bitwise_left_shift_(4))


class SignCodec(BlockCodec):
    """The sign and the block's mean magnitude: n/8 bytes, and 2 for each block; 1.031 n/8 with blocks of 512.

    Of all ±s the mean magnitude is nearest to the block (1-bit SGD; Seide et al. 2014; scaled sign, Karimireddy et al.
    2019). It cannot represent a zero, and |error| <= |x| + s, so it needs error feedback and a dense start.
    """

    name = "sign"
    bits = 1

    def __init__(self, block: int = 512) -> None:
        super().__init__(block)

    def _encode(self, x: Tensor, payload: Tensor, key: str) -> None:
        scales, packed = self._split(payload, x.numel())
        np.copyto(packed.numpy(), np.packbits(np.signbit(x.numpy())))
        for part in chunks(x.numel()):
            blocks = slice(part.start // self.block, self._num_blocks(part.stop))
            for rows, each in self._rows(x[part], scales[blocks]):
                magnitudes = torch.abs(rows, out=float_scratch(rows.numel()).view(rows.shape))
                means = magnitudes.sum(1).div_(rows.shape[1])
                if not is_finite(means):  # a sum of magnitudes of 1e36 and more overflows
                    means = magnitudes.mean(1, dtype=torch.float64)
                each.copy_(means.clamp_(max=LARGEST_BF16))

    def _decode(self, payload: Tensor, out: Tensor) -> None:
        scales, packed = self._split(payload, out.numel())
        negative = torch.from_numpy(np.unpackbits(packed.numpy(), count=out.numel())).view(torch.int8)
        out.copy_(negative.mul_(-2).add_(1))
        self._scale(out, scales)
