"""The Ray side of a job's hosts: placement groups, agents and workers as detached actors in the job's namespace (EP-12).

Every call may block on Ray; the coordinator makes them in a thread of their own.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator import placement
from workers.actors import AgentActor, WorkerActor

logger = logging.getLogger("quantarion.hosts")

RESERVE_SECONDS = 10.0


@dataclass(frozen=True)
class PlacedHost:
    """One host of the job: its name there, its Ray node, and the address its peers reach it by."""

    host: str
    node_id: str
    address: str


class RayHosts:
    """Starts and removes what runs on the job's hosts."""

    def __init__(self, *, job: str, job_folder: Path, ranks_per_host: int, namespace: str) -> None:
        self._job, self._folder, self._ranks, self._namespace = job, job_folder, ranks_per_host, namespace
        self.placed: dict[str, PlacedHost] = {}
        self._groups: dict[str, PlacementGroup] = {}
        self._numbers = itertools.count(1)

    def adopt(self, hosts: dict[str, dict[str, Any]]) -> None:
        """After a restart of the coordinator: the hosts that the journal knows."""
        for host, entry in hosts.items():
            self.placed[host] = PlacedHost(host, str(entry["node_id"]), str(entry["address"]))
            with contextlib.suppress(ValueError):
                self._groups[host] = ray.util.get_placement_group(self._group_name(host))
        used = [int(host.rpartition("-")[2]) for host in hosts]
        self._numbers = itertools.count(max(used, default=0) + 1)

    def offers(self) -> list[placement.HostSlot]:
        """Nodes of the cluster that could become hosts of this job."""
        return placement.free_hosts(self._ranks, {placed.node_id for placed in self.placed.values()})

    def start(self, slot: placement.HostSlot) -> PlacedHost | None:
        """Reserve a node and start its agent; None where Ray did not give it in time."""
        host = f"host-{next(self._numbers)}"
        group = placement.reserve(slot, self._ranks, self._group_name(host))
        if not placement.wait_ready(group, RESERVE_SECONDS):
            placement.release(group)
            return None
        placed = PlacedHost(host, slot.node_id, slot.address)
        self._groups[host] = group
        self.placed[host] = placed
        ray.remote(AgentActor).options(name=f"agent-{host}", max_restarts=-1, max_concurrency=2, **self._on(host)).remote(
            job=self._job, job_folder=str(self._folder), host=host, node_id=slot.node_id, address=slot.address
        )
        return placed

    def spawn_worker(self, host: str) -> None:
        """One more worker process on `host`; it reports to its agent when it is up."""
        placed = self.placed.get(host)
        if placed is None or host not in self._groups:
            return
        ray.remote(WorkerActor).options(max_restarts=0, max_concurrency=2, **self._on(host)).remote(
            job_folder=str(self._folder), host=host, address=placed.address
        )

    def drop(self, host: str) -> None:
        """Remove a host: its agent, and its placement group with every actor in it."""
        self.placed.pop(host, None)
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(f"agent-{host}", self._namespace), no_restart=True)
        group = self._groups.pop(host, None)
        if group is not None:
            placement.release(group)

    def drop_all(self) -> None:
        for host in list(self.placed):
            self.drop(host)

    def _group_name(self, host: str) -> str:
        return f"{self._namespace}-{host}"

    def _on(self, host: str) -> dict[str, Any]:
        """Zero logical CPUs: the placement group holds them, so a replacement never waits for a dead process's share."""
        return {
            "lifetime": "detached",
            "namespace": self._namespace,
            "num_cpus": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._groups[host], placement_group_bundle_index=0),
        }
