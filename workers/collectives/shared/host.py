"""Reduce-scatter and all-gather among the ranks of one host, through the memory that they share (CC-1, CC-2).

Rank i puts its bucket into a slot of its own region and says so; it adds up shard i of everybody's slots, in rank order,
into its own slot, where nobody else reads that shard before; it says so when the sum may be read, and everybody copies the
shards together. Nothing happens in the background: an operation gets on while its rank starts or waits for one, so an
abandoned one writes nowhere any more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from workers.collectives.exchange import Abandoned, ExchangeError, Pending
from workers.collectives.shared.memory import WHAT, HostMemory, fence, generation_of
from workers.collectives.shared.operation import ReduceScatter, cut
from workers.identity import Generation

YIELDS = 50
SHORTEST_SLEEP, LONGEST_SLEEP = 20e-6, 200e-6
"""Seconds. A wait gives its core away `YIELDS` times, and then sleeps, each time twice as long."""


class Patience:
    """Of one wait for others on this host: with more ranks than cores, who waits is in their way.

    Args:
        yields: how often the core is given away before the wait sleeps.
    """

    def __init__(self, yields: int = YIELDS) -> None:
        self._yields, self._idle, self._sleep = yields, 0, SHORTEST_SLEEP

    def pause(self, longest: float = LONGEST_SLEEP) -> None:
        """Give the core away, at first for a moment, later for longer, `longest` seconds at most."""
        self._idle += 1
        if self._idle <= self._yields:
            os.sched_yield()
        else:
            time.sleep(min(self._sleep, longest))
            self._sleep = min(2 * self._sleep, longest)


class HostExchange:
    """The collective of one generation among the ranks of one host. Calls are in one thread, in a channel in the same order
    everywhere.

    A dead or stopped peer shows only in that nothing happens: who waits learns of it through `stop()`. After Abandoned or
    ExchangeError the exchange is not used again; the next generation begins with a new one over the same memory.
    """

    def __init__(self, memory: HostMemory, paths: Sequence[Path], generation: Generation) -> None:
        """Enter a generation, before or after the other members.

        Args:
            memory: of this rank.
            paths: the files of all members on this host, in rank order, this rank's among them.
            generation: later than any that the memory has been in.

        Raises ExchangeError where a member's memory is gone or laid out otherwise.
        """
        self.memory, self.generation = memory, generation
        self.index = list(paths).index(memory.path)
        self.regions = memory.enter(paths, generation)
        self._peers = [peer for peer in range(len(paths)) if peer != self.index]
        self._words, self._word = memory.own.words, memory.own.layout.word
        slots, layout = memory.own.slots, memory.own.layout
        self._lent = {slots[slot].ctypes.data: slot for slot in layout.lent}
        self._last: dict[int, ReduceScatter] = {}
        self._flying: list[ReduceScatter] = []
        self._started = [0] * len(slots)  # in each slot
        self._copied = [0] * (1 + len(layout.thin))  # in each channel

    @property
    def world(self) -> int:
        return len(self.regions)

    def reduce_scatter(
        self, bucket: torch.Tensor, *, largest: bool = False, cuts: Sequence[int] | None = None, channel: int = 0
    ) -> ReduceScatter:
        """Start to sum `bucket`, or to take the `largest` of each element, so that rank i gets shard i of the result.

        Args:
            bucket: float32 [n], contiguous. It is left alone until the operation is done, which overwrites it.
            cuts: where shards 0, 1, ... begin, and n; `cut(n, world)` if None.
            channel: of the layout; operations of one are in the same order everywhere.

        Raises ValueError where the bucket does not fit the memory.
        """
        if bucket.dtype != torch.float32 or bucket.dim() != 1 or not bucket.is_contiguous():
            raise ValueError(f"a bucket is float32 [n] and contiguous, not {bucket.dtype} {list(bucket.shape)}")
        edges = cut(len(bucket), self.world) if cuts is None else tuple(cuts)
        if len(edges) != self.world + 1 or edges[0] != 0 or edges[-1] != len(bucket) or list(edges) != sorted(edges):
            raise ValueError(f"{edges} does not cut {len(bucket)} elements into {self.world} shards")
        slot = self._slot(bucket, channel)
        previous = self._last.get(slot)
        if previous is not None and slot in self._lent.values() and not previous.taken_by_all():
            raise RuntimeError(
                "a staging slot was filled while its last result was still read: ask for it with lend() each time"
            )
        self._started[slot] += 1
        operation = ReduceScatter(self, bucket.detach().numpy(), slot, self._started[slot], edges, largest, previous)
        self._last[slot] = operation
        self._flying.append(operation)
        self.progress()
        return operation

    def all_reduce(self, bucket: torch.Tensor, *, largest: bool = False) -> Pending:
        """Start to sum `bucket` over the ranks of this host in place, or to take the `largest` of each element."""
        return self.reduce_scatter(bucket, largest=largest).all_gather()

    def lend(self, index: int, stop: Callable[[], bool]) -> torch.Tensor:
        """float32 [size]: staging slot `index` of our region. A bucket that begins where it begins is not copied into it.

        Waits until nobody reads what an operation left there. Raises Abandoned, ExchangeError.
        """
        slot = self.memory.own.layout.lent[index]
        last = self._last.get(slot)
        self.drive(lambda: last is None or last.taken_by_all(), stop)
        return torch.from_numpy(self.memory.own.slots[slot])

    def drive(self, reached: Callable[[], bool], stop: Callable[[], bool]) -> None:
        """Let every operation get on until `reached()`. Raises Abandoned as soon as `stop()`, ExchangeError."""
        patience = Patience()
        while not reached():
            if self.progress():
                patience = Patience()
                continue
            if stop():
                raise Abandoned
            patience.pause()

    def progress(self) -> bool:
        """Do what can be done without waiting; True where something was. Raises ExchangeError."""
        moved = [operation.advance() for operation in self._flying]
        self._flying = [operation for operation in self._flying if not operation.done]
        return any(moved)

    def _slot(self, bucket: torch.Tensor, channel: int) -> int:
        layout = self.memory.own.layout
        slot = self._lent.get(bucket.data_ptr()) if len(bucket) else None
        if slot is None:
            slot = layout.channel(channel)[self._copied[channel] % layout.slots]
            self._copied[channel] += 1
        if len(bucket) > layout.sizes[slot] and self.world > 1:
            raise ValueError(f"a bucket of {len(bucket)} elements does not fit a slot of {layout.sizes[slot]}")
        return slot

    # the words

    def publish(self, slot: int, kind: int, token: int) -> None:
        """Say it, after all that was written before."""
        fence()
        self._words[self._word(slot, kind)] = token

    def describe(self, slot: int, what: int) -> None:
        """Put beside the GIVEN word what the operation is."""
        self._words[self._word(slot, WHAT)] = what

    def disagreeing(self, slot: int, what: int) -> list[int]:
        """The peers that give something else."""
        return [peer for peer in self._peers if self.regions[peer].words[self._word(slot, WHAT)] != what]

    def has(self, member: int, slot: int, kind: int, token: int) -> bool:
        """Has the member said it. Raises ExchangeError where it is in a later generation."""
        word = self.regions[member].words[self._word(slot, kind)]
        if generation_of(word) > generation_of(token):
            raise ExchangeError(f"local rank {member} has left generation {self.generation} for a later one")
        return word == token

    def all_have(self, slot: int, kind: int, token: int) -> bool:
        """Have all peers said it. What they wrote before that may be read then. Raises ExchangeError."""
        if all(self.has(peer, slot, kind, token) for peer in self._peers):
            fence()
            return True
        return False
