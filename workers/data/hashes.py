"""64-bit hashes of samples, to find the same sample in two splits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Hashes = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_ROWS_BYTES = 1 << 24


def sample_hashes(samples: Tensor) -> Hashes:
    """The hash of each sample's values, uint64 [N], for `samples` [N, ...] on the CPU; equal samples have equal hashes.

    A sample is read as 64-bit words w_j, the last filled up with zeros: mix(Σ_j mix(w_j + (j + 1)·golden) mod 2^64),
    where mix is splitmix64's. Two different samples out of n have the same hash with probability about n² / 2^65.
    -0.0 counts as 0.0.
    """
    if samples.dtype.is_floating_point:
        samples = samples + 0.0
    rows_of_values = samples.flatten(1) if samples.ndim > 1 else samples[:, None]
    values = rows_of_values.detach().contiguous().numpy()
    rows = max(1, _ROWS_BYTES // max(1, values[:1].nbytes))
    parts = [_hashes(values[start : start + rows]) for start in range(0, len(values), rows)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


def _hashes(values: NDArray[np.generic]) -> Hashes:
    octets = values.view(np.uint8).reshape(len(values), -1)
    padded = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 8)))
    words = padded.view("<u8").astype(np.uint64, copy=False)
    places = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * _GOLDEN
    total: Hashes = _mix(words + places).sum(axis=1, dtype=np.uint64)
    return _mix(total)


def _mix(words: Hashes) -> Hashes:
    """splitmix64's output function, as `workers.randomness.mix`, of unsigned words of any shape."""
    words = (words ^ (words >> np.uint64(30))) * _FACTORS[0]
    words = (words ^ (words >> np.uint64(27))) * _FACTORS[1]
    return words ^ (words >> np.uint64(31))
