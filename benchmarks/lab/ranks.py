"""Runs one command as the ranks of a gang over the hosts of a lab, with the variables that torchrun would set."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait

from benchmarks.lab.lab import Lab

MASTER_PORT = 29500


def variables(lab: Lab, host: int, local_rank: int, ranks_per_host: int) -> dict[str, str]:
    """The environment of one rank: ranks count along host 0 first, and host 0 is the master."""
    values = {
        "RANK": host * ranks_per_host + local_rank,
        "WORLD_SIZE": len(lab.hosts) * ranks_per_host,
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": ranks_per_host,
        "GROUP_RANK": host,
        "GROUP_WORLD_SIZE": len(lab.hosts),
        "MASTER_ADDR": lab.hosts[0].address,
        "MASTER_PORT": MASTER_PORT,
    }
    return {name: str(value) for name, value in values.items()}


def start(lab: Lab, command: Sequence[str], ranks_per_host: int = 1) -> list[subprocess.Popen[bytes]]:
    """Start every rank, in the order of ranks."""
    return [
        host.popen(command, env=variables(lab, host.index, local_rank, ranks_per_host))
        for host in lab.hosts
        for local_rank in range(ranks_per_host)
    ]


def wait_for(ranks: Sequence[subprocess.Popen[bytes]], every_second: Callable[[], None] = lambda: None) -> int:
    """Wait until all have ended with 0, or one has failed; 0, or its exit code (128 + the signal that ended it)."""
    running = {os.pidfd_open(rank.pid): rank for rank in ranks}
    try:
        tick = time.monotonic() + 1
        while running:
            for ended in wait(list(running), timeout=max(0.0, tick - time.monotonic())):
                assert isinstance(ended, int)
                os.close(ended)
                if code := running.pop(ended).wait():
                    return code if code > 0 else 128 - code
            if time.monotonic() >= tick:
                every_second()
                tick += 1
        return 0
    finally:
        for each in running:
            os.close(each)
