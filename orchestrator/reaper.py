"""Ends what a dead driver left behind: processes that carry its mark, and its folders.

An embedded cluster gives every process it starts three environment variables, which children inherit. They say whose
process it is even when its parents are gone. The same file, run as a program, is the guardian: a process outside the
driver's session that waits for the driver to go, however it goes (kill -9 included), and then ends the rest. It needs
the standard library and Linux only, so it starts in milliseconds.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DRIVER = "QUANTARION_DRIVER_PID"
FOLDER = "QUANTARION_JOB_FOLDER"
HOST = "QUANTARION_HOST"

_POLL_SECONDS = 0.5
_KILL_SECONDS = 10.0


@dataclass(frozen=True)
class Marked:
    """A living process that carries the marks."""

    pid: int
    driver: str  # identity of the driver that started it
    folder: str  # of the job
    host: str  # address and life of its embedded host; empty for what belongs to no host


def identity(pid: int) -> str | None:
    """`<pid>.<start time>`, which no later process has again; None where the process is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the command may hold spaces and brackets
    return None if fields[0] in b"ZX" else f"{pid}.{int(fields[19])}"


def is_alive(driver: str) -> bool:
    """True while the process that `identity` named is there."""
    pid = driver.partition(".")[0]
    return pid.isdigit() and identity(int(pid)) == driver


def marks(folder: Path) -> dict[str, str]:
    """The environment of what this process starts for the job in `folder`."""
    return {DRIVER: identity(os.getpid()) or "", FOLDER: str(folder)}


def marked() -> Iterator[Marked]:
    """All living processes of this user that carry the marks, this process left out."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            found = _read(int(entry.name))
            if found is not None:
                yield found


def kill(select_: Callable[[Marked], bool], timeout: float = _KILL_SECONDS) -> list[int]:
    """Kill -9 every marked process that `select_` accepts, and what those start meanwhile; the pids, ascending.

    Returns when none is left, or after `timeout` seconds (a process in an uninterruptible wait cannot be ended).
    """
    deadline = time.monotonic() + timeout
    killed: set[int] = set()
    while victims := [each for each in marked() if select_(each)]:
        for victim in victims:
            _kill(victim)
            killed.add(victim.pid)
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return sorted(killed)


class Guardian:
    """Ends all that carries this process's mark, and removes `folders`, once this process is gone.

    It is no child of this process, so that a kill of the whole family spares it.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        driver = identity(os.getpid()) or ""
        environment = {name: value for name, value in os.environ.items() if name not in (DRIVER, FOLDER, HOST)}
        starter = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, driver, *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        assert starter.stdin is not None and starter.stdout is not None
        self._life, self._end = starter.stdin, starter.stdout
        self.pid = int(self._end.readline())
        starter.wait()

    def dismiss(self) -> None:
        """Let it finish its work now and wait for its end, at most 20 seconds."""
        self._life.close()
        select.select([self._end], [], [], 2 * _KILL_SECONDS)  # it holds the other end as long as it lives
        self._end.close()


def _read(pid: int) -> Marked | None:
    folder = Path(f"/proc/{pid}")
    try:
        if folder.stat().st_uid != os.getuid():
            return None
        environment = (folder / "environ").read_bytes()
    except OSError:
        return None
    if DRIVER.encode() not in environment or identity(pid) is None:
        return None
    pairs = (pair.partition("=") for pair in os.fsdecode(environment).split("\0"))
    values = {name: value for name, _, value in pairs}
    driver = values.get(DRIVER, "")
    return Marked(pid, driver, values.get(FOLDER, ""), values.get(HOST, "")) if driver else None


def _kill(victim: Marked) -> None:
    """By file descriptor, so that a process which took over the pid meanwhile is never hit."""
    with suppress(OSError):
        pidfd = os.pidfd_open(victim.pid)
        try:
            if _read(victim.pid) == victim:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _guard(driver: str, folders: list[Path]) -> None:
    if os.fork():
        os._exit(0)
    print(os.getpid(), flush=True)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    while is_alive(driver):
        ready, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
        if ready:
            break
    kill(lambda each: each.driver == driver)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _guard(sys.argv[1], [Path(each) for each in sys.argv[2:]])
