"""An agent's part in the probe of the links: waits for its peers' probes and measures when it is told to (CC-9)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from quantarion.v1 import control_pb2 as pb

from workers.probe import ProbeServer, measure


class Probing:
    """Of the host with `address`; `tell` hands a message to the coordinator."""

    def __init__(self, address: str, tell: Callable[[pb.AgentMessage], None]) -> None:
        self._address, self._tell = address, tell
        self._server: ProbeServer | None = None
        self._token = b""
        self._measuring: set[asyncio.Task[None]] = set()

    def open(self, order: pb.ProbeOpen) -> None:
        """Wait for the probes of the peers that the coordinator has given the same token."""
        self.close()
        self._token = order.token
        try:
            self._server = ProbeServer(self._address, order.token, order.seconds)
        except OSError as error:
            self._tell(pb.AgentMessage(probe_port=pb.ProbePort(error=str(error))))
        else:
            self._tell(pb.AgentMessage(probe_port=pb.ProbePort(port=self._server.port)))

    def begin(self, order: pb.ProbeLink) -> None:
        """Measure in another thread, and tell."""
        measuring = asyncio.create_task(self._measure(order))
        self._measuring.add(measuring)
        measuring.add_done_callback(self._measuring.discard)

    def close(self) -> None:
        """Wait for nobody any more."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _measure(self, order: pb.ProbeLink) -> None:
        host, _, port = order.address.rpartition(":")
        found = pb.MeasuredLink(peer=order.peer)
        try:
            link = await asyncio.to_thread(
                measure,
                (host, int(port)),
                source=self._address,
                token=self._token,
                seconds=order.seconds,
                limit=order.limit,
            )
        except OSError as error:
            found.error = str(error) or type(error).__name__
        else:
            found.round_trip, found.sent, found.received = link.round_trip, link.sent, link.received
        self._tell(pb.AgentMessage(measured_link=found))
