"""Whether sums over the ranks are right: what all have put in is what came out (GM-16).

With g what a rank contributes, e what it owed before and e' what it owes afterwards, a sum G of a bucket keeps

    Σ (g + e) = G + Σ e'

over all ranks, whatever codec is between them. Each side is projected onto random signs, which is linear: a few numbers of
each rank are summed apart from the gradients, and compared with those of the sum that everybody has. Digests of parameters
cannot see a wrong sum, as all have received the same.

A piece of a bucket is added up by its owner. Where one owner's pieces are wrong, and those of others are not, it is the
owner; a rank that sends something else than it says spoils the pieces of all.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from workers.randomness import fold

EVERY = 50
"""Steps from one check to the next, the same ones on all ranks: it reads the gradient four times."""

PROJECTIONS = 2

TILE = 1 << 16
"""Signs that are drawn; they are repeated, each time with a sign of its own."""

TOLERANCE = 1e-3
"""Of the sum of the norms of all that was put in and taken out: float32 rounds to less than a hundredth of it."""

NOBODY = -1
"""Owns pieces that are added up by all, in a ring."""

Piece = tuple[int, int, int]
"""First element, the one after the last, and the owner: a member's index, or `NOBODY`."""


class ReduceCheck:
    """Of one rank. `begin` a step; `put_in` what it contributes and what it owed, `take_out` what it owes then and the sum;
    the sum of `claims` over all ranks goes to `wrong`.

    Args:
        seed: the same on all ranks of a job.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        chance = np.random.Generator(np.random.PCG64(fold(seed, *b"reduce check")))
        self._tiles = torch.from_numpy(chance.integers(0, 2, (PROJECTIONS, TILE)).astype(np.float32) * 2 - 1)
        self._claims = self._found = np.zeros((1, PROJECTIONS + 1))

    @staticmethod
    def is_due(step: int) -> bool:
        """`step` counts from 1."""
        return step % EVERY == 0

    def begin(self, members: int) -> None:
        """A sum among so many members."""
        self._claims, self._found = (np.zeros((members + 1, PROJECTIONS + 1)) for _ in range(2))

    def put_in(self, bucket: int, pieces: Iterable[Piece], values: Tensor, *, start: int = 0) -> None:
        """Elements `start` on of a bucket, float32 [n]: this rank's gradient, or what it owed and has added to it."""
        self._add(self._claims, bucket, pieces, values, start, 1.0)

    def left_out(self, bucket: int, pieces: Iterable[Piece], values: Tensor, *, start: int = 0) -> None:
        """The same of what it owes afterwards."""
        self._add(self._claims, bucket, pieces, values, start, -1.0)

    def came_out(self, bucket: int, pieces: Iterable[Piece], total: Tensor) -> None:
        """The bucket's sum, float32 [n]."""
        self._add(self._found, bucket, pieces, total, 0, 1.0)

    @property
    def claims(self) -> Tensor:
        """float32 [(members + 1) · 3], to be summed over the members."""
        return torch.from_numpy(self._claims.astype(np.float32).reshape(-1))

    def wrong(self, total: Tensor) -> list[int]:
        """The owners whose pieces are not what was put in, from the sum of all members' `claims`. `NOBODY` may be one."""
        claimed = total.double().numpy().reshape(self._found.shape)
        norms = claimed[:, -1] + self._found[:, -1]
        differences = np.abs(claimed[:, :-1] - self._found[:, :-1]).max(axis=1)
        rows = np.flatnonzero(~(differences <= TOLERANCE * norms))  # NaN is wrong
        last = len(self._found) - 1
        return [NOBODY if row == last else int(row) for row in rows]

    def _add(
        self, rows: np.ndarray, bucket: int, pieces: Iterable[Piece], values: Tensor, start: int, factor: float
    ) -> None:
        flat, stop = values.detach().reshape(-1), start + values.numel()
        for first, end, owner in pieces:
            low, high = max(first, start), min(end, stop)
            while low < high:
                tile = low // TILE
                edge = min(high, (tile + 1) * TILE)
                part, signs = flat[low - start : edge - start], slice(low - tile * TILE, edge - tile * TILE)
                for projection in range(PROJECTIONS):
                    sign = 1.0 - 2.0 * (fold(self._seed, bucket, tile, projection) & 1)
                    rows[owner, projection] += factor * sign * float(torch.dot(part, self._tiles[projection, signs]))
                rows[owner, -1] += float(torch.linalg.vector_norm(part))
                low = edge
