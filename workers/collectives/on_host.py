"""What the ranks of a host do among themselves, whatever it goes through (CC-1, CC-2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from workers.collectives.device import DeviceExchange

WHOLE_BUCKETS = 0
"""The channel of gradients; what travels in others is made on the CPU."""


class HostReduction(Protocol):
    """A tensor on its way: first summed over the host in shards, one for each rank, then put together again."""

    @property
    def summed(self) -> bool:
        """`shard` may be used."""

    @property
    def shard(self) -> Tensor:
        """float32 on the CPU: this rank's shard of the host's sum, to be read and changed from `summed` to `all_gather`."""

    def all_gather(self) -> object:
        """Start to put everybody's `shard` into the tensor that was given."""

    @property
    def done(self) -> bool:
        """That tensor holds the result."""


class OnHost(Protocol):
    """Calls are in one thread, in a channel in the same order on all ranks of the host."""

    def reduce_scatter(self, values: Tensor, /, *, cuts: Sequence[int], channel: int) -> HostReduction:
        """Start to sum `values`, float32 [n], contiguous; it is left alone until the reduction is done.

        Args:
            cuts: where the shards of local ranks 0, 1, … begin, and n.
            channel: whose order the operation is in.
        """

    def progress(self) -> bool:
        """Do what can be done without waiting; True where something was. Raises ExchangeError."""


class ByDevice:
    """Gradients that lie on the device go through the device, and all else through memory."""

    def __init__(self, memory: OnHost, devices: DeviceExchange) -> None:
        self._memory, self._devices = memory, devices

    def reduce_scatter(self, values: Tensor, /, *, cuts: Sequence[int], channel: int) -> HostReduction:
        if channel == WHOLE_BUCKETS and values.device == self._devices.device:
            return self._devices.reduce_scatter(values, cuts=cuts)
        return self._memory.reduce_scatter(values, cuts=cuts, channel=channel)

    def progress(self) -> bool:
        moved = self._memory.progress()
        return self._devices.progress() or moved
