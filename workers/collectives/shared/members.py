"""Who shares memory with whom in a generation, by what CONFIGURE says of its members: all of them find the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from quantarion.v1 import control_pb2 as pb

from workers.collectives.exchange import Hosts
from workers.collectives.shared.host import HostExchange
from workers.collectives.shared.memory import HostMemory
from workers.identity import Generation
from workers.memory_file import memory_path


def sharing_hosts(members: Sequence[pb.Member]) -> set[str]:
    """The hosts all of whose members have memory, if one of those hosts has two members; otherwise none."""
    lacking = {member.host for member in members if not member.shared_memory}
    sharing = Counter(member.host for member in members if member.host not in lacking)
    return set(sharing) if max(sharing.values(), default=0) > 1 else set()


def by_memory(members: Sequence[pb.Member]) -> Hosts:
    """The members, by their index, that share memory; one that shares none is a host of its own."""
    sharing = sharing_hosts(members)
    found: dict[str | int, list[int]] = {}
    for index, member in enumerate(members):
        found.setdefault(member.host if member.host in sharing else index, []).append(index)
    return tuple(map(tuple, found.values()))


def enter(memory: HostMemory, host: str, members: Sequence[pb.Member], generation: Generation) -> HostExchange | None:
    """The exchange of a generation's `members`, as in the ring, on `host`, which is ours; None where it shares nothing.

    Raises ExchangeError where the memory of a peer is gone or laid out otherwise.
    """
    if host not in sharing_hosts(members):
        memory.forget_peers()
        return None
    folder = memory.path.parent
    paths = [memory_path(folder, member.worker) for member in members if member.host == host]
    return HostExchange(memory, paths, generation)
