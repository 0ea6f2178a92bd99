"""The other ranks of this host, the memory that they share with this one, and the group of their devices (CC-2).

Nobody watches these processes and removes what they leave. So a file loses its name as soon as all who need it have mapped
it, and the lock that its process holds on it tells whether that process lives.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from workers.collectives.device import DeviceExchange
from workers.collectives.exchange import ExchangeError, FlatExchange, Hosts
from workers.collectives.on_host import ByDevice, OnHost
from workers.collectives.shared import HostExchange, HostMemory, Layout
from workers.comm import devices as on_devices
from workers.comm.hosts import agree
from workers.identity import Generation
from workers.memory_file import MemoryShortage, memory_folder, memory_path, remove_abandoned

logger = logging.getLogger("quantarion.comm")

SLOTS = 2
"""Buckets that the ranks of a host exchange at the same time."""


class Neighbours:
    """Of this rank.

    Args:
        exchange: over all ranks.
        run: a number that no other run has.
        timeout: seconds in which an operation among devices must be done.
    """

    def __init__(self, exchange: FlatExchange, run: int, timeout: float) -> None:
        self._exchange, self._run, self._timeout = exchange, run, timeout
        places, index = exchange.topology.places, exchange.topology.index
        self._host = tuple(place.rank for place in places if place.host == places[index].host)
        self._folder = memory_folder(Path("comm"))
        self._number = 0
        self._shared: tuple[object, ...] = ()
        self._locks: dict[int, int] = {}
        self.hosts: Hosts = tuple((place.rank,) for place in places)
        """The ranks that share memory; one that shares none is a host of its own."""
        self.on_host: OnHost | None = None
        self.on_device: DeviceExchange | None = None
        """Where the ranks of this host share memory and have a device each."""

    def share(
        self, sizes: tuple[int, ...], thin: tuple[int, ...], devices: set[torch.device], stop: Callable[[], bool]
    ) -> None:
        """Share memory where all ranks of a host can; all ranks call it alike.

        Args:
            sizes: elements of the buckets.
            thin: as in `Layout`.
            devices: where the buckets lie.

        Raises Abandoned as soon as `stop()`, ExchangeError.
        """
        shared = sizes, thin
        if shared == self._shared or not self._anybody_has_neighbours():
            return
        self.close()
        self._shared = shared
        self._number += 1
        name = f"quantarion-comm/{self._run:x}/{self._number}/{self._host[0]}"
        self.on_device = on_devices.connect(self._exchange, self._host, devices, name, self._timeout, stop)
        elements = max(sizes) if self.on_device is None else len(sizes) + 1  # beside P and Q, only flags lie there then
        layout = Layout(elements, SLOTS, thin=thin)
        memory = self._make(layout) if len(self._host) > 1 else None
        made = agree(self._exchange, int(memory is not None), stop)
        try:
            if memory is not None and all(made[rank] for rank in self._host):
                self._enter(memory)
            entered = agree(self._exchange, int(self.on_host is not None), stop)
        finally:
            if memory is not None:
                memory.remove()
        places = self._exchange.topology.places
        shares = {place.host: all(entered[p.rank] for p in places if p.host == place.host) for place in places}
        found: dict[str | int, list[int]] = {}
        for place in places:
            found.setdefault(place.host if shares[place.host] else place.rank, []).append(place.rank)
        self.hosts = tuple(map(tuple, found.values()))
        if not shares[places[self._exchange.topology.index].host]:
            self._leave()
        elif self.on_host is not None and self.on_device is not None:
            self.on_host = ByDevice(self.on_host, self.on_device)

    def check(self) -> None:
        """Raise ExchangeError where a rank that shares memory with this one has ended: nothing else would tell."""
        for rank, lock in self._locks.items():
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            fcntl.flock(lock, fcntl.LOCK_UN)
            raise ExchangeError(f"rank {rank}, on the same host, has ended")

    def abandon(self) -> None:
        """Let no operation wait on a device for a rank that may be gone."""
        if self.on_device is not None:
            self.on_device.close()

    def close(self) -> None:
        """Share nothing any more."""
        self._leave()
        self.hosts = tuple((place.rank,) for place in self._exchange.topology.places)
        self._shared = ()

    def _anybody_has_neighbours(self) -> bool:
        places = self._exchange.topology.places
        return len({place.host for place in places}) < len(places)

    def _make(self, layout: Layout) -> HostMemory | None:
        remove_abandoned(self._folder)  # by runs that were killed before they took the names away
        try:
            return HostMemory(self._path(self._exchange.topology.index), layout)
        except (MemoryShortage, OSError) as error:
            logger.warning("the ranks of this host exchange gradients through sockets: %s", error)
            return None

    def _enter(self, memory: HostMemory) -> None:
        paths = [self._path(rank) for rank in self._host]
        try:
            for rank, path in zip(self._host, paths, strict=True):
                if path != memory.path:
                    self._locks[rank] = os.open(path, os.O_RDONLY)
            self.on_host = HostExchange(memory, paths, Generation(1, self._number))
        except (ExchangeError, OSError) as error:
            logger.warning("the ranks of this host exchange gradients through sockets: %s", error)
            self._leave()

    def _leave(self) -> None:
        for lock in self._locks.values():
            os.close(lock)
        self.abandon()
        self._locks, self.on_host, self.on_device = {}, None, None

    def _path(self, rank: int) -> Path:
        return memory_path(self._folder, f"{self._run:x}-{self._number}-{rank}")
