"""Run by test_checkpoint_kill.py: forks a process that publishes one step after the other, or reads one again and again,
and kills it after a while.

Reads a number of seconds per line; prints `published <step>` for each step and `ended` when the writer is dead.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import torch

from workers.checkpoint import list_checkpoints, load, save
from workers.checkpoint.places import Where, place
from workers.state import Captured


def state_of(step: int) -> Captured:
    """What is saved at `step`: half a megabyte that depends on it."""
    values = torch.randn(120_000, generator=torch.Generator().manual_seed(step))
    return Captured({"values": values, "step": torch.tensor(step)}, {"step": step})


def write_for_ever(root: Where, ready: int) -> None:
    """Publish the steps after the newest visible one; says so on the descriptor `ready` before the first."""
    step = max((entry.step for entry in list_checkpoints(root)), default=0)
    os.write(ready, b"!")
    while True:
        step += 1
        save(state_of(step), root, job="kill", step=step, generation=(1, 1), lineage=step, world=1, fence=lambda: True)
        os.write(1, f"published {step}\n".encode())


def read_for_ever(root: Where, ready: int) -> None:
    """Restore the newest one again and again; says so on the descriptor `ready` before the first."""
    os.write(ready, b"!")
    while True:
        load(list_checkpoints(root)[0].path)


def main(root: Where, work: Callable[[Where, int], None]) -> None:
    """One writer, or reader, per line of standard input."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        begun, ready = os.pipe()
        child = os.fork()
        if child == 0:
            work(root, ready)
        os.read(begun, 1)
        for end in (begun, ready):
            os.close(end)
        time.sleep(float(line))  # no event to wait for: the moment is meant to be any
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.write(1, b"ended\n")


if __name__ == "__main__":
    main(place(sys.argv[1]), read_for_ever if sys.argv[2:] == ["read"] else write_for_ever)
