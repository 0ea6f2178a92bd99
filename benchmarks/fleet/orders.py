"""What the coordinator's hosts object and the driver tell the processes that simulate hosts: datagrams on Unix sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BYTES = 1 << 16

Order = dict[str, Any]
"""`do`: attach, spawn, drop, kill, slow; the rest depends on it."""


def socket_path(folder: Path, generator: int) -> Path:
    return folder / f"{generator}.sock"


def send(folder: Path, generator: int, **order: Any) -> None:
    """Waits while the receiver's queue is full. Raises OSError where it is not there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(json.dumps(order).encode(), str(socket_path(folder, generator)))


def listen(folder: Path, generator: int, obey: Callable[[Order], None]) -> None:
    """Call `obey` with each order, on the running loop, from now on."""
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(socket_path(folder, generator)))
    receiver.setblocking(False)

    def receive() -> None:
        while True:
            try:
                order = json.loads(receiver.recv(_BYTES))
            except BlockingIOError:
                return
            obey(order)

    asyncio.get_running_loop().add_reader(receiver, receive)
