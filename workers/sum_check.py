"""The reduce check in the steps of a rank: what is put in and comes out of each, and when it is compared (GM-16).

What all have put into the sums of a step is known when its exchange is over. It is summed with the gradients of the next
step, and compared there.
"""

from __future__ import annotations

import torch

from workers.coherence.reduce_check import ReduceCheck
from workers.collectives.buckets import Staging
from workers.collectives.exchange import Exchange, Pending
from workers.collectives.reducer import Reducer
from workers.compression.gradients import GradientCompression


class SumCheck:
    """Of one rank. In each step: `begin`, `launched` for every bucket, `sum_claims`, and `end` when all sums are there.

    Args:
        seed: the same on all ranks of a job.
    """

    def __init__(self, seed: int, staging: Staging, compression: GradientCompression) -> None:
        self._check, self._staging, self._compression = ReduceCheck(seed), staging, compression
        self._exchange: Exchange | None = None
        self._reducer: Reducer | None = None
        self._step = 0
        self._claims: tuple[Exchange, int, torch.Tensor] | None = None
        """Of the last step that was checked, with its exchange."""
        self._total = torch.empty(0)
        self.wrong: list[int] = []
        """After `end`: owners of pieces whose sums were wrong in the step before this one, or `NOBODY`; the same on all."""

    def begin(self, exchange: Exchange, reducer: Reducer | None, step: int) -> None:
        """`reducer` is None where nothing can be checked, as it does not make the sums of this step."""
        self._exchange, self._step, self._total, self.wrong = exchange, step, torch.empty(0), []
        is_due = ReduceCheck.is_due(step) and self._compression.memory.is_linear
        self._reducer = reducer if is_due else None
        if self._reducer is not None:
            self._check.begin(self._reducer.members)

    def launched(self, bucket: int) -> None:
        """The rank's gradient lies in staging, and its sum begins."""
        if self._reducer is not None:
            self._check.put_in(bucket, self._reducer.pieces(bucket), self._staging.gradient(bucket))

    def sum_claims(self, reducer: Reducer) -> Pending | None:
        """Of the step before this one, where all members of this exchange were in it."""
        if self._claims is None:
            return None
        exchange, step, claims = self._claims
        if exchange is not self._exchange or step != self._step - 1:
            return None
        self._total = claims
        return reducer.sum_exactly(self._total)

    def end(self, *, skipped: bool) -> None:
        """All sums are there; `skipped` where they are thrown away, as a gradient was not finite."""
        if len(self._total):
            self.wrong = self._check.wrong(self._total)
        self._claims = None
        if self._reducer is None or self._exchange is None or skipped:
            return
        for bucket in range(len(self._staging.plan.sizes)):
            pieces = self._reducer.pieces(bucket)
            for start, before, after in self._compression.memory.changes(bucket):
                if before is not None:
                    self._check.put_in(bucket, pieces, before, start=start)
                self._check.left_out(bucket, pieces, after, start=start)
            self._check.came_out(bucket, pieces, self._staging.gradient(bucket))
        self._claims = self._exchange, self._step, self._check.claims
