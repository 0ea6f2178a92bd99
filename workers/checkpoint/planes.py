"""Byte planes: byte i of every element together, so that signs and exponents stand side by side and compress.

For elements of k bytes, `planes[i * n + j] = raw[j * k + i]`. Little-endian as in memory, so plane k - 1 holds signs
and high exponent bits. A permutation of bytes: every bit pattern survives, NaN payloads and -0.0 included.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def split_planes(raw: Bytes, itemsize: int, out: Bytes) -> None:
    """Write the planes of `raw` [n * itemsize] to `out` [n * itemsize]."""
    elements, planes = raw.reshape(-1, itemsize), out.reshape(itemsize, -1)
    for index in range(itemsize):
        planes[index] = elements[:, index]


def join_planes(planes: Bytes, itemsize: int, out: Bytes) -> None:
    """Write the elements that `planes` [n * itemsize] was split from to `out` [n * itemsize]."""
    elements, rows = out.reshape(-1, itemsize), planes.reshape(itemsize, -1)
    for index in range(itemsize):
        elements[:, index] = rows[index]
