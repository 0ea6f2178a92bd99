"""How a process that is not our child ended, where the kernel can say so."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from pathlib import Path

_PIDFD_INFO_EXIT = 1 << 3
_STRUCT = struct.Struct("=QQIIIIIIIIIIIi")  # mask, cgroupid, 11 ids, exit_code
_PIDFD_GET_INFO = (3 << 30) | (_STRUCT.size << 16) | (0xFF << 8) | 11
"""_IOWR(0xFF, 11, struct pidfd_info); the exit code came with Linux 6.15."""


def exit_status(pidfd: int, pid: int) -> int | None:
    """Exit code, or the negative signal number, of the exited process; None where it cannot be known.

    Until its parent has waited for it /proc tells, and afterwards the pidfd.
    """
    code = _code_of_zombie(pidfd, pid)
    if code is None:
        code = _code_of_reaped(pidfd)
    if code is None:
        return None
    return -os.WTERMSIG(code) if os.WIFSIGNALED(code) else os.WEXITSTATUS(code)


def _code_of_zombie(pidfd: int, pid: int) -> int | None:
    """`exit_code`, the last field of /proc/<pid>/stat (proc_pid_stat(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        signal.pidfd_send_signal(pidfd, 0)  # not yet waited for: what was read was not another process of that number
    except OSError:
        return None
    return int(fields[-1]) if fields[0] == "Z" else None


def _code_of_reaped(pidfd: int) -> int | None:
    buffer = bytearray(_STRUCT.pack(_PIDFD_INFO_EXIT, *([0] * 13)))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    fields = _STRUCT.unpack(buffer)
    if not fields[0] & _PIDFD_INFO_EXIT:
        return None
    return int(fields[-1])
