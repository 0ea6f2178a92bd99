"""Run by test_checkpoint_kill.py: forks a process that publishes one step after the other, and kills it after a while.

Reads a number of seconds per line; prints `published <step>` for each step and `ended` when the writer is dead.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from workers.checkpoint import list_checkpoints, save
from workers.state import Captured


def state_of(step: int) -> Captured:
    """What is saved at `step`: half a megabyte that depends on it."""
    values = torch.randn(120_000, generator=torch.Generator().manual_seed(step))
    return Captured({"values": values, "step": torch.tensor(step)}, {"step": step})


def write_for_ever(root: Path) -> None:
    """Publish the steps after the newest visible one."""
    step = max((entry.step for entry in list_checkpoints(root)), default=0)
    while True:
        step += 1
        save(state_of(step), root, job="kill", step=step, generation=(1, 1), lineage=step, world=1, fence=lambda: True)
        os.write(1, f"published {step}\n".encode())


def main(root: Path) -> None:
    """One writer per line of standard input."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            write_for_ever(root)
        time.sleep(float(line))  # no event to wait for: the moment is meant to be any
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.write(1, b"ended\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
