"""Differences between the codes of a tensor in two checkpoints of the qins tier (CK-2, QN-20).

A tensor in `int8.128/1` or `qins.log8u/1` keeps, until it is written whole again, the ranges that it was written whole with
(workers/checkpoint/grids.py). What is stored of a later one is by how much its codes differ: mostly 0, 1 and -1, of which
zstd makes a bit or two. So a difference loses what the whole tensor on those ranges would, and however many follow each
other, none adds to what was lost before. Where ranges of its own would be noticeably finer, a tensor is written whole.

| name | payload of a chunk of n elements |
|---|---|
| `int8.128.delta/1`, `qins.log8u.delta/1` | n differences int8; how many escapes, uint32; where they are, uint32, rising; \
their codes, int16; their values, float32 |

The code of an element is that of the base plus the difference. An escape has its value instead, and a code for the
difference that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.checkpoint.grids import GRIDS, LARGEST, ZERO, Codes, Floats, Grid, entropy
from workers.checkpoint.lossy import INT8, LOG8U
from workers.checkpoint.planes import Bytes
from workers.qins.blocks import most_escapes

DELTAS = {INT8: "int8.128.delta/1", LOG8U: "qins.log8u.delta/1"}
"""By the codec of the base."""

WHOLE = {delta: codec for codec, delta in DELTAS.items()}

_FURTHEST = 127
_ESCAPE_BYTES = 10


@dataclass
class Coded:
    """A tensor as a reader of its checkpoint has it before it decodes it: of each chunk the ranges, and int16 codes [n]."""

    codec: str
    dtype: str
    shape: list[int]
    chunk: int
    parts: list[tuple[Grid, Codes]] = field(default_factory=list)

    def add(self, payload: Bytes) -> None:
        """The next chunk, written whole."""
        elements = int(np.prod(self.shape, dtype=np.int64)) - self.chunk * len(self.parts)
        self.parts.append(GRIDS[self.codec].split(payload, min(self.chunk, elements)))


def least_bytes(n: int) -> int:
    """Of a payload of n numbers without escapes."""
    return n + 4


def most_bytes(n: int) -> int:
    """With as many escapes as there may be."""
    return least_bytes(n) + _ESCAPE_BYTES * most_escapes(n)


def subtract(values: Tensor, base: Coded) -> tuple[Iterator[bytes], Coded] | None:
    """The payloads of finite float32 [N], chunk by chunk, and what a reader makes of them.

    None where the tensor is better written whole: where it has moved so far that differences take no fewer bits than
    codes, or more than one in a hundred has no code that is near, or its ranges do not fit it any more.
    """
    after = Coded(base.codec, base.dtype, base.shape, base.chunk)
    escapes = []
    chunks = [part.numpy() for part in values.split(base.chunk)]
    for part, (grid, before) in zip(chunks, base.parts, strict=True):
        codes, is_escape = grid.quantize(part)
        differences = codes.astype(np.int32)
        differences -= before
        is_escape |= np.abs(differences) > _FURTHEST  # so does 0 against a code
        where = np.flatnonzero(is_escape)
        differences[where] = 0
        if len(where) > most_escapes(len(part)) or entropy(differences) > entropy(before):
            return None
        escapes.append(where)
        after.parts.append((grid, codes))
    if GRIDS[base.codec].is_coarse(after.parts):
        return None
    return map(_payload, chunks, base.parts, after.parts, escapes), after


def _payload(values: Floats, base: tuple[Grid, Codes], after: tuple[Grid, Codes], where: NDArray[np.intp]) -> bytes:
    differences = after[1].astype(np.int32) - base[1]
    differences[where] = 0
    parts = [differences.astype(np.int8), np.array([len(where)], "<u4"), where.astype("<u4"), after[1][where].astype("<i2")]
    return b"".join(part.tobytes() for part in (*parts, values[where].astype("<f4")))


def add(payload: Bytes, grid: Grid, before: Codes) -> tuple[Codes, Callable[[], Tensor]]:
    """The codes of a chunk after the difference in `payload`, and a function that decodes them to float32 [n].

    Raises ValueError, with the reason, where the payload is none.
    """
    n = len(before)
    if len(payload) < least_bytes(n):
        raise ValueError(f"{len(payload)} bytes are fewer than the {least_bytes(n)} that {n} differences take")
    count = int.from_bytes(payload[n : n + 4].tobytes(), "little")
    rest = payload[n + 4 :]
    if len(rest) != _ESCAPE_BYTES * count:
        raise ValueError(f"{count} escapes are listed in {len(rest)} bytes")
    where = rest[: 4 * count].copy().view("<u4").astype(np.int64)
    codes_there = rest[4 * count : 6 * count].copy().view("<i2").astype(np.int16)
    values = rest[6 * count :].copy().view("<f4").astype(np.float32)
    if count and (not bool((np.diff(where) > 0).all()) or int(where[-1]) >= n):
        raise ValueError("the list of escapes is not of elements in order")
    if not bool(np.isfinite(values).all()):
        raise ValueError("an escape is NaN or infinite")
    wide = before.astype(np.int32) + payload[:n].view(np.int8)
    codes = np.clip(wide, -LARGEST, LARGEST).astype(np.int16)
    codes[before == ZERO] = ZERO
    codes[where] = codes_there

    def decode() -> Tensor:
        decoded = grid.values(codes)
        decoded[where] = values
        return torch.from_numpy(decoded)

    return codes, decode
