"""A rank's end of the channel to its agent: packets over a Unix socket, and a bell in shared memory.

Everything runs in the rank's own thread at its poll points, so a directive is never handled in the middle of something.
The agent may die and come back: the rank keeps training and says hello again (EP-14).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from quantarion.v1 import control_pb2 as pb

from workers import packets
from workers.page import Page
from workers.readable import wait_readable

_LOOK_SECONDS = 0.05
_CREDENTIALS = struct.Struct("3i")
"""pid, uid and gid of the other end (SO_PEERCRED, unix(7))."""


class AgentLink:
    """`poll()` yields the directives that have arrived; `send()` never blocks training for long."""

    def __init__(self, socket_path: Path, page: Page, hello: Callable[[], pb.WorkerUp]) -> None:
        self._path = socket_path
        self.page = page
        self._hello = hello
        self._seen = page.bell
        self._socket: socket.socket | None = None
        self._unsent: list[pb.AgentMessage] = []
        self._next_look = 0.0
        self._orphaned_at: float | None = None

    @property
    def rung(self) -> bool:
        """True where a directive may be waiting. Costs one read of memory."""
        return self.page.bell != self._seen or time.monotonic() >= self._next_look

    @property
    def orphaned_for(self) -> float:
        """Seconds without an agent."""
        return 0.0 if self._orphaned_at is None else time.monotonic() - self._orphaned_at

    @property
    def agent_pid(self) -> int:
        """Of the process at the other end, as the kernel knows it; 0 while there is none."""
        if self._socket is None:
            return 0
        found = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid: int = _CREDENTIALS.unpack(found)[0]
        return pid

    def poll(self) -> Iterator[pb.Directive]:
        """Directives that have arrived since the last call; reconnects where the agent was restarted."""
        self._seen = self.page.bell
        self._next_look = time.monotonic() + _LOOK_SECONDS
        if self._socket is None and not self._connect():
            return
        while self._socket is not None:
            try:
                packet = packets.receive(self._socket)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._drop()
                return
            yield pb.Directive.FromString(packet)

    def send(self, report: pb.RankReport) -> None:
        """Hand a report to the agent; kept and sent again when there is none at the moment."""
        self._unsent.append(pb.AgentMessage(report=report))
        self._flush()

    def wait(self, seconds: float) -> None:
        """Sleep until something arrives from the agent, at most `seconds`; `rung` then, whether the bell was or not."""
        if self._socket is None:
            time.sleep(min(seconds, _LOOK_SECONDS))
        elif wait_readable(self._socket, seconds):
            self._next_look = 0.0

    def _connect(self) -> bool:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            link.connect(str(self._path))
            link.setblocking(False)
            packets.send(link, pb.AgentMessage(worker_up=self._hello()).SerializeToString())
        except OSError:
            link.close()
            if self._orphaned_at is None:
                self._orphaned_at = time.monotonic()
            return False
        self._socket = link
        self._orphaned_at = None
        self._flush()
        return True

    def _flush(self) -> None:
        while self._socket is not None and self._unsent:
            try:
                packets.send(self._socket, self._unsent[0].SerializeToString())
            except BlockingIOError:
                return
            except OSError:
                self._drop()
                return
            self._unsent.pop(0)

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._orphaned_at = time.monotonic()


def page_path(folder: Path, worker: str) -> Path:
    """Where a worker's page lies on its host."""
    return folder / f"{worker}.page"


def socket_path(folder: Path, host: str) -> Path:
    """Where the agent of `host` listens."""
    return folder / f"{host}.sock"


def new_worker_id() -> str:
    """Unique among all processes of a job, also over restarts of the machine."""
    return f"w{os.getpid()}-{os.urandom(4).hex()}"
