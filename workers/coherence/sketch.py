"""A linear count sketch of a gradient (GM-15; Charikar, Chen, Farach-Colton, 2002).

Every coordinate goes, with a random sign, into one of 1024 buckets. Sketches of two vectors under one seed have about the
inner product that the vectors have, with an error of |x| |y|/sqrt(1024), and the sketch of a sum is the sum of sketches.

The vector is taken as rows of 1024 coordinates. Each row has one of 256 random patterns of signs, and is turned by one of
64 random numbers of places: two coordinates of a row never meet, those of two rows do by chance. The work is to read the
vector once, to multiply and to add.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

BUCKETS = 1024
PATTERNS = 256
TURNS = 64

ROWS = 512
"""At a time, so that what is in between stays in the cache."""


class Sketch:
    """One seed's; the same on every rank that gives the same words.

    Args:
        seed: whatever tells it from others: job, generation, step.
    """

    def __init__(self, *seed: object) -> None:
        self._key = blake2b(" ".join(map(str, seed)).encode(), digest_size=16).digest()
        chance = self._chance("")
        signs = chance.integers(0, 2, (PATTERNS, BUCKETS), dtype=np.int8) * 2 - 1
        self._signs = torch.from_numpy(signs.astype(np.float32))
        self._turns = torch.from_numpy(chance.permutation(BUCKETS)[:TURNS].copy())
        self._sum = torch.zeros(TURNS, BUCKETS)

    def add(self, name: str, values: Tensor) -> None:
        """Add a part of the vector, float32 of any shape, that `name` tells from its other parts."""
        flat = values.detach().reshape(-1).to("cpu", torch.float32)
        count = -(-len(flat) // BUCKETS)
        chance = self._chance(name)
        patterns, turns = (torch.from_numpy(chance.integers(0, most, count)) for most in (PATTERNS, TURNS))
        whole = len(flat) // BUCKETS
        rows = flat[: whole * BUCKETS].view(whole, BUCKETS)
        for start in range(0, whole, ROWS):
            part = slice(start, min(start + ROWS, whole))
            self._sum.index_add_(0, turns[part], self._signs[patterns[part]].mul_(rows[part]))
        rest = flat[whole * BUCKETS :]
        if len(rest):
            self._sum[turns[-1], : len(rest)] += self._signs[patterns[-1], : len(rest)] * rest

    @property
    def buckets(self) -> Tensor:
        """float32 [1024]: of all that was added."""
        columns = (torch.arange(BUCKETS)[None, :] - self._turns[:, None]) % BUCKETS
        return torch.gather(self._sum, 1, columns).sum(0)

    def _chance(self, name: str) -> np.random.Generator:
        words = blake2b(name.encode(), key=self._key, digest_size=16).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(words, "big")))


def cosine(one: Tensor, other: Tensor) -> float | None:
    """Of two sketches; None where one of them is zero or not finite."""
    norms = float(one.double().norm() * other.double().norm())
    if not 0.0 < norms < float("inf"):
        return None
    return max(-1.0, min(1.0, float(one.double() @ other.double()) / norms))
