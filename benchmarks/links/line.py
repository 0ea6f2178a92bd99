"""JSON lines over a Unix socket, which network namespaces share."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

Message = dict[str, Any]


class Lost(Exception):
    """The other side is gone or silent."""


class Line:
    """One end of a conversation in which each side sends whole objects."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._file = connection.makefile("rb")

    @classmethod
    def to(cls, path: Path) -> Line:
        """Connect to who listens at `path`."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        return cls(connection)

    def send(self, message: Message) -> None:
        """Raises Lost when nobody is there."""
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise Lost(error.strerror or "the connection is broken") from error

    def receive(self, seconds: float | None = None) -> Message:
        """The next object. Raises Lost at the end, and after `seconds` without one."""
        self.socket.settimeout(seconds)
        try:
            line = self._file.readline()
        except OSError as error:
            raise Lost(f"it said nothing for {seconds:g} s" if isinstance(error, TimeoutError) else str(error)) from error
        if not line.endswith(b"\n"):
            raise Lost("it ended by itself")
        message: Message = json.loads(line)
        return message

    def close(self) -> None:
        self._file.close()
        self.socket.close()
