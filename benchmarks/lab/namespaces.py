"""Network namespaces whose names say which process made them, and how every one of them goes away again.

A name is `quantarion-lab-PID-START-N-PART`: PID and START (its start in clock ticks since boot, for pids are used
again) name the maker, N counts its labs. `sweep` removes those whose maker is gone, with all that still runs inside.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import time
from pathlib import Path

from benchmarks.lab.tools import LabError, run

NAME = re.compile(r"quantarion-lab-(?P<pid>\d+)-(?P<start>\d+)-\d+-\w+")
KILL_SECONDS = 20.0
_numbers = itertools.count()


def new_prefix() -> str:
    """What the names of the next lab of this process begin with."""
    return f"quantarion-lab-{os.getpid()}-{_start_of(os.getpid())}-{next(_numbers)}-"


def create(name: str) -> None:
    """Make a namespace whose loopback is up."""
    run(f"ip netns add {name}")
    run(f"ip -n {name} link set lo up")


def existing(prefix: str = "") -> list[str]:
    """The names of all labs' namespaces that begin with `prefix`."""
    names = [line.split()[0] for line in run("ip netns list").splitlines() if line.strip()]
    return [name for name in names if NAME.fullmatch(name) and name.startswith(prefix)]


def sweep() -> list[str]:
    """Remove what makers that are gone have left (a `kill -9`); the names that were removed."""
    left = [name for name in existing() if not maker_lives(name)]
    remove(left)
    return left


def remove(names: list[str]) -> None:
    """Kill everything that runs in these namespaces, wait until it is gone, and delete them with their cables."""
    deadline = time.monotonic() + KILL_SECONDS
    while pids := [pid for name in names for pid in processes(name)]:
        if time.monotonic() > deadline:
            raise LabError(f"these processes on hosts of the lab do not die of SIGKILL: {', '.join(map(str, pids))}")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    for name in names:
        for command in (f"ip -n {name} link delete eth0", f"ip netns delete {name}"):
            _try(command)
    if left := set(names) & set(existing()):
        raise LabError(f"these network namespaces cannot be deleted: {', '.join(sorted(left))}")


def processes(name: str) -> list[int]:
    """Pids of what runs in a namespace, zombies not included; none when it is gone."""
    return [int(pid) for pid in _try(f"ip netns pids {name}").split()]


def maker_lives(name: str) -> bool:
    """Whether the process that made this namespace still runs."""
    match = NAME.fullmatch(name)
    assert match is not None
    return _start_of(int(match["pid"])) == int(match["start"])


def _try(command: str) -> str:
    """For a namespace that is half made, or that another lab's sweep removes at this moment."""
    try:
        return run(command)
    except LabError:
        return ""


def _start_of(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[19])
