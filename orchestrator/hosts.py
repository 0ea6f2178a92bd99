"""The Ray side of a job's hosts: placement groups, agents and workers as detached actors in the job's namespace (EP-12).

Every call may block on Ray; the coordinator makes them in a thread of their own.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
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
PING_SECONDS = 0.5
WATCH_SECONDS = 90.0
"""How long a new worker is watched; then it counts as never started anyway (`roster.Rules.spawn_timeout`)."""


@dataclass(frozen=True)
class PlacedHost:
    """One host of the job: its name there, its Ray node, and the address its peers reach it by."""

    host: str
    node_id: str
    address: str


class RayHosts:
    """Starts and removes what runs on the job's hosts.

    `on_dead` is called, in a thread of its own, with the host of each worker that died before `met` was told of it:
    no agent knows such a process. Set it before the first `spawn_worker`.
    """

    def __init__(
        self,
        *,
        job: str,
        job_folder: Path,
        ranks_per_host: int,
        namespace: str,
        only: Collection[str] = (),
        on_dead: Callable[[str], None] = lambda host: None,
    ) -> None:
        """`only`: names of the nodes that may be taken; () for all."""
        self._only = only
        self._job, self._folder, self._ranks, self._namespace = job, job_folder, ranks_per_host, namespace
        self.on_dead = on_dead
        self.placed: dict[str, PlacedHost] = {}
        self._groups: dict[str, PlacementGroup] = {}
        self._names = NodeNames()
        self._newborn = Newborn(lambda host: self.on_dead(host))

    def adopt(self, hosts: dict[str, dict[str, Any]], names: Mapping[str, str]) -> None:
        """After a restart of the coordinator: the hosts that the journal knows, and how all nodes it knew were named."""
        self._names = NodeNames(names)
        for host, entry in hosts.items():
            self.placed[host] = PlacedHost(host, str(entry["node_id"]), str(entry["address"]))
            with contextlib.suppress(ValueError):
                self._groups[host] = ray.util.get_placement_group(self._group_name(host))

    def draining(self) -> dict[str, float]:
        """Hosts whose nodes Ray drains, and the deadlines: Unix seconds; 0 where there is none."""
        found = {self._names.known.get(node): deadline for node, deadline in placement.draining_nodes().items()}
        return {host: deadline for host, deadline in found.items() if host is not None}

    def offers(self) -> list[placement.HostSlot]:
        """Nodes of the cluster that could become hosts of this job."""
        free = placement.free_hosts(self._ranks, {placed.node_id for placed in self.placed.values()})
        return [slot for slot in free if not self._only or not slot.names.isdisjoint(self._only)]

    def dead(self, hosts: Collection[str]) -> list[str]:
        """Those of `hosts` whose nodes are dead, given up already or not."""
        dead = placement.dead_nodes()
        return [host for node, host in self._names.known.items() if node in dead and host in hosts]

    def request(self, hosts: int) -> None:
        """Ask the autoscaler for a cluster with room for so many hosts of this job; 0 takes that back."""
        placement.request_hosts(hosts, self._ranks)

    def name(self, slot: placement.HostSlot) -> str:
        """Of the host that a node is or would be."""
        return self._names.of(slot.node_id)

    def start(self, slot: placement.HostSlot) -> PlacedHost | None:
        """Reserve a node and start its agent; None where Ray did not give it in time."""
        host = self.name(slot)
        group = placement.reserve(slot, self._ranks, self._group_name(host))
        if not placement.wait_ready(group, RESERVE_SECONDS):
            placement.release(group)
            return None
        placed = PlacedHost(host, slot.node_id, slot.address)
        self._groups[host] = group
        options = {"name": f"agent-{host}", "max_restarts": -1, "max_concurrency": 2, **self._on(host)}
        try:
            ray.remote(AgentActor).options(**options).remote(
                job=self._job, job_folder=str(self._folder), host=host, node_id=slot.node_id, address=slot.address
            )
        except ValueError as error:  # Ray still has the agent that was here before
            logger.info("%s is not free yet: %s", host, error)
            placement.release(self._groups.pop(host))
            return None
        self.placed[host] = placed
        return placed

    def spawn_worker(self, host: str) -> None:
        """One more worker process on `host`; it reports to its agent when it is up."""
        placed = self.placed.get(host)
        if placed is None or host not in self._groups:
            return
        worker = (
            ray.remote(WorkerActor)
            .options(max_restarts=0, max_concurrency=2, **self._on(host))
            .remote(job_folder=str(self._folder), host=host, address=placed.address)
        )
        self._newborn.watch(host, worker)

    def met(self, host: str, pid: int) -> None:
        """The worker with this process id has said hello to the agent of `host`, which watches it from now on."""
        self._newborn.met(host, pid)

    def drop(self, host: str) -> None:
        """Remove a host: its agent, and its placement group with every actor in it. Until that is done it is `placed`."""
        self._newborn.forget(host)
        try:
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(f"agent-{host}", self._namespace), no_restart=True)
            group = self._groups.pop(host, None)
            if group is not None:
                placement.release(group)
        finally:
            self.placed.pop(host, None)

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


class NodeNames:
    """Of the hosts of a job: `host-1`, `host-2`, … A node that comes back has the name that it had.

    Args:
        known: node id to host.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._hosts = dict(known or {})
        numbers = (int(host.rpartition("-")[2]) for host in self._hosts.values())
        self._last = max(numbers, default=0)

    @property
    def known(self) -> Mapping[str, str]:
        """Node id to host."""
        return self._hosts

    def of(self, node_id: str) -> str:
        if node_id not in self._hosts:
            self._last += 1
            self._hosts[node_id] = f"host-{self._last}"
        return self._hosts[node_id]


class Newborn:
    """Workers that no agent watches yet, asked by Ray whether they live.

    A ping of a dead actor fails as soon as Ray knows of its death, whatever the process died of: its import, the memory
    of the host, `kill -9`. An actor that Ray cannot reach for the moment is asked again.
    """

    def __init__(self, on_dead: Callable[[str], None]) -> None:
        self._on_dead = on_dead
        self._lock = threading.Lock()
        self._watched: dict[Any, _Watched] = {}  # by the reference of the ping that is on its way
        self._met: set[tuple[str, int]] = set()  # (host, pid)
        self._thread: threading.Thread | None = None

    def watch(self, host: str, worker: Any) -> None:
        """`worker` is the actor's handle."""
        with self._lock:
            self._watched[worker.ping.remote()] = _Watched(host, worker, time.monotonic() + WATCH_SECONDS)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="newborn", daemon=True)
                self._thread.start()

    def met(self, host: str, pid: int) -> None:
        """Somebody else watches it from now on."""
        with self._lock:
            self._met.add((host, pid))

    def forget(self, host: str) -> None:
        """The host is gone: nobody waits for its workers."""
        with self._lock:
            self._watched = {ping: each for ping, each in self._watched.items() if each.host != host}
            self._met = {(known, pid) for known, pid in self._met if known != host}

    def _watch(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                waited_for = {ping for ping, each in self._watched.items() if now < each.until and not self._is_met(each)}
                self._watched = {ping: self._watched[ping] for ping in waited_for}
                if not self._watched:
                    self._thread = None
                    return
                pings = list(self._watched)
            answered, _ = ray.wait(pings, num_returns=len(pings), timeout=PING_SECONDS, fetch_local=False)
            dead = [host for ping in answered if (host := self._look(ping)) is not None]
            for host in dead:
                self._on_dead(host)
            if len(answered) == len(pings):
                time.sleep(PING_SECONDS)

    def _look(self, ping: Any) -> str | None:
        """What a ping came to: the host of a worker that is dead, or another ping of one that lives."""
        pid = 0
        dead = ""
        try:
            pid = int(ray.get(ping))
        except ray.exceptions.ActorDiedError as error:
            dead = str(error)
        except ray.exceptions.RayError as error:
            logger.info("a worker that is starting cannot be reached: %s", error)
        with self._lock:
            each = self._watched.pop(ping, None)
            if each is None or self._is_met(each):
                return None
            if dead:
                logger.warning("a worker on %s died before it said hello: %s", each.host, dead)
                return each.host
            each.pid = pid or each.pid
            self._watched[each.worker.ping.remote()] = each
            return None

    def _is_met(self, each: _Watched) -> bool:
        return (each.host, each.pid) in self._met


@dataclass
class _Watched:
    """One worker that has not said hello."""

    host: str
    worker: Any  # the actor's handle; while it is held, and only then, Ray tells of its death
    until: float  # monotonic seconds
    pid: int = 0  # 0 until it has answered a ping
