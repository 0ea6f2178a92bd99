"""What an agent tells of its host beside its ranks: read in a thread of its own, because a file system may hang (GM-18)."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from quantarion.v1 import control_pb2 as pb

from workers.resources import Resources
from workers.sensors import EVERY_SECONDS

logger = logging.getLogger("quantarion.agent")

STALE_SECONDS = 6 * EVERY_SECONDS
"""After which what was read last tells nothing any more: something hangs."""


class HostSensors:
    """Reads every `EVERY_SECONDS`; the agent's loop takes what was read last and never waits.

    Args:
        read: tells what there is to tell. It may take long, and may raise.
        clock: seconds that only rise.
    """

    def __init__(self, read: Callable[[], Resources], clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock = read, clock
        self._last, self._read_at = Resources(), -math.inf
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="sensors", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def tell(self, beat: pb.Beat) -> None:
        """Put into `beat` what is known."""
        if self._clock() - self._read_at <= STALE_SECONDS:
            beat.MergeFrom(pb.Beat(**self._last._asdict()))

    def look(self) -> None:
        """Once."""
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
