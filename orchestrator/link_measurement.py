"""The links between a job's hosts, measured before the first generation (CC-9)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from quantarion.v1 import control_pb2 as pb

from orchestrator.probe import BUDGET_SECONDS, Findings, LinkProbe

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator

logger = logging.getLogger("quantarion.probe")


class LinkMeasurement:
    """Of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._job = coordinator
        self._probe: LinkProbe | None = None
        self._running: asyncio.Task[None] | None = None

    def begin(self, addresses: dict[str, str]) -> None:
        """Between hosts at these addresses."""
        self._running = asyncio.create_task(self._measure(addresses))

    def told(self, host: str, message: pb.AgentMessage) -> None:
        """What an agent has found, if anybody still asks."""
        if self._probe is None:
            return
        if message.HasField("probe_port"):
            self._probe.port(host, message.probe_port)
        else:
            self._probe.measured(host, message.measured_link)

    def lost(self, host: str) -> None:
        """Nothing comes from there any more."""
        if self._probe is not None:
            self._probe.lost(host)

    async def _measure(self, addresses: dict[str, str]) -> None:
        """Whatever comes of it, the job goes on."""
        job = self._job
        findings, found = Findings(addresses), dict[str, str]()
        told = {host.host: host.group for host in job.machine.hosts.values() if host.group}
        try:
            self._probe = LinkProbe(addresses, job.streams.post)
            findings = self._probe.findings
            await asyncio.wait_for(self._probe.run(), BUDGET_SECONDS + 1.0)
            found = findings.groups(told)
        except Exception as error:
            logger.exception("the probe failed")
            findings.failures.append(f"the probe failed: {error or type(error).__name__}")
        self._probe = None
        by_address = {addresses[host]: group for host, group in found.items()}
        job.journal.write({"entry": "probed", "groups": found, "by_address": by_address})
        job.journal.remembered.probed = by_address
        job.event("topology", findings.record(told, found))
        job.do(job.machine.probed(found, job.now()))
