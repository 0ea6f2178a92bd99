"""Waiting for a descriptor of any number: `select` refuses those from 1024 on, and a rank has many sockets."""

from __future__ import annotations

import select
from typing import Protocol


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def wait_readable(source: int | HasFileno, seconds: float) -> bool:
    """True as soon as `source` can be read or has been closed by the other side; False after `seconds`."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
