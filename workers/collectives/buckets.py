"""The bucket plan and its staging buffers.

The plan is a pure function of parameter names, sizes and order, so all ranks issue the same collectives in the same
order (CC-5). Gradients are copied out of `param.grad` into staging: an abandoned operation can scribble only there (EP-7).
Two rows of staging alternate, so the reduced buckets of the last commit stay readable for a rank that is one step behind
(EP-9) while the next step is already being exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

FIRST_BUCKET_BYTES = 1 << 20
BUCKET_BYTES = 8 << 20


@dataclass(frozen=True)
class Slot:
    """Where one parameter's gradient lies: `bucket[start : start + numel]`."""

    name: str
    bucket: int
    start: int
    numel: int
    shape: torch.Size


@dataclass(frozen=True)
class BucketPlan:
    """Slots in the order of the parameters given; `sizes` in elements of float32, the last one with the tail."""

    slots: tuple[Slot, ...]
    sizes: tuple[int, ...]
    tail: int

    @property
    def tail_start(self) -> int:
        """First element of the tail in the last bucket."""
        return self.sizes[-1] - self.tail

    @property
    def gradient_sizes(self) -> tuple[int, ...]:
        """`sizes` without the tail."""
        return (*self.sizes[:-1], self.tail_start)


def plan_buckets(
    parameters: Sequence[tuple[str, torch.Size]],
    tail: int,
    first_bytes: int = FIRST_BUCKET_BYTES,
    bucket_bytes: int = BUCKET_BYTES,
) -> BucketPlan:
    """Cut parameters into buckets, last parameter first: backward produces their gradients first.

    `tail` elements of float32 are appended to the last bucket, for what travels with it (EP-4).
    """
    slots: dict[str, Slot] = {}
    sizes = [0]
    for name, shape in reversed(parameters):
        limit = (first_bytes if len(sizes) == 1 else bucket_bytes) // 4
        numel = shape.numel()
        if sizes[-1] and sizes[-1] + numel > limit:
            sizes.append(0)
        slots[name] = Slot(name, len(sizes) - 1, sizes[-1], numel, shape)
        sizes[-1] += numel
    sizes[-1] += tail
    return BucketPlan(tuple(slots[name] for name, _ in parameters), tuple(sizes), tail)


class Row:
    """A plan's buckets in memory: flat float32 tensors, and one view for each parameter, of its shape, into them."""

    def __init__(self, plan: BucketPlan, *, pinned: bool = False) -> None:
        self.buckets = [torch.zeros(size, pin_memory=pinned) for size in plan.sizes]
        self.views = [self.buckets[s.bucket][s.start : s.start + s.numel].view(s.shape) for s in plan.slots]
        self.tail = self.buckets[-1][plan.tail_start :]

    def add(self, other: Row) -> None:
        """Add another row of the same plan."""
        for mine, theirs in zip(self.buckets, other.buckets, strict=True):
            mine += theirs


class Staging:
    """Two rows of a plan that take turns; beside them `observed` elements that are not summed.

    Args:
        pinned: CUDA devices copy into the rows without waiting.
    """

    def __init__(self, plan: BucketPlan, observed: int = 0, *, pinned: bool = False) -> None:
        self.plan, self._pinned = plan, pinned
        self._observed = [torch.zeros(observed) for _ in range(2)]
        self._rows = [Row(plan, pinned=pinned) for _ in range(2)]
        self._current = 0
        self.uses = [0, 0]

    def flip(self) -> None:
        """Turn to the other row: the current one keeps the last commit."""
        self._current ^= 1
        self.uses[self._current] += 1

    @property
    def current(self) -> int:
        return self._current

    @property
    def row(self) -> Row:
        return self._rows[self._current]

    @property
    def buckets(self) -> list[torch.Tensor]:
        return self.row.buckets

    def gradient(self, bucket: int) -> torch.Tensor:
        """The bucket without the tail."""
        return self.row.buckets[bucket][: self.plan.gradient_sizes[bucket]]

    @property
    def views(self) -> list[torch.Tensor]:
        return self.row.views

    @property
    def tail(self) -> torch.Tensor:
        return self.row.tail

    @property
    def observed(self) -> torch.Tensor:
        """Beside the current row; empty where nothing is observed."""
        return self._observed[self._current]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that is current."""
        return [*self.buckets, self.observed] if len(self.observed) else self.buckets

    def discard(self) -> None:
        """Make the current row anew, as an abandoned operation may still write to the old one, and turn back:
        the row that holds the last commit stays untouched when the step is computed again."""
        self._observed[self._current] = torch.zeros(len(self.observed))
        self._rows[self._current] = Row(self.plan, pinned=self._pinned)
        self._current ^= 1
