"""Placement of ranks on hosts (EP-13): one STRICT_PACK placement group per host, because placement groups cannot grow.

Call these from a process that is connected to Ray; they block for as long as the GCS needs to answer. A rank takes one
logical CPU; agents and spares take none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

_NODE_ID_LABEL = "ray.io/node-id"


@dataclass(frozen=True, order=True)
class HostSlot:
    """A host that has room."""

    address: str  # IP address of the Ray node
    node_id: str  # Ray's, in hex
    other_names: frozenset[str] = field(default=frozenset(), compare=False)  # its node name, its machine's host name
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)  # of the Ray node

    @property
    def names(self) -> frozenset[str]:
        """All that a user may know it by."""
        return self.other_names | {self.address, self.node_id}


def free_hosts(cpus: int, used: Collection[str] = ()) -> list[HostSlot]:
    """Living nodes with at least `cpus` free logical CPUs, by address; those whose id is in `used` are left out, and those
    that are about to go.

    An embedded cluster's head has no CPU and is never among them.
    """
    from ray._private.state import available_resources_per_node

    available, draining = available_resources_per_node(), draining_nodes()
    left_out = {*used, *draining}
    return [
        slot
        for slot in fitting_hosts(cpus)
        if slot.node_id not in left_out and available.get(slot.node_id, {}).get("CPU", 0.0) >= max(1, cpus)
    ]


def fitting_hosts(cpus: int) -> list[HostSlot]:
    """Living nodes with at least `cpus` logical CPUs, free or not, by address."""
    import ray

    return sorted(
        HostSlot(
            str(node["NodeManagerAddress"]),
            str(node["NodeID"]),
            frozenset({str(node["NodeName"]), str(node["NodeManagerHostname"])}),
            node["Labels"],
        )
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0.0) >= max(1, cpus)
    )


def dead_nodes() -> set[str]:
    """Ids of the nodes that Ray has found dead. One that it cannot reach for the moment is none of them."""
    import ray

    return {str(node["NodeID"]) for node in ray.nodes() if not node["Alive"]}


def draining_nodes() -> dict[str, float]:
    """Living nodes that Ray drains, by node id: until when, in Unix seconds; 0 where there is no deadline.

    So are those that the autoscaler takes away, and those whose `ray start --block` has received SIGTERM, as it does when
    its pod is deleted.
    """
    from ray._private.state import state

    return {str(node): milliseconds / 1000.0 for node, milliseconds in state.get_draining_nodes().items()}


def request_hosts(hosts: int, cpus: int) -> None:
    """Ask the autoscaler for a cluster with room for so many hosts of `cpus` CPUs, those it has included; 0: for none.

    The request is one for the whole cluster, stays until the next one, and takes the place of what others have asked for.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"CPU": float(cpus)}] * hosts)


def reserve(slot: HostSlot, bundles: int, name: str) -> PlacementGroup:
    """Ask for a host: a detached STRICT_PACK group of `bundles` of one CPU on exactly that node. Does not wait.

    `name` must be unique in the namespace. When the node dies the group never comes back elsewhere: `release` it.
    """
    from ray.util.placement_group import placement_group

    return placement_group(
        [{"CPU": 1.0}] * bundles,
        strategy="STRICT_PACK",
        name=name,
        lifetime="detached",
        bundle_label_selector=[{_NODE_ID_LABEL: slot.node_id}] * bundles,
    )


def wait_ready(group: PlacementGroup, timeout: float) -> bool:
    """True as soon as the host is ours; False where another job was faster or the host died: `release` the group."""
    return bool(group.wait(timeout))


def release(group: PlacementGroup) -> None:
    """Give a host back; whatever still runs in the group is killed. Does nothing where the group is gone already."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)


def missing(hosts_min: int, found: int, ranks_per_host: int) -> str:
    """One sentence for a waiting job: what it lacks."""
    need = _count(hosts_min - found, "more host")
    room = f"{_count(ranks_per_host, 'free CPU')}, one for each rank"
    return f"waiting for {need} with {room}: {found} of hosts.min {hosts_min} found"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
