"""The devices of the ranks of a host, and the NCCL group among them (CC-2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from workers.collectives.device import DeviceExchange
from workers.collectives.exchange import FlatExchange
from workers.comm.hosts import agree, number_of

NONE = 0


def identity(device: torch.device) -> int:
    """A number that no other device has; `NONE` of what NCCL does not know."""
    if device.type != "cuda" or not dist.is_nccl_available():
        return NONE
    return number_of(f"device {torch.cuda.get_device_properties(device).uuid}")


def make_group(device: torch.device, store: dist.Store, index: int, world: int, timeout: timedelta) -> Any:
    """The backend of torch.distributed for tensors on `device`."""
    nccl: Any = dist.ProcessGroupNCCL  # its type stub lacks what it has
    options = nccl.Options()
    options._timeout = timeout
    return nccl(store, index, world, options)


def connect(
    exchange: FlatExchange,
    host: Sequence[int],
    devices: set[torch.device],
    name: str,
    timeout: float,
    stop: Callable[[], bool],
) -> DeviceExchange | None:
    """An exchange among the ranks of a host, where each has one device to itself; None elsewhere. All ranks call it alike.

    Args:
        exchange: over all ranks.
        host: the ranks of this one's host.
        devices: where this rank's gradients lie.
        name: that no other group of this run has.
        timeout: seconds in which an operation of the group must be done.

    Raises Abandoned as soon as `stop()`, ExchangeError.
    """
    mine = identity(next(iter(devices))) if len(devices) == 1 else NONE
    everybody = agree(exchange, mine, stop)
    here = [everybody[rank] for rank in host]
    if len(host) < 2 or NONE in here or len(set(here)) < len(here):
        return None
    (device,) = devices
    store = dist.PrefixStore(name, dist.distributed_c10d._get_default_store())
    index = host.index(exchange.topology.places[exchange.topology.index].rank)
    group = make_group(device, store, index, len(host), timedelta(seconds=timeout))
    return DeviceExchange(group, device, alone=len(host) == exchange.topology.world)
