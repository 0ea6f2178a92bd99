"""Takes two gangs in turns: all live, but only the one whose gate is open trains.

The harness opens block n by creating `go-<n>` with the number of steps; every rank waits for that file before the
block's first step, asleep most of the time. Rank 0 answers with `done-<n>`: the seconds of each step.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

POLL_SECONDS = 0.005


class Gate:
    """A rank's side. Call `wait` before each step's batch is asked for, and `committed` after each step."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._block, self._left = 0, 0
        self._times: list[float] = []

    def wait(self) -> bool:
        """Return when a step may begin; False when the harness wants no more."""
        if self._left == 0:
            go = self._folder / f"go-{self._block}"
            while not go.exists():
                time.sleep(POLL_SECONDS)
            self._left = int(go.read_text())
            self._times = [time.perf_counter()]
        return self._left > 0

    def committed(self) -> None:
        """A step is done; after the block's last one, rank 0 writes the block's times."""
        self._times.append(time.perf_counter())
        self._left -= 1
        if self._left == 0:
            if self._rank == 0:
                seconds = [b - a for a, b in itertools.pairwise(self._times)]
                write_whole(self._folder / f"done-{self._block}", json.dumps(seconds))
            self._block += 1


def open_gate(folder: Path, block: int, steps: int) -> None:
    """The harness's side: let every rank run `steps` steps; 0 lets them end."""
    write_whole(folder / f"go-{block}", str(steps))


def take_block(folder: Path, block: int) -> list[float] | None:
    """Seconds of each step of a block, or None while it is not done."""
    done = folder / f"done-{block}"
    return [float(value) for value in json.loads(done.read_text())] if done.exists() else None


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears with all of its content or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
