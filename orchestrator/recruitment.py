"""Hosts that appear in the cluster are taken into the job, as many as there are to be (EP-13)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator import placement
from orchestrator.actions import EndJob
from orchestrator.autoscaling import Autoscaling, hosts_wanted
from orchestrator.roster import JobPhase
from orchestrator.topology import complaints, told_group

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator

logger = logging.getLogger("quantarion.recruitment")

LOOK_SECONDS = 0.5


class Recruitment:
    """Of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._job = job = coordinator
        self._since = job.now()
        self._offered = self._refused = 0  # hosts that could be taken, and such that are kept away, seen last
        self._autoscaling = Autoscaling(job.ray_hosts.request) if job.spec.hosts.autoscale else None
        self._slots: list[placement.HostSlot] = []  # taken by this incarnation
        self._complained = bool(job.journal.remembered.hosts)  # a predecessor took them

    async def look(self) -> None:
        """For ever: take hosts that appear, say what is missing, give up after hosts.wait."""
        job = self._job
        while True:
            try:
                if self._autoscaling is not None and not job.machine.stopping:
                    leaving = len(job.machine.roster.leaving)
                    wanted = hosts_wanted(self._most, len(job.ray_hosts.placed), leaving, self._refused)
                    await job.in_ray(self._autoscaling.ask, wanted, job.now())
                if len(job.ray_hosts.placed) < self._most and not job.machine.stopping:
                    job.machine.placing = True
                    try:
                        await job.in_ray(self._place)
                    finally:
                        job.machine.placing = False
                if missing := job.machine.out_of_reach:
                    self._died(await job.in_ray(job.ray_hosts.dead, missing))
                self._say_what_is_missing()
            except Exception:
                logger.exception("looking for hosts failed; trying again")
            await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """The job needs no hosts any more."""
        if self._autoscaling is not None:
            await self._job.in_ray(self._autoscaling.withdraw)

    def expect(self, host: str, address: str, group: str) -> None:
        """Its agent is being started."""
        job = self._job
        job.event("host_up", {"host": host, "address": address, "group": group})
        if not job.governing.is_in(host):
            job.host_tests.place(host, address, group)
            return
        job.do(job.machine.expect_host(host, address, job.now(), group))

    def complain(self) -> None:
        """Once, as the job starts: about hosts that it names and has not."""
        if self._complained:
            return
        self._complained = True
        for message in complaints(self._slots, self._job.spec.topology):
            self._job.event("topology_warning", {"message": message})

    @property
    def _most(self) -> int:
        """Hosts that the job may hold, spares and all."""
        return self._job.machine.roster.most_hosts + self._job.spec.hosts.num_spares

    def _died(self, hosts: Iterable[str]) -> None:
        """As Ray knows of their nodes."""
        job = self._job
        for host in hosts:
            if host in job.machine.out_of_reach and not job.done.is_set():
                job.do(job.machine.node_died(host, job.now()))

    def _place(self) -> None:
        """In the Ray thread."""
        job, hosts = self._job, self._job.ray_hosts
        found = hosts.offers()
        offers = [slot for slot in found if self._may_come(hosts.name(slot))]
        self._offered, self._refused = len(offers), len(found) - len(offers)
        room = self._most - len(hosts.placed)
        if not job.machine.formed and len(offers) + len(hosts.placed) < job.spec.hosts.min:
            return  # a gang is held whole or not at all (EP-13)
        for slot in offers[:room]:
            job.entrance.issue(hosts.name(slot))
            placed = hosts.start(slot)
            if placed is not None:
                group = told_group(slot, job.spec.topology) or job.journal.remembered.probed.get(slot.address, "")
                job.journal.write({"entry": "host", **asdict(placed), "group": group})
                self._slots.append(slot)
                job.loop.call_soon_threadsafe(self.expect, placed.host, placed.address, group)

    def _may_come(self, host: str) -> bool:
        job = self._job
        is_drained = host in job.journal.remembered.drained or job.drains.keeps_away(host)
        return not is_drained and not job.host_tests.has_to_wait(host) and job.governing.may_come(host)

    def _say_what_is_missing(self) -> None:
        job, hosts = self._job, self._job.spec.hosts
        if job.machine.phase is not JobPhase.WAITING or job.machine.formed:
            return
        found = len(job.ray_hosts.placed)
        if found >= hosts.min:
            job.message = f"starting {found} host{'s' if found != 1 else ''}"
            return
        message = placement.missing(hosts.min, found + self._offered, job.spec.ranks_per_host)
        if message != job.message:
            job.message = message
            job.event("waiting", {"message": message})
        if job.now() - self._since > hosts.wait:
            job.do([EndJob(7, f"{message}; gave up after {hosts.wait:g} s (hosts.wait)")])
