"""Spike encoders: from values to spikes over time; what is random depends on the sample and not on its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.randomness import fold

METHODS = {"rate": 0, "temporal": 1, "population": 2, "latency": 3, "burst": 4}
"""Name and number; the number is part of the random key, so it never changes."""

DARK = 0.01
"""`latency` is silent below this normalised value."""

LARGEST_BURST = 5
"""Spikes of a burst for the normalised value 1."""

_UINT64 = (1 << 64) - 1


@dataclass(frozen=True)
class Encoding:
    """How values become spikes.

    A value x is normalised to v = (x - low) / (high - low), clipped to 0..1, in the dtype of x; `high` equal to `low`
    gives 0. Rounding is half to even.

    Args:
        method: `rate`: in each step a spike with probability `rate_max` * v. `temporal`: one spike, at
            round((1 - v)(T - 1)). `population`: `population` units per value, of which unit p takes part if
            v > p / population; those that do spike in each step with probability `rate_on`. `latency`: one spike, at
            round((1 - v)(L - 1)) with L = `max_latency`, or none if v < 0.01. `burst`: round(5 v) spikes, `isi` steps
            apart, the first at floor((1 - v)(T - 1 - 4 isi)).
        num_steps: T.
        low, high: of the data set, or both None for the smallest and largest value of each sample.
        rate_max, rate_on: probabilities, 0..1.
        population: units per value.
        max_latency: steps, 1..T; None is T.
        isi: steps between two spikes of a burst.

    Raises:
        ValueError: the method is unknown, or a number is outside its range.

    >>> Encoding("rate", num_steps=25).encode(images, ids, seed=1, epoch=0)  # float32 [25, B, 784]
    """

    method: str = "rate"
    num_steps: int = 25
    low: float | None = 0.0
    high: float | None = 1.0
    rate_max: float = 1.0
    population: int = 10
    rate_on: float = 1.0
    max_latency: int | None = None
    isi: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"there is no spike encoder {self.method!r}; write one of {', '.join(METHODS)}")
        if (self.low is None) != (self.high is None):
            raise ValueError("an encoder has both low and high, or neither: then each sample has its own")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"an encoder's low must be at most its high, not {self.low} and {self.high}")
        for name in ("rate_max", "rate_on"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"an encoder's {name} is a probability, 0 to 1, not {getattr(self, name)}")
        for name in ("num_steps", "population", "isi"):
            if getattr(self, name) < 1:
                raise ValueError(f"an encoder's {name} must be at least 1, not {getattr(self, name)}")
        if self.max_latency is not None and not 1 <= self.max_latency <= self.num_steps:
            raise ValueError(f"max_latency must be 1 to {self.num_steps}, the number of steps, not {self.max_latency}")
        if self.method == "burst" and self.num_steps < 1 + (LARGEST_BURST - 1) * self.isi:
            raise ValueError(
                f"bursts with an isi of {self.isi} need at least {1 + (LARGEST_BURST - 1) * self.isi} steps,"
                f" not {self.num_steps}"
            )

    def encode(self, x: Tensor, ids: Tensor | NDArray[np.int64], seed: int, epoch: int) -> Tensor:
        """The spikes of the values `x` [B, *F]: float32 [T, B, *F], for `population` [T, B, population, *F]; 0 or 1.

        `ids`, int64 [B], are the samples' numbers in the data set. What is random about sample i is the stream of raw
        64-bit words of numpy's Philox4x64 with key (fold(seed, epoch, METHODS[method]), i), from its first word on. Each
        word gives two 32-bit numbers, the low half first; number t * n + f decides about step t and feature f, where f
        counts the n features, or (unit, feature) pairs, of a sample in row-major order. There is a spike if the number
        is below round(probability * 2^32).

        Raises:
            ValueError: `x` has values that are not finite, or another number of rows than `ids`.
        """
        if x.shape[0] != len(ids):
            raise ValueError(f"an encoder got {x.shape[0]} samples and {len(ids)} ids: each sample has one")
        if not bool(torch.isfinite(x).all()):
            raise ValueError("an encoder got NaN or infinity: clean the data, or raise low and high instead of scaling")
        keys = _Keys(fold(seed, epoch, METHODS[self.method]), torch.as_tensor(ids).cpu().numpy())
        return _ENCODERS[self.method](self, self.normalise(x), keys)

    def normalise(self, x: Tensor) -> Tensor:
        """`x` [B, *F] scaled to 0..1, in its own floating-point dtype (float32 for integers)."""
        x = x if x.is_floating_point() else x.to(torch.float32)
        if self.low is None or self.high is None:
            flat = x.flatten(1)
            low, high = (bound.view(-1, *[1] * (x.dim() - 1)) for bound in (flat.amin(1), flat.amax(1)))
        else:
            low, high = x.new_tensor(self.low), x.new_tensor(self.high)
        span = high - low
        return torch.where(span > 0, (x - low) / torch.where(span > 0, span, 1), 0).clamp(0, 1)


def encode(
    x: Tensor,
    ids: Tensor | NDArray[np.int64],
    *,
    method: str,
    num_steps: int = 25,
    seed: int = 0,
    epoch: int = 0,
    low: float | None = 0.0,
    high: float | None = 1.0,
    rate_max: float = 1.0,
    population: int = 10,
    rate_on: float = 1.0,
    max_latency: int | None = None,
    isi: int = 1,
) -> Tensor:
    """`Encoding(method, ...).encode(x, ids, seed, epoch)`."""
    encoding = Encoding(method, num_steps, low, high, rate_max, population, rate_on, max_latency, isi)
    return encoding.encode(x, ids, seed, epoch)


@dataclass(frozen=True)
class _Keys:
    """The two words of each sample's Philox key: `first` of all, and the sample's number."""

    first: int
    ids: NDArray[np.int64]


def _bernoulli(probability: Tensor, num_steps: int, keys: _Keys) -> Tensor:
    """Spikes [T, B, *F] of the probabilities [B, *F], which hold for every step."""
    features = probability.shape[1:].numel()
    chance = probability.detach().cpu().to(torch.float64).flatten(1).numpy()
    limits = np.minimum(np.rint(chance * 2.0**32), 2.0**32 - 1).astype(np.uint32)
    certain = chance >= 1.0
    spikes = np.empty((num_steps, len(keys.ids), features), dtype=np.bool_)
    words = (num_steps * features + 1) // 2
    for row, sample in enumerate(keys.ids.tolist()):
        philox = np.random.Philox(key=np.array([keys.first, sample & _UINT64], dtype=np.uint64))
        numbers = philox.random_raw(words).astype("<u8", copy=False).view("<u4")[: num_steps * features]
        np.less(numbers.reshape(num_steps, features), limits[row], out=spikes[:, row])
    if certain.any():
        np.logical_or(spikes, certain, out=spikes)
    result = torch.from_numpy(spikes).to(torch.float32)
    return result.view(num_steps, *probability.shape).to(probability.device)


def _steps(num_steps: int, values: Tensor) -> Tensor:
    """0..T-1 as [T, 1, ..., 1], to be compared with times of the shape of `values`."""
    return torch.arange(num_steps, device=values.device, dtype=values.dtype).view(-1, *[1] * values.dim())


def _rate(encoding: Encoding, values: Tensor, keys: _Keys) -> Tensor:
    return _bernoulli(values * encoding.rate_max, encoding.num_steps, keys)


def _temporal(encoding: Encoding, values: Tensor, keys: _Keys) -> Tensor:
    time = torch.round((1 - values) * (encoding.num_steps - 1))
    return (_steps(encoding.num_steps, values) == time).to(torch.float32)


def _population(encoding: Encoding, values: Tensor, keys: _Keys) -> Tensor:
    units = torch.arange(encoding.population, device=values.device, dtype=values.dtype) / encoding.population
    active = values.unsqueeze(1) > units.view(1, -1, *[1] * (values.dim() - 1))
    if encoding.rate_on == 1.0:
        return active.to(torch.float32).expand(encoding.num_steps, *active.shape).contiguous()
    return _bernoulli(active * encoding.rate_on, encoding.num_steps, keys)


def _latency(encoding: Encoding, values: Tensor, keys: _Keys) -> Tensor:
    latest = (encoding.max_latency or encoding.num_steps) - 1
    time = torch.where(values < DARK, -1, torch.round((1 - values) * latest))
    return (_steps(encoding.num_steps, values) == time).to(torch.float32)


def _burst(encoding: Encoding, values: Tensor, keys: _Keys) -> Tensor:
    count = torch.round(LARGEST_BURST * values)
    first = torch.floor((1 - values) * (encoding.num_steps - 1 - (LARGEST_BURST - 1) * encoding.isi))
    since = _steps(encoding.num_steps, values) - first
    spikes = (since >= 0) & (since < count * encoding.isi)
    if encoding.isi > 1:
        spikes &= since % encoding.isi == 0
    return spikes.to(torch.float32)


_ENCODERS: dict[str, Callable[[Encoding, Tensor, _Keys], Tensor]] = {
    "rate": _rate,
    "temporal": _temporal,
    "population": _population,
    "latency": _latency,
    "burst": _burst,
}
