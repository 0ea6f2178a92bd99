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
    def is_coarse(parts: Sequence[tuple[Grid, Codes]]) -> bool:
        """Whether ranges of its own would give a tensor with these chunks noticeably smaller steps."""


class LinearGrid(Grid):
    """Multiples of a scale for each block of 128."""

    codec = INT8

    def __init__(self, scales: Floats, n: int) -> None:
        self.scales, self._n = scales, n

    @classmethod
    def split(cls, payload: Bytes, n: int) -> tuple[Grid, Codes]:
        head = SCALE_BYTES * num_blocks(n)
        return cls(scales_of(payload[:head]), n), payload[head:].view(np.int8).astype(np.int16)

    def quantize(self, values: Floats) -> tuple[Codes, Flags]:
        scales = self._spread()
        is_flat = scales == 0
        steps = np.rint(values / np.where(is_flat, np.float32(1), scales))
        is_none = (np.abs(steps) > LARGEST) | (is_flat & (values != 0))
        return np.where(is_none, 0, steps).astype(np.int16), is_none

    def values(self, codes: Codes) -> Floats:
        with np.errstate(over="ignore"):
            products = codes.astype(np.float32) * self._spread()
        return np.clip(products, -_LARGEST_FLOAT, _LARGEST_FLOAT)

    def _spread(self) -> Floats:
        """The scale of each number."""
        return np.repeat(self.scales, BLOCK)[: self._n]

    @staticmethod
    def is_coarse(parts: Sequence[tuple[Grid, Codes]]) -> bool:
        """The largest code of a block would be 127: where it is 100 on average, steps are 1.27 times what they could be.
        Where it is 63 in more than one block of a hundred, those have lost a bit."""
        tops = np.concatenate([grid.tops(codes) for grid, codes in parts if isinstance(grid, LinearGrid)])
        return len(tops) > 0 and (float(tops.mean()) < 100 or float((tops < 64).mean()) > 0.01)

    def tops(self, codes: Codes) -> Codes:
        """The largest code of each block that is not all zeros in the base."""
        found: Codes = np.maximum.reduceat(np.abs(codes), np.arange(0, self._n, BLOCK))[self.scales > 0]
        return found


class LogarithmicGrid(Grid):
    """Powers of one step for the whole tensor, and 0."""

    codec = LOG8U

    def __init__(self, low: float, high: float) -> None:
        check_range(low, high)
        self.ends = low, high

    @classmethod
    def split(cls, payload: Bytes, n: int) -> tuple[Grid, Codes]:
        codes = payload[RANGE_BYTES:].astype(np.int16)
        codes[codes == 0] = ZERO
        return cls(*payload[:RANGE_BYTES].view("<f4").astype(np.float64).tolist()), codes

    def quantize(self, values: Floats) -> tuple[Codes, Flags]:
        codes, is_none = np.full(len(values), ZERO, np.int16), values < 0
        low, high = self.ends
        extent = high - low
        if extent == 0:
            return codes, is_none | (values > 0)
        factor = (LARGEST_CODE - 1) / extent
        for start in range(0, len(values), PIECE):
            piece = slice(start, start + PIECE)
            where = np.flatnonzero(values[piece] > 0)
            places = LARGEST_CODE - (np.log(values[piece][where].astype(np.float64)) - low) * factor
            is_none[piece][where] = np.abs(places) > LARGEST
            codes[piece][where] = np.rint(np.clip(places, -LARGEST, LARGEST))
        return codes, is_none

    def values(self, codes: Codes) -> Floats:
        low, high = self.ends
        places = np.arange(-LARGEST, LARGEST + 1)
        n = (LARGEST_CODE - places) / (LARGEST_CODE - 1)
        with np.errstate(over="ignore", under="ignore"):
            table = np.minimum(np.exp(low + n * (high - low)), _LARGEST_FLOAT).astype(np.float32)
        found: Floats = table[np.clip(codes, -LARGEST, LARGEST).astype(np.int32) + LARGEST]
        found[codes == ZERO] = 0
        return found

    @staticmethod
    def is_coarse(parts: Sequence[tuple[Grid, Codes]]) -> bool:
        """Where less than three quarters of the range are left."""
        coded = [each for _, codes in parts if len(each := codes[codes != ZERO])]
        extent = max(int(each.max()) for each in coded) - min(int(each.min()) for each in coded) if coded else LARGEST_CODE
        return extent < (LARGEST_CODE - 1) * 3 / 4


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
