"""How a rank's gradient agrees with those of the others, measured by itself from sketches (GM-15).

Sketches are linear: that of what all ranks contribute is the sum of theirs, which one small sum over the ranks gives to
each of them; less its own it is that of the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.coherence.sketch import BUCKETS, Sketch, cosine

EVERY = 10
"""Steps from one sketch to the next: the same ones on all ranks."""

MOST_ELEMENTS = 1 << 20
"""Of a gradient that are looked at, about 4 ms of one core; of a larger one another part each time."""


class Agreement:
    """Of one rank. In the steps that it is due in: `begin`, `add` for each bucket, and the sum of `own` over all ranks to
    `end`.

    Args:
        sizes: of the gradient's buckets, in elements.
        seed: the same on all ranks of a job, and on no other's.
    """

    def __init__(self, sizes: tuple[int, ...], seed: int) -> None:
        self._sizes, self._seed = sizes, seed
        self._share = min(1.0, MOST_ELEMENTS / max(1, sum(sizes)))
        self._sketch: Sketch | None = None
        self._at = 0
        self.own = torch.zeros(BUCKETS)
        """Of this rank's contribution: its mean gradient times its share of the batch. float32 [BUCKETS]."""
        self.cosine = self.norm = self.step = math.nan
        """Of the last step that was looked at, `step`: to the weighted mean of the others' gradients, and its own L2;
        NaN where there is none."""

    @staticmethod
    def is_due(step: int) -> bool:
        """`step` counts from 1."""
        return step % EVERY == 0

    def begin(self, step: int) -> None:
        self._at, self._sketch = step, Sketch("gradient", self._seed, step)

    def add(self, bucket: int, gradient: Tensor) -> None:
        """What this rank contributes to a bucket, float32 [n], before anything is added to it."""
        assert self._sketch is not None
        self._sketch.add(str(bucket), gradient[self._part(bucket)])

    def collect(self) -> Tensor:
        """A copy of `own`, to be summed over the ranks in place."""
        assert self._sketch is not None
        self.own, self._sketch = self._sketch.buckets, None
        return self.own.clone()

    def end(self, total: Tensor, share: float) -> None:
        """Of the sum, float32 [BUCKETS]; `share` of the batch's samples were this rank's."""
        self.step = float(self._at)
        alike = cosine(self.own, total - self.own) if 0.0 < share < 1.0 else None
        self.cosine = math.nan if alike is None else alike
        self.norm = float(self.own.norm()) / share / math.sqrt(self._share) if share > 0 else math.nan

    def _part(self, bucket: int) -> slice:
        """The whole bucket, or a window of it that moves on with the steps."""
        size = self._sizes[bucket]
        width = math.ceil(self._share * size)
        places = -(-size // max(1, width))
        first = min(self._at // EVERY % max(1, places) * width, size - width)
        return slice(first, first + width)
