"""Takes the CPU away from one host: its threads get what others leave, and others leave next to nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

STARVED, BUSY = 19, 5
"""Nice values. Linux gives a thread of 19 4 % of what it gives one of 5, and one of 5 a third of what it gives one of 0: so
the other hosts notice little."""

BURN = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", str(BUSY), "sh", "-c", "while :; do :; done"]


class Starvation:
    """Of the processes given; `end` gives them back what they had."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._burners: list[subprocess.Popen[bytes]] = []
        self._pids = list(pids)
        for pid in self._pids:
            set_nice(pid, STARVED)
        for _ in range(len(os.sched_getaffinity(0))):
            self._burners.append(
                subprocess.Popen(BURN, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0)
            )

    def end(self) -> None:
        for burner in self._burners:
            burner.kill()
            burner.wait()
        for pid in self._pids:
            set_nice(pid, 0)


def set_nice(pid: int, value: int) -> None:
    """Of every thread; Linux keeps a value for each. A process that has ended meanwhile needs none."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), value)
