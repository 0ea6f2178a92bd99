"""Packets between a host's agent and its ranks: whole, in order and of any length, over a Unix socket (SOCK_SEQPACKET)."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque

INLINE_BYTES = 1 << 16
"""What goes through the socket itself, whose buffer the system may hold to some 200 KiB. More goes in a file in memory, and
the file through the socket: a CONFIGURE of ten thousand members is larger than any buffer."""

IN_A_FILE = b"f"


def send(link: socket.socket, packet: bytes) -> None:
    """All of it or nothing. Raises BlockingIOError where the other side does not read, OSError where it is gone."""
    if len(packet) <= INLINE_BYTES:
        link.send(packet)
        return
    file = os.memfd_create("quantarion-packet")
    try:
        rest = memoryview(packet)
        while rest:
            rest = rest[os.write(file, rest) :]
        socket.send_fds(link, [IN_A_FILE], [file])
    finally:
        os.close(file)


def receive(link: socket.socket) -> bytes:
    """The next packet; empty where the other side is gone. Raises OSError, BlockingIOError where none is there."""
    packet, files, _, _ = socket.recv_fds(link, INLINE_BYTES, 1)
    if not files:
        return packet
    try:
        size = os.fstat(files[0]).st_size
        parts, at = [], 0
        while at < size and (part := os.pread(files[0], size - at, at)):
            parts.append(part)
            at += len(part)
        return b"".join(parts)
    finally:
        for file in files:
            os.close(file)


class Outgoing:
    """Packets to one rank, on the running event loop; those that a rank which computes has not read yet wait.

    Where the rank is gone, or this is closed, packets are dropped: its exit is on its way.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._waiting: deque[bytes] = deque()
        self._is_watched = self._is_closed = False  # the loop waits until the link takes more

    def put(self, packet: bytes) -> None:
        if self._is_closed:
            return
        self._waiting.append(packet)
        if not self._is_watched:
            self._flush()

    def close(self) -> None:
        """Before the socket is."""
        self._is_closed = True
        self._stop_waiting()

    def _flush(self) -> None:
        try:
            while self._waiting:
                send(self._link, self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            if not self._is_watched:
                asyncio.get_running_loop().add_writer(self._link, self._flush)
                self._is_watched = True
            return
        except OSError:
            pass
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        self._waiting.clear()
        if self._is_watched:
            asyncio.get_running_loop().remove_writer(self._link)
            self._is_watched = False
