"""Logarithmic codes on the range of each block of 128 numbers: `log7` and `log8` of the v2 container (QN-18, QN-19).

A number is a sign and a code of its magnitude, an exponent of two. The codes of a block are evenly spaced exponents between
the block's smallest and largest magnitude that is finite and not 0, ends rounded outward, so nothing is clipped and neither
zeros nor anything that is no number touches the range. Exponents are whole multiples of 1 / 2048: so the magnitudes are
those of a table of 2048 numbers times a power of two, and every machine decodes to the same bits.

| | code | zero | magnitudes | escape | sign | bits with ranges |
|---|---|---|---|---|---|---|
| `log7` | 7 bits | 0 | 1…126 | 127 | highest bit of the byte | 8.25 |
| `log8` | 8 bits | 0 | 1…254 | 255 | a bit of its own, lowest first | 9.25 |

An escape stands for a number that the code has no place for: NaN, whose payload is kept, an infinity, -0. With `steps` the
number of magnitudes less 1 and R the range of the block in nats, the relative error is at most exp(R' / (2 steps)) - 1,
where R' is R + 1 / 128 + steps / 2048 octaves at most.

A payload of n numbers in B = ⌈n / 128⌉ blocks, little-endian:

| what | bytes |
|---|---|
| for each block the exponent of code 1, in units of 1 / 128 octave, int16 | 2 B |
| for each block the exponents from code to code, in units of 1 / 2048 octave, uint16 | 2 B |
| codes | n |
| `log8`: sign bits | ⌈n / 8⌉ |
| how many escapes, uint32 | 4 |
| where they are, uint32, rising; then their float32 bits | 8 each |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 128
PIECE = 1 << 15
FINE = 2048
"""Exponents in an octave."""

COARSE = 128
"""Of the lower ends."""

MOST_ESCAPES = 0.01
"""Of all numbers; with more a tensor is better kept as it is."""

_SIGN = np.uint32(1 << 31)
_TABLE = np.exp2(np.arange(FINE) / FINE).astype(np.float32).view(np.int32)
"""int32 [2048]: the bits of 2^(i / 2048) as float32, all from 1 to less than 2."""

_PER_OCTAVE = FINE.bit_length() - 1
_MANTISSA_BITS = 23
_NORMAL = -126, 127
"""Exponents of two of the normal float32 numbers."""

_TOP_BITS = 11
_LOGARITHMS = np.round(np.log2(1 + (np.arange(1 << _TOP_BITS) + 0.5) / (1 << _TOP_BITS)) * FINE * 16).astype(np.int32)
"""Of the middle of the mantissas with the same first bits, in units of 1 / 32768 octave: 2^-12 off at most, a hundredth of
the step of a block over a factor of 2."""

_LOG_UNITS = FINE * 16
_NONE = 1 << 30
"""More than any logarithm, in these units."""

_LOWEST, _HIGHEST = -149, 128
"""Exponents of two of float32 magnitudes, rounded outward."""

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Words = NDArray[np.uint32]


@dataclass(frozen=True)
class BlockCode:
    """One of the two. `levels`: magnitudes that it tells apart; `packs_sign`: the sign is no part of the byte."""

    name: str
    levels: int
    packs_sign: bool

    @property
    def escape(self) -> int:
        """The code of what has no other."""
        return self.levels + 1

    def least_bytes(self, n: int) -> int:
        """Of a payload of n numbers without escapes."""
        return 4 * num_blocks(n) + n + (-(-n // 8) if self.packs_sign else 0) + 4

    def most_bytes(self, n: int) -> int:
        """With as many escapes as there may be."""
        return self.least_bytes(n) + 8 * most_escapes(n)

    def encode(self, values: Floats, name: str = "tensor") -> bytes:
        """The payload of float32 [n]. Raises ValueError where there are more escapes than there may be."""
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        n, blocks = len(bits), num_blocks(len(bits))
        codes, signs = np.empty(n, np.uint8), np.empty(-(-n // 8) if self.packs_sign else 0, np.uint8)
        lowest, steps = np.empty(blocks, np.int32), np.empty(blocks, np.int32)
        found = [np.empty(0, np.intp)]
        for piece, of_blocks in _pieces(n):
            part = bits[piece]
            escapes = self._encode(part, codes[piece], lowest[of_blocks], steps[of_blocks])
            found.append(escapes + piece.start)
            if self.packs_sign:
                signs[piece.start // 8 : -(-piece.stop // 8)] = np.packbits(part >> np.uint32(31) != 0, bitorder="little")
        where = np.concatenate(found)
        if len(where) > most_escapes(n):
            raise ValueError(
                f"{len(where)} of {n} numbers of {name} are NaN, infinite or -0, which {self.name} holds of "
                f"{MOST_ESCAPES:.0%} only"
            )
        parts = [lowest.astype("<i2").tobytes(), steps.astype("<u2").tobytes(), codes.tobytes(), signs.tobytes()]
        parts += [np.array([len(where)], "<u4").tobytes(), where.astype("<u4").tobytes()]
        return b"".join([*parts, bits[where].astype("<u4").tobytes()])

    def _encode(self, bits: Words, codes: Bytes, lowest: Ints, steps: Ints) -> NDArray[np.intp]:
        """Of whole blocks, the last one may be shorter: writes uint8 [n], and of each block the lowest exponent and the
        step, int32 [B]. Returns where the escapes are."""
        n, blocks = len(bits), len(lowest)
        magnitudes = bits & ~_SIGN
        escapes = np.flatnonzero((magnitudes >= 0x7F800000) | (bits == _SIGN))
        padded, is_padded = np.empty(blocks * BLOCK, np.int32), np.zeros(blocks * BLOCK, np.bool_)
        _logarithms(magnitudes, padded[:n])
        np.greater(magnitudes, 0, out=is_padded[:n])
        is_padded[escapes] = False
        grid, is_coded = padded.reshape(blocks, BLOCK), is_padded.reshape(blocks, BLOCK)
        low = grid.min(1, initial=_NONE, where=is_coded)
        high = grid.max(1, initial=-_NONE, where=is_coded)
        is_empty = low > high
        low[is_empty], high[is_empty] = 0, 0
        np.floor_divide(low, _LOG_UNITS // COARSE, out=lowest)
        low = lowest * (_LOG_UNITS // COARSE)
        steps[:] = -((low - high) // (_LOG_UNITS // FINE * (self.levels - 1)))
        scale = np.divide(1.0, steps * (_LOG_UNITS // FINE), out=np.zeros(blocks), where=steps > 0).astype(np.float32)
        grid -= low[:, None]
        offsets = grid.astype(np.float32)
        offsets *= scale[:, None]
        offsets += np.float32(1.5)
        offsets[~is_coded] = 0.0
        codes[:] = offsets.reshape(-1)[:n].astype(np.uint8)
        codes[escapes] = self.escape
        if not self.packs_sign:
            codes |= ((bits >> np.uint32(24)) & np.uint32(0x80)).astype(np.uint8)
        return escapes

    def decode(self, payload: Bytes, n: int) -> Floats:
        """float32 [n]. Raises ValueError, with the reason, where the payload is none of n numbers."""
        blocks, least = num_blocks(n), self.least_bytes(n)
        if len(payload) < least:
            raise ValueError(f"{len(payload)} bytes are fewer than the {least} that {n} numbers take")
        ends, codes = 4 * blocks, 4 * blocks + n
        lowest = payload[: 2 * blocks].view("<i2").astype(np.int32)
        steps = payload[2 * blocks : ends].view("<u2").astype(np.int32)
        code, signs = payload[ends:codes], payload[codes : least - 4]
        highest = lowest.astype(np.int64) * (FINE // COARSE) + steps.astype(np.int64) * (self.levels - 1)
        if blocks and (int(lowest.min()) < _LOWEST * COARSE or int(highest.max()) > (_HIGHEST + 1) * FINE + self.levels):
            raise ValueError("a block has a range beyond that of float32")
        bits = np.empty(n, np.int32)
        for piece, of_blocks in _pieces(n):
            of_piece = signs[piece.start // 8 : -(-piece.stop // 8)]
            self._decode(code[piece], of_piece, lowest[of_blocks], steps[of_blocks], bits[piece])
        values = bits.view(np.float32)
        self._put_escapes(values, code, payload[least - 4 :])
        return values

    def _decode(self, code: Bytes, signs: Bytes, lowest: Ints, steps: Ints, bits: Ints) -> None:
        """Of whole blocks, the last one may be shorter: writes the bits of float32 [n]; 0 for zeros and escapes."""
        n, blocks = len(code), len(lowest)
        if self.packs_sign:
            negative = np.unpackbits(signs, count=n, bitorder="little").astype(np.int32)
        else:
            negative, code = (code >> np.uint8(7)).astype(np.int32), code & np.uint8(0x7F)
        padded = np.zeros(blocks * BLOCK, np.int32)
        padded[:n] = code
        grid = padded.reshape(blocks, BLOCK)
        grid -= 1
        grid *= steps[:, None]
        grid += (lowest * (FINE // COARSE))[:, None]
        exponents = padded[:n]
        np.take(_TABLE, exponents & (FINE - 1), out=bits)
        exponents >>= _PER_OCTAVE
        if _NORMAL[0] <= int(exponents.min()) and int(exponents.max()) <= _NORMAL[1]:
            exponents <<= _MANTISSA_BITS
            bits += exponents
        else:
            bits[:] = _scaled(bits.view(np.float32), exponents).view(np.int32)
        bits[(code == 0) | (code == self.escape)] = 0
        negative <<= 31
        bits |= negative

    def _put_escapes(self, values: Floats, code: Bytes, rest: Bytes) -> None:
        count = int(rest[:4].view("<u4")[0])
        where = np.flatnonzero((code if self.packs_sign else code & np.uint8(0x7F)) == self.escape)
        if count != len(where) or len(rest) != 4 + 8 * count:
            raise ValueError(f"{len(where)} codes are escapes, but {count} are listed in {len(rest) - 4} bytes")
        if not np.array_equal(rest[4 : 4 + 4 * count].view("<u4"), where):
            raise ValueError("the list of escapes is not of the codes that are some")
        values.view(np.uint32)[where] = rest[4 + 4 * count :].view("<u4")


def _pieces(n: int) -> Iterator[tuple[slice, slice]]:
    """Of n numbers so many at once as stay in a processor's cache while they are worked on; and their blocks."""
    for start in range(0, n, PIECE):
        stop = min(n, start + PIECE)
        yield slice(start, stop), slice(start // BLOCK, num_blocks(stop))


def _scaled(values: Floats, powers: Ints) -> Floats:
    """float32 [n], times these powers of two, subnormal or at most the largest number."""
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.ldexp(values, powers)
    return np.minimum(scaled, np.finfo(np.float32).max).astype(np.float32, copy=False)


def _logarithms(magnitudes: Words, out: Ints) -> None:
    """To base 2, in units of 1 / 32768 octave, of float32 magnitudes given by their bits; of 0 and what is no number
    anything."""
    words = magnitudes.view(np.int32)
    np.take(_LOGARITHMS, (words >> (_MANTISSA_BITS - _TOP_BITS)) & ((1 << _TOP_BITS) - 1), out=out)
    exponents = words >> _MANTISSA_BITS
    exponents -= 127
    exponents *= _LOG_UNITS
    out += exponents
    small = np.flatnonzero((magnitudes < 0x00800000) & (magnitudes > 0))
    if len(small):  # subnormal: their bits count units of 2^-149
        out[small] = np.round((np.log2(magnitudes[small].astype(np.float64)) - 149) * _LOG_UNITS).astype(np.int32)


def num_blocks(n: int) -> int:
    return -(-n // BLOCK)


def most_escapes(n: int) -> int:
    """One at least, so that a single NaN does not decide over a small tensor."""
    return max(1, int(n * MOST_ESCAPES))


LOG7 = BlockCode("log7", 126, packs_sign=False)
LOG8 = BlockCode("log8", 254, packs_sign=True)
