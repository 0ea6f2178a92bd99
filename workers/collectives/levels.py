"""The levels that a bucket goes over, as one member sees them: its host, the hosts of its group, all groups (CC-1)."""

from __future__ import annotations

from dataclasses import dataclass

from workers.collectives.exchange import Groups, Hosts
from workers.collectives.lanes import Lane, Lanes, group_map, host_map, lanes_between
from workers.collectives.shared import cut as cut_shards


@dataclass(frozen=True)
class Levels:
    """Of a bucket of one length in one topology.

    Attributes:
        cuts: where the shards of this member's host begin, and where the last one ends.
        inside: lanes between the hosts of its group, where there are several groups: plain float32.
        between: lanes between groups where there are several, and between all hosts otherwise: these are encoded.
    """

    cuts: tuple[int, ...]
    inside: Lanes | None
    between: Lanes


def levels(n: int, hosts: Hosts, groups: Groups, index: int, granularity: int = 1) -> Levels:
    """For a bucket of n elements; pieces are multiples of `granularity` but for the last of a lane.

    Args:
        hosts: the members of each.
        groups: the members of each; a host is in one of them as a whole.
        index: of the member that asks.
    """
    host = next(members for members in hosts if index in members)
    cuts = cut_shards(n, len(host))
    position = host.index(index)
    shard, world = slice(cuts[position], cuts[position + 1]), sum(map(len, hosts))
    if len(groups) == 1:
        return Levels(cuts, None, Lanes(_lanes_between_hosts(n, hosts, granularity), world, index, shard))
    by_group = [_lanes_between_hosts(n, tuple(host for host in hosts if host[0] in group), granularity) for group in groups]
    mine = next(lanes for group, lanes in zip(groups, by_group, strict=True) if index in group)
    between = lanes_between([group_map(lanes) for lanes in by_group], granularity)
    return Levels(cuts, Lanes(mine, world, index, shard), Lanes(between, world, index, shard))


def _lanes_between_hosts(n: int, hosts: Hosts, granularity: int) -> tuple[Lane, ...]:
    return lanes_between([host_map(n, members) for members in hosts], granularity)
