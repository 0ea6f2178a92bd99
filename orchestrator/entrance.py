"""Where agents and operators come in to a coordinator: a plain port, or a gate that asks for certificates."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc

from orchestrator.admission import Admission
from orchestrator.certificates import Certificates, warnings
from orchestrator.gate import LOOPBACK, Gate
from orchestrator.jobspec import JobSpec
from orchestrator.peers import server_name
from orchestrator.security import is_loopback
from orchestrator.turned_away import Tally

logger = logging.getLogger("quantarion.coordinator")

LOOK_SECONDS = 20.0
"""From one look after the certificates to the next."""
WARN_SECONDS = 86400.0
"""Between two warnings about one certificate."""

Event = Callable[[str, dict[str, object]], None]


class Entrance:
    """Of one coordinator. Which of the two it is follows from the JobSpec and the address.

    Args:
        folder: of the job.
        address: IP address to listen on.
        event: takes the kind and the fields of an event.
        hosts: names of the hosts of the job by now, whose agents have certificates.
    """

    def __init__(self, spec: JobSpec, folder: Path, address: str, event: Event, hosts: Callable[[], Iterable[str]]) -> None:
        self._address, self._event, self._hosts, self._job = address, event, hosts, spec.name
        self._tally = Tally(lambda fields: event("peer_refused", fields), time.time)
        self._certificates: Certificates | None = None
        self._gate: Gate | None = None
        if spec.security.needs_tls(address):
            self._certificates = Certificates(folder, spec.name)
            self._gate = Gate(self._certificates.folder, spec.name, self._tally)
        self.admission = Admission(self._gate.caller if self._gate is not None else None, self._tally)
        self._port = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._warned: dict[str, float] = {}

    @property
    def address(self) -> str:
        """host:port, once it is open."""
        return f"{self._address}:{self._port}"

    @property
    def server_name(self) -> str:
        """That the coordinator's certificate is for; empty without TLS."""
        return server_name(self._job) if self._gate is not None else ""

    async def open(self, server: grpc.aio.Server) -> None:
        """Give `server`, which is not started yet, its port, and be there for whoever connects."""
        if self._certificates is None or self._gate is None:
            self._port = server.add_insecure_port(f"{self._address}:0")
            if not is_loopback(self._address):
                self._event("plaintext", {"address": self._address})
            return
        await asyncio.to_thread(self._certificates.keep, list(self._hosts()), time.time())
        self._port = self._gate.bind(self._address, server.add_insecure_port(f"{LOOPBACK}:0"))
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._gate.serve()), loop.create_task(self._look_after())]

    async def close(self) -> None:
        """Nobody comes in any more; who is in is shown out."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tally.catch_up(all_of_them=True)

    def issue(self, host: str) -> None:
        """A certificate for the agent of a host that is about to be started, unless it has a good one. In any thread."""
        if self._certificates is not None:
            self._certificates.keep([host], time.time())

    async def look(self, now: float) -> None:
        """Renew certificates, cut off who has none any more, tell what an operator should see to. Unix seconds: `now`."""
        certificates = self._certificates
        if certificates is None or self._gate is None:
            return
        renewed = await asyncio.to_thread(certificates.keep, list(self._hosts()), now)
        if renewed:
            self._event("certificates_renewed", {"peers": [str(peer) for peer in renewed]})
        inventory, trusted = await asyncio.to_thread(lambda: (certificates.inventory(), certificates.trusted()))
        for file, sentence in warnings(inventory, self._job, now):
            if now - self._warned.get(file, 0.0) >= WARN_SECONDS:
                self._warned[file] = now
                self._event("certificate_expires", {"file": file, "message": sentence})
        self._gate.cut_off(trusted, now)
        self._tally.catch_up()

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look(time.time())
            except Exception:
                logger.exception("the certificates cannot be looked after; trying again")
