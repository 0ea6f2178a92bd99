"""Which hosts a job would have, which of them the gate takes, and which of those it disturbs (GM-40)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.jobspec import JobSpec
from orchestrator.placement import HostSlot
from orchestrator.topology import told_group

MOST = 64
"""Hosts that the gate takes."""

ONE_LOST_OF = 10
"""Hosts, rounded up, PF-2 loses at once."""


@dataclass(frozen=True, order=True)
class Host:
    """`group`: by the JobSpec or a label; '' where neither names one. `node_id`: Ray's, '' of an embedded host to be."""

    address: str
    node_id: str = ""
    group: str = ""


def hosts_of_machine(spec: JobSpec) -> list[Host]:
    """Those of the cluster that a job starts inside its own process."""
    slots = [HostSlot(f"127.0.0.{number}", "") for number in range(2, 2 + spec.hosts.max)]
    return _hosts(spec, slots)


def hosts_of_cluster(spec: JobSpec) -> list[Host]:
    """Those that the job would take, were all free, of the cluster that this process is connected to."""
    from orchestrator.placement import fitting_hosts

    return _hosts(spec, fitting_hosts(spec.ranks_per_host))[: spec.hosts.max]


def _hosts(spec: JobSpec, slots: Sequence[HostSlot]) -> list[Host]:
    only = spec.hosts.only
    meant = [slot for slot in slots if not only or not slot.names.isdisjoint(only)]
    return [Host(slot.address, slot.node_id, told_group(slot, spec.topology)) for slot in meant]


def chosen(hosts: Sequence[Host], most: int = MOST) -> list[Host]:
    """All, or `most` of them, of all groups as evenly as they go; in the order of the ring of their ranks."""
    groups = dict[str, list[Host]]()
    for host in sorted(hosts):
        groups.setdefault(host.group, []).append(host)
    turns = max(map(len, groups.values()), default=0)
    in_turn = [members[turn] for turn in range(turns) for _, members in sorted(groups.items()) if turn < len(members)]
    return sorted(in_turn[:most], key=lambda host: (not host.group, host.group, host))


@dataclass(frozen=True)
class Roles:
    """Ranks, each of another host, that the gate's faults are for; none of them writes the log of steps.

    Attributes:
        lost: with their hosts, in PF-2 and PF-7.
        noisy: whose gradient is disturbed, in PF-4.
        slow: that arrives late, in PF-3.
        flipped: whose memory is, in PF-5.
        linked: whose links are slow, in PF-3: the first of each group, or all where there is one group.
    """

    lost: tuple[int, ...]
    noisy: int
    slow: int
    flipped: int
    linked: tuple[int, ...]


def roles(ring: Sequence[Host], turn: int = 0) -> Roles:
    """Of hosts with one rank each; with another `turn` others are hit. One host alone has all roles."""
    others = list(range(len(ring) - 1, 0, -1)) or [0]
    others = others[turn % len(others) :] + others[: turn % len(others)]
    noisy, slow, flipped = (others[number % len(others)] for number in range(3))
    lost = tuple(others[: -(-len(ring) // ONE_LOST_OF)])
    return Roles(lost, noisy, slow, flipped, linked(ring))


def linked(ring: Sequence[Host]) -> tuple[int, ...]:
    """The first rank of each group; all where there is one group."""
    groups = [host.group for host in ring]
    if len(set(groups)) < 2:
        return tuple(range(len(ring)))
    return tuple(sorted(groups.index(group) for group in set(groups)))
