"""Counter-based randomness (EP-3): every number is a pure function of (seed, step, sample id, stream, position).

A rank, the world size and the cut of a batch are no part of the key, so a sample meets the same dropout mask and the
same augmentation wherever, and however often, it is computed.

The mixing function is splitmix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix(value: int) -> int:
    """splitmix64's output function of an unsigned 64-bit word."""
    value = ((value ^ (value >> 30)) * _FACTORS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _FACTORS[1]) & _MASK
    return value ^ (value >> 31)


def fold(*words: int) -> int:
    """One unsigned 64-bit key out of an ordered sequence of integers."""
    key = 0
    for word in words:
        key = mix((key + _GOLDEN + (word & _MASK)) & _MASK)
    return key


def sample_key_tensor(seed: int, step: int, ids: Tensor | NDArray[np.int64]) -> Tensor:
    """`fold(seed, step, id)` for each of `ids`, [B]: int64 [B] (the same bits, read as signed)."""
    return _mix_tensor(_int64(ids) + _signed(fold(seed, step) + _GOLDEN))


def uniform(keys: Tensor, num_features: int, stream: int) -> Tensor:
    """Uniform float32 in [0, 1) of shape [B, num_features] for the sample keys `keys`, int64 [B].

    Feature f of a sample is the top 24 bits of `fold(key, stream, f)`, times 2^-24; `stream` tells apart the
    places in a model that need numbers for the same sample.
    """
    row = _mix_tensor(_mix_tensor(keys + _signed(_GOLDEN)) + _signed(stream + _GOLDEN))
    column = torch.arange(num_features, dtype=torch.int64, device=keys.device) + _signed(_GOLDEN)
    words = _mix_tensor(row[:, None] + column)
    return _shift(words, 40).to(torch.float32) * 2.0**-24


class _Keys(threading.local):
    """Of the micro-batch in progress: what its keys are made of, and the keys once a module has asked for them."""

    source: tuple[int, int, Tensor | NDArray[np.int64]] | None = None
    keys: Tensor | None = None
    streams: int = 0

    def get(self) -> Tensor | None:
        if self.keys is None and self.source is not None:
            self.keys = sample_key_tensor(*self.source)
        return self.keys


_current = _Keys()


@contextmanager
def sample_keys(seed: int, step: int, ids: Tensor | NDArray[np.int64]) -> Iterator[None]:
    """Inside, `SampleDropout` draws for the samples `ids` (int64 [B], in the order of the batch) of `step`.

    Holds for the thread that enters it. The Job enters it around each micro-batch that it yields.
    """
    outer = _current.source, _current.keys, _current.streams
    _current.source, _current.keys, _current.streams = (seed, step, ids), None, 0
    try:
        yield
    finally:
        _current.source, _current.keys, _current.streams = outer


class SampleDropout(nn.Module):
    """Dropout whose mask for a sample depends on (seed, step, sample id) and the place in the model only (EP-3).

    The place is the order of the calls within a micro-batch, so every layer and every call has a mask of its own.

    Args:
        p: the probability that an element becomes 0; the others are divided by 1 - p.

    Raises:
        ValueError: `p` is not in [0, 1), or the input's first dimension is not the micro-batch.
        RuntimeError: a forward in training mode outside `sample_keys`.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] to [B, ...]; the identity in evaluation mode."""
        if not self.training or self.p == 0.0:
            return x
        keys = _current.get()
        if keys is None:
            raise RuntimeError(
                "SampleDropout does not know which samples it sees: run the forward inside the loop over"
                " job.batches() or in `with sample_keys(seed, step, ids)`"
            )
        if x.shape[0] != len(keys):
            raise ValueError(
                f"SampleDropout got {x.shape[0]} rows for {len(keys)} samples: the first dimension must be the micro-batch"
            )
        stream, _current.streams = _current.streams, _current.streams + 1
        draws = uniform(keys.to(x.device), x.shape[1:].numel(), stream)
        keep = (draws >= self.p).view(x.shape)
        return x * keep / (1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def seed_torch(seed: int, step: int, ids: Tensor | NDArray[np.int64]) -> None:
    """Seed torch's global generators for a forward of the samples `ids` (int64 [B]) at `step`.

    For modules that draw from torch itself, such as `nn.Dropout`: a micro-batch that is computed again draws the
    same, on any rank. Only `SampleDropout` also draws the same when the batch is cut otherwise.
    """
    digest = hashlib.blake2b(_int64(ids).cpu().numpy().tobytes(), digest_size=8).digest()
    _seed_generators(fold(seed, step, int.from_bytes(digest, "little")))


def seed_sample(seed: int, step: int, sample: int) -> None:
    """Seed torch, `random` and `numpy.random` for reading one sample: keyed augmentation."""
    key = fold(seed, step, sample)
    _seed_generators(key)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)


def _seed_generators(key: int) -> None:
    """What `torch.manual_seed` does, without its 0.1 ms of looking for devices that are not in use."""
    torch.default_generator.manual_seed(key)
    if torch.cuda.is_initialized() and not torch.cuda._is_in_bad_fork():
        torch.cuda.manual_seed(key)


def _int64(ids: Tensor | NDArray[np.int64]) -> Tensor:
    return ids.to(torch.int64) if isinstance(ids, Tensor) else torch.tensor(ids, dtype=torch.int64)


def _signed(word: int) -> int:
    """The int64 with the same 64 bits."""
    word &= _MASK
    return word - (1 << 64) if word >> 63 else word


def _shift(words: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(words: Tensor) -> Tensor:
    words = (words ^ _shift(words, 30)) * _signed(_FACTORS[0])
    words = (words ^ _shift(words, 27)) * _signed(_FACTORS[1])
    return words ^ _shift(words, 31)
