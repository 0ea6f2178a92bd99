"""Hosts that will be taken away: who says so, the acknowledgement, and what the coordinator does about it (GM-38)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from quantarion.v1 import control_pb2 as pb

from orchestrator import membership as ms
from orchestrator.governing import Removal, Way
from orchestrator.governor.codes import Code
from orchestrator.notices import DEADLINE_SECONDS, Notice, Notices, Source

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator

logger = logging.getLogger("quantarion.drains")

LOOK_SECONDS = 0.25
"""Between two looks at the nodes that Ray drains."""


class Drains:
    """Of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._job = coordinator
        remembered = coordinator.journal.remembered
        told = [host for host, entry in remembered.hosts.items() if entry.get("leaving")]
        self.notices = Notices(map(Notice.read, remembered.notices.values()), told)
        self._thread = ThreadPoolExecutor(1, "drains")  # its own: to reserve a node takes longer than a notice may

    async def watch(self) -> None:
        """Ask Ray, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.told_by_ray(await loop.run_in_executor(self._thread, self._job.ray_hosts.draining))
            except Exception:
                logger.exception("looking for nodes that are drained failed; trying again")
            await asyncio.sleep(LOOK_SECONDS)

    def told_by_ray(self, draining: Mapping[str, float]) -> None:
        """It drains the nodes of these hosts, until then (Unix seconds; 0: it does not say)."""
        now = self._job.now()
        for host in self.notices.withdraw(draining):
            self._job.journal.write({"entry": "notice_withdrawn", "host": host})
        for host, deadline in draining.items():
            until = max(deadline, now) if deadline else now + DEADLINE_SECONDS
            self._hear(Notice(host, Source.RAY, "Ray drains its node", now, until))

    def told_by_agent(self, host: str, message: pb.Draining) -> None:
        """On its stream, and again on each new one."""
        now = self._job.now()
        heard = now - message.age
        until = now + message.deadline if message.deadline else heard + DEADLINE_SECONDS
        self._hear(Notice(host, Source.AGENT, message.reason, heard, until))

    def _hear(self, notice: Notice) -> None:
        """The event is the acknowledgement."""
        job = self._job
        job.host_tests.give_up(notice.host, notice.reason)
        if notice.host not in job.machine.hosts or (known := self.notices.hear(notice)) is None:
            return
        job.journal.write({"entry": "notice", **known.record()})
        job.event("drain_notice", {**known.record(), "code": Code.DRAIN.value})

    def tick(self) -> None:
        """Obey what is due. At the end of a job everybody leaves."""
        job, machine, now = self._job, self._job.machine, self._job.now()
        if machine.stopping or machine.phase is ms.JobPhase.ENDED or machine.recovering_until is not None:
            return
        due = self.notices.due(machine.hosts, self._step_ends(now), now)
        for removal in due:
            job.do(self._remove(removal, now))
        if due and machine.formed and all(host.leaving for host in machine.hosts.values()) and not job.saving.step:
            job.saving.ask()  # nobody else will have the state

    def _step_ends(self, now: float) -> float | None:
        machine = self._job.machine
        step = machine.pace.soon(now) if machine.phase is ms.JobPhase.TRAINING else 0
        return now + machine.pace.until(step, now) if step else None

    def _remove(self, removal: Removal, now: float) -> list[ms.Action]:
        """Who alone has the state stays, and leaves when another has it (GM-35)."""
        machine, host = self._job.machine, removal.host
        if removal.way is Way.LOST:
            return machine.host_lost(host, removal.reason, now) if machine.can_spare(host) else []
        at_once = removal.way is Way.AT_ONCE
        return [*machine.leave(host, removal.reason, now, at_once=at_once), *(machine.hasten(host, now) if at_once else [])]

    def keeps_away(self, host: str) -> bool:
        """Its node is about to go."""
        return self.notices.keeps_away(host, self._job.now())

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
