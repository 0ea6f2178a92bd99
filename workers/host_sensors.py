"""What an agent tells of its host beside its ranks: read in a thread of its own, because a file system may hang (GM-18)."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping

from quantarion.v1 import control_pb2 as pb

from workers.resources import Resources
from workers.sensors import EVERY_SECONDS
from workers.sockets import Use

logger = logging.getLogger("quantarion.agent")

STALE_SECONDS = 6 * EVERY_SECONDS
"""After which what was read last tells nothing any more: something hangs."""


class HostSensors:
    """Reads every `EVERY_SECONDS`; the agent's loop takes what was read last and never waits.

    Args:
        resources: tells what the host has left.
        links: tells what its ranks have sent, by address. Both may take long, and may raise.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        resources: Callable[[], Resources],
        links: Callable[[], Mapping[str, Use]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._look_at_links, self._clock = resources, links, clock
        self._last, self._read_at = Resources(), -math.inf
        self._links: list[pb.LinkUse] = []  # that no beat has told yet
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="sensors", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def tell(self, beat: pb.Beat) -> None:
        """Put into `beat` what is known; of links once after each look."""
        if self._clock() - self._read_at <= STALE_SECONDS:
            beat.MergeFrom(pb.Beat(**self._last._asdict()))
        links, self._links = self._links, []
        beat.links.extend(links)

    def look(self) -> None:
        """Once."""
        self._links = [_told(address, use) for address, use in self._look_at_links().items()]
        found = self._read()
        self._last, self._read_at = found, self._clock()

    def _run(self) -> None:
        told = False
        while not self._stopped.is_set():
            try:
                self.look()
            except Exception:
                if not told:
                    logger.exception("the sensors of this host cannot be read")
                told = True
            self._stopped.wait(EVERY_SECONDS)


def _told(address: str, use: Use) -> pb.LinkUse:
    return pb.LinkUse(
        address=address,
        segments=use.segments,
        retransmitted=use.retransmitted,
        bytes=use.nbytes,
        seconds=use.microseconds / 1e6,
    )
