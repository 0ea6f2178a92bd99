"""Which ranks share a host, which hosts are near each other, and the process groups in which they exchange: out of the
environment, without a coordinator."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from workers.collectives.exchange import PHASES, FlatExchange, Place, Topology
from workers.compression.product import fingerprint

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Two machines of one name, as containers may be, differ in this."""

GROUP = "QUANTARION_GROUP"
"""The variable that names the group of a host."""


class Joined(NamedTuple):
    """`run` is a number that the ranks of this run have in common and no other run has; `timeout` is in seconds."""

    exchange: FlatExchange
    run: int
    timeout: float


def host_key() -> str:
    """What ranks of one host have alike: the node of torchrun, or else the name of the machine."""
    if "GROUP_RANK" in os.environ and "LOCAL_WORLD_SIZE" in os.environ:
        return f"node {os.environ['GROUP_RANK']}"
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    return f"machine {socket.gethostname()} {boot}"


def join(group: dist.ProcessGroup | None) -> Joined:
    """Connect the ranks of `group`, None for all; every one of them calls it. Needs `init_process_group`.

    Raises ValueError, on all of them, where ranks of one host name different groups of hosts.
    """
    parent: Any = group or dist.group.WORLD
    world, timeout = dist.get_world_size(parent), _timeout(parent)
    place = number_of(host_key()), number_of(os.environ.get(GROUP, ""))
    mine = torch.tensor([*place, secrets.randbits(62), fingerprint()])
    everybody = mine
    groups, inside, lane = [], [], None
    if world > 1:
        ranks = None if group is None else dist.get_process_group_ranks(group)
        groups = [_new_group(ranks, timeout) for _ in range(PHASES)]
        everybody = torch.empty(4 * world, dtype=mine.dtype)
        groups[0]._allgather_base(everybody, mine).wait()
    keys, near, numbers, machines = everybody.view(world, 4).T.tolist()
    topology = Topology(places_of(keys, near), dist.get_rank(parent))
    # Of a rank alone too: torch names a later group of some ranks by how many each of them has.
    if len(topology.groups) > 1:
        together = [dist.get_global_rank(parent, member) for member in topology.group]
        inside = [_new_group(together, timeout) for _ in range(PHASES)]
    if 1 < len(topology.lane) < world:
        lane = _new_group([dist.get_global_rank(parent, member) for member in topology.lane], timeout)
    exchange = FlatExchange(topology, groups, inside, lane, alike=len({*machines}) == 1)
    return Joined(exchange, numbers[0], timeout.total_seconds())


def places_of(hosts: Sequence[int], groups: Sequence[int]) -> tuple[Place, ...]:
    """From what each rank says of its host and of that host's group. Raises ValueError where two of a host differ."""
    first = [hosts.index(host) for host in hosts]
    for rank, other in enumerate(first):
        if groups[rank] != groups[other]:
            raise ValueError(
                f"ranks {other} and {rank} share a host, and {GROUP} is not the same for both: write one name for all "
                f"ranks of a host, as in {GROUP}=site-a torchrun ..."
            )
    return tuple(
        Place(rank, str(other), "", str(groups.index(group)))
        for rank, (other, group) in enumerate(zip(first, groups, strict=True))
    )


def agree(exchange: FlatExchange, mine: int, stop: Callable[[], bool]) -> list[int]:
    """What every rank says, in their order. Raises Abandoned as soon as `stop()`, ExchangeError."""
    everybody = torch.empty(exchange.topology.world, dtype=torch.int64)
    exchange.all_gather(everybody, torch.tensor([mine])).wait(stop)
    return everybody.tolist()


def _new_group(ranks: list[int] | None, timeout: timedelta) -> Any:
    made: Any = dist.new_group(ranks, timeout, "gloo", use_local_synchronization=ranks is not None)
    return made._get_backend(torch.device("cpu"))


def _timeout(group: Any) -> timedelta:
    """That of the script's own collectives."""
    return min(group._get_backend(device).options._timeout for device in group._device_types)


def number_of(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
