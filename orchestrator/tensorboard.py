"""TensorBoard files of a job, made from its `steps.jsonl`: an option, nothing depends on them."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.errors import UserError
from orchestrator.records import STEP_KEYS, STEPS, Generation, Record, Tail, generation_of, read_steps

LOGS = "tensorboard"
SCALARS = {
    "train/loss": "loss",
    "eval/accuracy": "accuracy",
    "train/learning_rate": "lr_current",
    "world/ranks": "ranks",
    "train/samples_per_second": "training_rate",
}
"""Name in TensorBoard to field of a line of `steps.jsonl`."""


class TensorBoardExport:
    """Writes what is new in `steps.jsonl` to `<folder>/tensorboard` at each `update()`.

    A step that is recomputed after a discard is written again; TensorBoard shows both, the newer one last. `export`
    writes the surviving line only.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary import Writer
        except ModuleNotFoundError:
            raise UserError(
                "tensorboard: true needs tensorboard; install it with: pip install 'quantarion[tensorboard]', or write "
                "tensorboard: false"
            ) from None
        self.path = folder / LOGS
        self._tail = Tail(folder / STEPS, STEP_KEYS)
        self._newest: tuple[Generation, int] = ((0, 0), 0)
        self._writer = Writer(str(self.path))

    def update(self) -> int:
        """Write the steps committed since the last call; returns how many."""
        steps = self._tail.read()
        written = sum(self._add_new(step) for step in steps)
        self._writer.flush()
        return written

    def add(self, step: Record) -> None:
        """Write what one line of `steps.jsonl` measured; null and non-finite values are left out."""
        for name, key in SCALARS.items():
            value = step.get(key)
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(name, float(value), int(step["step"]), wall_time=float(step["t"]))

    def _add_new(self, step: Record) -> bool:
        position = (generation_of(step), int(step["step"]))
        if position <= self._newest:
            return False
        self._newest = position
        self.add(step)
        return True

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def export(folder: Path) -> Path:
    """Write the surviving line of the job in `folder` to `<folder>/tensorboard`, and return that path.

    Raises:
        UserError: tensorboard is not installed.
        OSError: the folder cannot be read or written.
    """
    with TensorBoardExport(folder) as board:
        for step in read_steps(folder):
            board.add(step)
    return board.path
