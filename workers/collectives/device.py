"""Reduce-scatter and all-gather among the ranks of one host that have a device each, over a process group (CC-1, CC-2).

With NCCL the sums are made on the devices, and only this rank's shard comes to the CPU. Everything is issued in the calling
thread on its current stream, and nothing waits for the device.

Shards are of any sizes, and their sums are made in rank order, as in shared memory: an all-to-all and a sum. The backends'
own reduce-scatter takes one size only, and gloo's does not say when it is done.

A group has one order of operations on all its ranks, and which bucket comes back from the links first differs from rank to
rank. A second group would need no order, but two communicators whose kernels wait for each other may do so for ever where
a device runs one of them at a time. So all-gathers follow all reduce-scatters of a step, in their order; `end` says that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workers.collectives.exchange import ExchangeError


class DeviceExchange:
    """Calls are in one thread, in the same order on all ranks of the group.

    Args:
        group: a backend of torch.distributed for tensors on `device`; its ranks are those of the host.
        alone: there is no other host, so nothing need come to the CPU: shards are empty, and the sum is one all-reduce.
    """

    def __init__(self, group: Any, device: torch.device, *, alone: bool) -> None:
        self.group, self.device, self.alone = group, device, alone
        self.index, self.world = group.rank(), group.size()
        self._flying: list[DeviceReduction] = []
        self._ended = self._closed = False

    def reduce_scatter(self, values: Tensor, *, cuts: Sequence[int]) -> DeviceReduction:
        """As `OnHost.reduce_scatter`, of `values` on the device."""
        if values.dtype != torch.float32 or values.dim() != 1 or not values.is_contiguous() or values.device != self.device:
            raise ValueError(
                f"a bucket is float32 [n], contiguous and on {self.device}, not {values.dtype} {list(values.shape)} on "
                f"{values.device}"
            )
        if len(cuts) != self.world + 1 or cuts[0] != 0 or cuts[-1] != len(values) or list(cuts) != sorted(cuts):
            raise ValueError(f"{tuple(cuts)} does not cut {len(values)} elements into {self.world} shards")
        if self._ended:
            raise RuntimeError("a reduce-scatter came after end(), and the all-gathers of that step are not done")
        reduction = DeviceReduction(self, values, cuts)
        self._flying.append(reduction)
        return reduction

    def end(self) -> None:
        """No reduce-scatter follows in this step: all-gathers may begin."""
        self._ended = bool(self._flying)
        self.progress()

    def progress(self) -> bool:
        """Do what can be done without waiting; True where something was. Raises ExchangeError."""
        moved = [reduction.advance() for reduction in self._flying]
        if self._ended:
            for reduction in self._flying:
                if not reduction.gather():
                    break
        self._flying = [reduction for reduction in self._flying if not reduction.done]
        self._ended = self._ended and bool(self._flying)
        return any(moved)

    def close(self) -> None:
        """Give up what is on its way, which no peer may ever answer. The exchange is not used again."""
        if self.device.type == "cuda" and not self._closed:
            if self._flying:
                self.group.abort()  # else a kernel would wait on the device for ever
            else:
                self.group.shutdown()
        self._closed = True
        self._flying.clear()

    def start(self, operation: Callable[[], dist.Work]) -> dist.Work:
        try:
            return operation()
        except RuntimeError as error:
            raise _exchange_error(error) from None


class Phase(IntEnum):
    """How far an operation is on this rank."""

    SCATTERING = 0
    COMING = 1
    """The shard is on its way to the CPU."""
    SUMMED = 2
    RETURNED = 3
    """The shard may be gathered, when it is its turn."""
    GATHERING = 4
    DONE = 5


class DeviceReduction:
    """As `HostReduction`. An all-gather takes one size only: where shards differ they are filled up to the longest."""

    def __init__(self, exchange: DeviceExchange, values: Tensor, cuts: Sequence[int]) -> None:
        self._exchange, self._values = exchange, values
        self._sizes = [stop - start for start, stop in pairwise(cuts)]
        self._phase = Phase.SCATTERING
        self._arrived: torch.cuda.Event | None = None
        self.shard = _on_cpu(0 if exchange.alone else self._sizes[exchange.index], exchange.device)
        group = exchange.group
        if not len(values):
            self._phase = Phase.SUMMED
        elif exchange.alone:
            self._work = exchange.start(lambda: group.allreduce([values], dist.AllreduceOptions()))
        else:
            own, options = len(self.shard), dist.AllToAllOptions()
            self._received = values.new_empty(exchange.world, own)
            received, sizes = self._received.view(-1), [own] * exchange.world
            self._work = exchange.start(lambda: group.alltoall_base(received, values, sizes, self._sizes, options))

    @property
    def summed(self) -> bool:
        return self._phase >= Phase.SUMMED

    @property
    def done(self) -> bool:
        return self._phase is Phase.DONE

    def all_gather(self) -> object:
        if self._phase is Phase.SUMMED:
            whole = self._exchange.alone or not len(self._values)
            self._phase = Phase.DONE if whole else Phase.RETURNED
        self._exchange.progress()
        return self

    def advance(self) -> bool:
        """Do what can be done without waiting; True where something was."""
        before = self._phase
        if self._phase is Phase.SCATTERING and self._is_over():
            if not self._exchange.alone:
                total, *others = self._received.unbind()
                for part in others:
                    total += part
                self.shard.copy_(total, non_blocking=True)
                del self._received
                self._arrived = _mark(self._exchange.device)
            self._phase = Phase.COMING
        if self._phase is Phase.COMING and (self._arrived is None or self._arrived.query()):
            self._phase = Phase.SUMMED
        if self._phase is Phase.GATHERING and self._is_over():
            if self._gathered is not self._values:
                for row, part in zip(self._gathered.view(self._exchange.world, -1), self._parts, strict=True):
                    part.copy_(row[: len(part)])
            self._phase = Phase.DONE
        return before is not self._phase

    def gather(self) -> bool:
        """Our turn is here: start the all-gather if the shard is back. False where it is not."""
        if self._phase is Phase.RETURNED:
            longest, world, group = max(self._sizes), self._exchange.world, self._exchange.group
            even = longest * world == len(self._values)
            self._gathered = self._values if even else self._values.new_empty(longest * world)
            self._mine = self._values.new_zeros(longest)
            self._mine[: len(self.shard)].copy_(self.shard, non_blocking=True)
            self._work = self._exchange.start(lambda: group._allgather_base(self._gathered, self._mine))
            self._phase = Phase.GATHERING
        return self._phase >= Phase.GATHERING

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        """Everybody's shard of `values`."""
        return self._values.split(self._sizes)

    def _is_over(self) -> bool:
        """Whether the collective is; then the current stream is ordered after it."""
        if not self._work.is_completed():
            return False
        try:
            self._work.wait()
        except RuntimeError as error:
            raise _exchange_error(error) from None
        return True


def _on_cpu(elements: int, device: torch.device) -> Tensor:
    """float32 [elements], to and from which `device` copies without waiting."""
    return torch.empty(elements, pin_memory=device.type == "cuda")


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """What the current stream has to do by now; None on the CPU, where it is done."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def _exchange_error(error: RuntimeError) -> ExchangeError:
    return ExchangeError(str(error).split("\n")[0])
