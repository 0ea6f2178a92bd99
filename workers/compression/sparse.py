"""Codecs that send the largest entries, as (index, value), and leave the rest to error feedback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.compression.codec import Codec, CodecError, chunks, float_scratch

REFRESH_STEPS = 64
HEADROOM = 1.25
SAMPLE = 1 << 14
"""Elements that guess where the largest begin."""

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


class _Sparse(Codec):
    """Sends about `density` of the entries; the others decode to zero."""

    def __init__(self, density: float) -> None:
        if not 0 < density <= 1:
            raise CodecError(f"the density of {self.name} is a share of the entries, and not {density:g}; write 0.01")
        self.density = density

    @property
    def parameters(self) -> Mapping[str, float]:
        return {"density": self.density}

    def count(self, n: int) -> int:
        """k: how many of n entries the density asks for, at least one."""
        return min(n, max(1, math.ceil(self.density * n)))


class TopKCodec(_Sparse):
    """The k = density · n entries of largest magnitude: 8k bytes, as k int32 indices that rise and k float32 values.

    Of equal magnitudes the one with the lower index is sent.
    """

    name = "topk"

    def _size(self, n: int) -> int:
        return 8 * self.count(n)

    def _encode(self, x: Tensor, payload: Tensor, key: str) -> None:
        values = x.numpy()
        chosen, _ = largest(values, self.count(len(x)))
        _write(payload, chosen, values)

    def _decode(self, payload: Tensor, out: Tensor) -> None:
        _scatter(payload, self.count(len(out)), out)


class _Threshold(NamedTuple):
    value: float
    age: int


class ThresholdCodec(_Sparse):
    """The entries of at least a threshold, which is kept for 64 steps (dynamic communication thresholding; Gupta et al.
    2021). Refreshed, it is the k-th largest magnitude, k = density · n, and k entries are sent.

    The payload has room for c = 1.25 k entries, so its length is known: 4 + 8c bytes, as their number, then int32
    indices that rise and float32 values, then zeros. A step in which more than c entries, or fewer than k/2, are above the
    threshold refreshes it at once; so what is sent is k/2 to c entries.

    It keeps a threshold for each `key` given to `encode`. A discarded step may leave one refreshed: that decides which
    entries go first, and nothing is lost by it.
    """

    name = "threshold"

    def __init__(self, density: float) -> None:
        super().__init__(density)
        self._thresholds: dict[str, _Threshold] = {}

    def capacity(self, n: int) -> int:
        """c: for how many entries a payload has room."""
        return min(n, math.ceil(HEADROOM * self.count(n)))

    def _size(self, n: int) -> int:
        return 4 + 8 * self.capacity(n)

    def _encode(self, x: Tensor, payload: Tensor, key: str) -> None:
        values, k, capacity = x.numpy(), self.count(len(x)), self.capacity(len(x))
        kept = self._thresholds.get(key)
        chosen = None
        if kept is not None and kept.age < REFRESH_STEPS:
            self._thresholds[key] = kept._replace(age=kept.age + 1)
            chosen, _ = _at_least(kept.value, values)
        if chosen is None or not k / 2 <= len(chosen) <= capacity:
            chosen, kth = largest(values, k)
            self._thresholds[key] = _Threshold(kth, age=1)
        payload.zero_()
        payload[:4].view(torch.int32)[0] = len(chosen)
        _write(payload[4:], chosen, values)

    def _decode(self, payload: Tensor, out: Tensor) -> None:
        sent = int(payload[:4].view(torch.int32))
        if not 0 <= sent <= self.capacity(len(out)):
            raise ValueError(f"a payload of threshold says that it holds {sent} entries of {self.capacity(len(out))}")
        _scatter(payload[4:], sent, out)


def largest(values: Floats, k: int) -> tuple[Indices, float]:
    """The indices of the k largest magnitudes of `values`, [n], 0 < k <= n, and the k-th of them. The indices rise.

    Of equal magnitudes those with lower indices. A strided sample guesses a bound that a little more than k reach, and only
    those are partitioned; a bad guess costs time and changes nothing.
    """
    bound = _guess(values, k)
    candidates, magnitudes = _at_least(bound, values)
    if len(candidates) < k:
        candidates, magnitudes = np.arange(len(values)), np.abs(values)
    kth = np.partition(magnitudes, len(magnitudes) - k)[len(magnitudes) - k]
    chosen = magnitudes > kth
    equal = np.flatnonzero(magnitudes == kth)
    chosen[equal[: k - np.count_nonzero(chosen)]] = True
    return candidates[np.flatnonzero(chosen)], float(kth)


def _guess(values: Floats, k: int) -> float:
    """A magnitude that at least k of `values` probably have; 0 where a sample cannot tell."""
    stride = (len(values) // SAMPLE) | 1  # odd: rows of a matrix mostly have an even length
    sample = np.abs(values[::stride])
    expected = k / stride
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 4)
    if stride == 1 or rank > len(sample):
        return 0.0
    return float(np.partition(sample, len(sample) - rank)[len(sample) - rank])


def _at_least(bound: float, values: Floats) -> tuple[Indices, Floats]:
    """The indices, rising, of the magnitudes of `values` from `bound` on, and these magnitudes."""
    indices, found = [], []
    for part in chunks(len(values)):
        magnitudes = float_scratch(part.stop - part.start).numpy()
        np.abs(values[part], out=magnitudes)
        above = np.flatnonzero(magnitudes >= np.float32(bound))
        indices.append(above + part.start)
        found.append(magnitudes[above])
    return np.concatenate(indices), np.concatenate(found)


def _write(payload: Tensor, chosen: Indices, values: Floats) -> None:
    """The indices at the front of the first half of `payload`, their values at the front of the second one."""
    indices, sent = payload.numpy().reshape(2, -1)
    indices.view(np.int32)[: len(chosen)] = chosen
    sent.view(np.float32)[: len(chosen)] = values[chosen]


def _scatter(payload: Tensor, count: int, out: Tensor) -> None:
    indices, values = payload.view(2, -1)
    out.zero_()
    out.scatter_(0, indices.view(torch.int32)[:count].long(), values.view(torch.float32)[:count])
