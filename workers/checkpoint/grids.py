"""The codes of a tensor on ranges that stay: what a difference between two checkpoints is a difference of (CK-2, QN-20).

A payload of `int8.128/1` or `qins.log8u/1` (workers/checkpoint/lossy.py) is a head, which says what a step is, and codes. A
later tensor has codes on the same head, too, and where it has changed little most of them are the same. They may leave the
range of a byte: a linear code beyond 127, a logarithmic one below 1 or above 255. What has no code at all, or one too far
away, is an escape, kept as float32.

Codes here are int16 [n]. In `qins.log8u/1` `ZERO` is the code of 0, which has no logarithm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workers.checkpoint.lossy import BLOCK, INT8, LOG8U, RANGE_BYTES, SCALE_BYTES, num_blocks, scales_of
from workers.checkpoint.planes import Bytes
from workers.qins.codec import LARGEST_CODE, check_range

Codes = NDArray[np.int16]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

ZERO = -(1 << 15)
LARGEST = 4096
"""No code is further from 0, but `ZERO`."""

PIECE = 1 << 20
"""Numbers that are held in float64 at once."""

_RUNS, _RUN = 64, 1024

_LARGEST_FLOAT = float(np.finfo(np.float32).max)


class Grid(ABC):
    """The numbers that the codes of one chunk can stand for."""

    codec: str
    """Whose payloads have this head."""

    def __init__(self, head: Bytes) -> None:
        self.head = head

    @classmethod
    @abstractmethod
    def split(cls, payload: Bytes, n: int) -> tuple[Grid, Codes]:
        """Of a chunk of n numbers. Raises ValueError where the payload is none."""

    @abstractmethod
    def quantize(self, values: Floats) -> tuple[Codes, Flags]:
        """The codes of finite float32 [n], and which of them are none: those have to be escapes."""

    @abstractmethod
    def values(self, codes: Codes) -> Floats:
        """float32 [n]; any int16 stands for a finite number."""

    @staticmethod
    @abstractmethod
    def is_coarse(chunks: Sequence[Codes]) -> bool:
        """Whether ranges of its own would give a tensor with these codes noticeably smaller steps."""


class LinearGrid(Grid):
    """Multiples of a scale for each block of 128."""

    codec = INT8

    def __init__(self, head: Bytes, n: int) -> None:
        super().__init__(head)
        self._scales = np.repeat(scales_of(head), BLOCK)[:n]

    @classmethod
    def split(cls, payload: Bytes, n: int) -> tuple[Grid, Codes]:
        head = payload[: SCALE_BYTES * num_blocks(n)]
        return cls(head, n), payload[len(head) :].view(np.int8).astype(np.int16)

    def quantize(self, values: Floats) -> tuple[Codes, Flags]:
        is_flat = self._scales == 0
        steps = np.rint(values / np.where(is_flat, np.float32(1), self._scales))
        is_none = (np.abs(steps) > LARGEST) | (is_flat & (values != 0))
        return np.where(is_none, 0, steps).astype(np.int16), is_none

    def values(self, codes: Codes) -> Floats:
        with np.errstate(over="ignore"):
            products = codes.astype(np.float32) * self._scales
        return np.clip(products, -_LARGEST_FLOAT, _LARGEST_FLOAT)

    @staticmethod
    def is_coarse(chunks: Sequence[Codes]) -> bool:
        """A block's largest code would be 127: where it is 90 on average, steps are 1.4 times what they could be."""
        tops = np.concatenate([np.maximum.reduceat(np.abs(codes), np.arange(0, len(codes), BLOCK)) for codes in chunks])
        tops = tops[tops > 0]
        return len(tops) > 0 and float(tops.mean()) < 90


class LogarithmicGrid(Grid):
    """Powers of one step for the whole tensor, and 0."""

    codec = LOG8U

    def __init__(self, head: Bytes) -> None:
        super().__init__(head)
        self._low, self._high = head.view("<f4").astype(np.float64).tolist()
        check_range(self._low, self._high)

    @classmethod
    def split(cls, payload: Bytes, n: int) -> tuple[Grid, Codes]:
        codes = payload[RANGE_BYTES:].astype(np.int16)
        codes[codes == 0] = ZERO
        return cls(payload[:RANGE_BYTES]), codes

    def quantize(self, values: Floats) -> tuple[Codes, Flags]:
        codes, is_none = np.full(len(values), ZERO, np.int16), values < 0
        extent = self._high - self._low
        if extent == 0:
            return codes, is_none | (values > 0)
        factor = (LARGEST_CODE - 1) / extent
        for start in range(0, len(values), PIECE):
            piece = slice(start, start + PIECE)
            where = np.flatnonzero(values[piece] > 0)
            places = LARGEST_CODE - (np.log(values[piece][where].astype(np.float64)) - self._low) * factor
            is_none[piece][where] = np.abs(places) > LARGEST
            codes[piece][where] = np.rint(np.clip(places, -LARGEST, LARGEST))
        return codes, is_none

    def values(self, codes: Codes) -> Floats:
        places = np.arange(-LARGEST, LARGEST + 1)
        n = (LARGEST_CODE - places) / (LARGEST_CODE - 1)
        with np.errstate(over="ignore", under="ignore"):
            table = np.minimum(np.exp(self._low + n * (self._high - self._low)), _LARGEST_FLOAT).astype(np.float32)
        found: Floats = table[np.clip(codes, -LARGEST, LARGEST).astype(np.int32) + LARGEST]
        found[codes == ZERO] = 0
        return found

    @staticmethod
    def is_coarse(chunks: Sequence[Codes]) -> bool:
        """Where what is left of the range is less than two thirds of it."""
        coded = [each for codes in chunks if len(each := codes[codes != ZERO])]
        extent = max(int(each.max()) for each in coded) - min(int(each.min()) for each in coded) if coded else LARGEST_CODE
        return extent < (LARGEST_CODE - 1) * 2 / 3


GRIDS: dict[str, type[LinearGrid] | type[LogarithmicGrid]] = {grid.codec: grid for grid in (LinearGrid, LogarithmicGrid)}
"""By the codec whose payloads they take apart."""


def entropy(symbols: NDArray[np.integer]) -> float:
    """Bits per symbol of whole numbers [n], by the frequencies in at most 64 runs of 1024 of them."""
    if len(symbols) > _RUNS * _RUN:
        starts = np.linspace(0, len(symbols) - _RUN, _RUNS).astype(np.int64)
        symbols = np.concatenate([symbols[start : start + _RUN] for start in starts])
    _, counts = np.unique(symbols, return_counts=True)
    shares = counts / counts.sum()
    return -float((shares * np.log2(shares)).sum()) if len(counts) > 1 else 0.0
