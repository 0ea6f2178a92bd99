"""One bucket on its way around the ranks of a host, as one of them sees it.

Slots are used again without waiting for anybody in particular: a rank writes to its slot when all have TAKEN what the
operation before left there, and to what peers have read when those have said SUMMED.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from workers.collectives.exchange import ExchangeError, Pending
from workers.collectives.shared.memory import GIVEN, SUMMED, TAKEN, fence, sequence

if TYPE_CHECKING:
    from workers.collectives.shared.host import HostExchange

ALIGNMENT = 64
"""Shards begin at multiples of so many elements."""

BLOCK = 1 << 15
"""Elements that are added up at a time, so that the partial sums of many ranks stay in the cache."""


def cut(elements: int, world: int) -> tuple[int, ...]:
    """Where each of `world` shards of a bucket begins, and where the last one ends; their sizes differ by 64 at most."""
    units = -(-elements // ALIGNMENT)
    return tuple(min(units * index // world * ALIGNMENT, elements) for index in range(world + 1))


def add_up(parts: Sequence[NDArray[np.float32]], out: NDArray[np.float32], largest: bool) -> None:
    """((part 0 + part 1) + part 2) + ..., float32 [n] each, or the largest of each element; `out` may be one of them."""
    combine: np.ufunc = np.maximum if largest else np.add
    partial = np.empty(min(BLOCK, len(out)), np.float32)
    for start in range(0, len(out), BLOCK):
        block = slice(start, min(start + BLOCK, len(out)))
        first, *middle, last = (part[block] for part in parts)
        for part in middle:
            first = combine(first, part, out=partial[: block.stop - start])
        combine(first, last, out=out[block])


class Phase(IntEnum):
    """How far an operation is on this rank."""

    QUEUED = 0
    """Its slot belongs to an earlier one yet."""
    GIVEN = 1
    SUMMED = 2
    RETURNED = 3
    """Everybody may read our shard."""
    DONE = 4


class ReduceScatter:
    """A `Pending` that is done when this rank's shard is summed; `all_gather` is its second half."""

    def __init__(
        self,
        exchange: HostExchange,
        bucket: NDArray[np.float32],
        slot: int,
        number: int,
        cuts: Sequence[int],
        largest: bool,
        previous: ReduceScatter | None,
    ) -> None:
        self._exchange, self._bucket, self._slot, self._cuts, self._largest = exchange, bucket, slot, cuts, largest
        self._number, self._token = number, sequence(exchange.generation, number)
        self._what = zlib.crc32(repr((len(bucket), largest, cuts)).encode())
        self._previous = previous
        self._phase = Phase.QUEUED
        self._returning = False
        alone = exchange.world == 1
        self._parts = [bucket] if alone else [region.slots[slot][: len(bucket)] for region in exchange.regions]
        self._mine = self._parts[exchange.index]
        self._copied = self._mine.ctypes.data != bucket.ctypes.data
        self._absent = [member for member in range(exchange.world) if member != exchange.index or self._copied]

    @property
    def shard(self) -> torch.Tensor:
        """float32 [elements of our shard], where peers will read it: to be read and changed from `wait` to `all_gather`."""
        return torch.from_numpy(self._mine[self._range(self._exchange.index)])

    @property
    def done(self) -> bool:
        return self._phase is Phase.DONE

    @property
    def summed(self) -> bool:
        """`shard` may be used."""
        return self._phase >= Phase.SUMMED

    def wait(self, stop: Callable[[], bool]) -> None:
        """Return when `shard` is summed. Raises Abandoned as soon as `stop()`, ExchangeError."""
        self._exchange.drive(lambda: self._phase >= Phase.SUMMED, stop)

    def all_gather(self) -> Pending:
        """Start to put everybody's `shard` into the bucket. Before `wait`: as soon as ours is summed."""
        self._returning = True
        self._exchange.progress()
        return _AllGather(self._exchange, self)

    def advance(self) -> bool:
        """Do what can be done without waiting; True where something was."""
        before = self._phase, len(self._absent)
        if self._phase is Phase.QUEUED and (self._previous is None or self._previous.taken_by_all()):
            self._give()
        if self._phase is Phase.GIVEN and self._all_have(GIVEN):
            self._sum()
        if self._phase is Phase.SUMMED and self._returning:
            self._exchange.publish(self._slot, SUMMED, self._token)
            self._phase = Phase.RETURNED
        if self._phase is Phase.RETURNED:
            self._take()
        return before != (self._phase, len(self._absent))

    def taken_by_all(self) -> bool:
        """Nobody reads what this operation left in our slot."""
        return self.done and self._all_have(TAKEN)

    def _range(self, member: int) -> slice:
        return slice(self._cuts[member], self._cuts[member + 1])

    def _all_have(self, kind: int) -> bool:
        return self._exchange.all_have(self._slot, kind, self._token)

    def _give(self) -> None:
        self._previous = None
        if self._copied:
            np.copyto(self._mine, self._bucket)
        self._exchange.describe(self._slot, self._what)
        self._exchange.publish(self._slot, GIVEN, self._token)
        self._phase = Phase.GIVEN

    def _sum(self) -> None:
        others = self._exchange.disagreeing(self._slot, self._what)
        if others:
            raise ExchangeError(
                f"operation {self._number} of local rank {self._exchange.index} is another one on local rank {others[0]}: "
                f"in slot {self._slot} they differ in elements, shards, or sum and maximum"
            )
        if len(self._parts) > 1:
            mine = self._range(self._exchange.index)
            add_up([part[mine] for part in self._parts], self._mine[mine], self._largest)
        self._check_still(GIVEN)
        self._phase = Phase.SUMMED

    def _take(self) -> None:
        for member in list(self._absent):
            if member == self._exchange.index or self._exchange.has(member, self._slot, SUMMED, self._token):
                fence()
                np.copyto(self._bucket[self._range(member)], self._parts[member][self._range(member)])
                self._absent.remove(member)
        if not self._absent:
            self._check_still(SUMMED)
            self._exchange.publish(self._slot, TAKEN, self._token)
            self._phase = Phase.DONE

    def _check_still(self, kind: int) -> None:
        """All that was read lay there until now: who begins another generation says so before it writes anything else."""
        fence()
        if not self._all_have(kind):
            raise ExchangeError(f"a rank of this host began something else during operation {self._number}")


class _AllGather:
    """Done when the bucket holds the result."""

    def __init__(self, exchange: HostExchange, operation: ReduceScatter) -> None:
        self._exchange, self._operation = exchange, operation

    def wait(self, stop: Callable[[], bool]) -> None:
        self._exchange.drive(lambda: self._operation.done, stop)
