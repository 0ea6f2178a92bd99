"""The record of what was read (EP-17): sample ids, taken down where the data set is read.

The record knows nothing of the plan in `sampler`; a separate program joins it with the surviving line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from workers.data.sampler import Ids
from workers.errors import TaskError
from workers.randomness import fold, seed_sample

MapDataset: TypeAlias = Dataset[Any]


class RecordedDataset:
    """A data set that remembers which of its samples were read.

    Args:
        dataset: a map-style data set: `dataset[i]` and `len(dataset)`. A plain `TensorDataset`, or one with
            `__getitems__`, is read a list at a time. A `Subset` is looked through.

    Raises:
        TaskError: `dataset` cannot be indexed or has no length.
    """

    def __init__(self, dataset: MapDataset) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise TaskError(
                f"the data set {type(dataset).__name__} has no samples by number, which elastic training needs:"
                " give a map-style data set with __getitem__ and __len__"
            )
        self._num_samples = len(dataset)
        self._base, self._numbers = _looked_through(dataset)
        self._reads: list[int] = []

    def __len__(self) -> int:
        return self._num_samples

    def take_reads(self) -> list[int]:
        """The ids read since the last call, in the order they were read."""
        reads, self._reads = self._reads, []
        return reads

    def columns(self, ids: Ids) -> list[Tensor] | None:
        """The samples `ids` as one tensor per field, [n, ...] each; None unless the data set holds tensors."""
        if type(self._base) is not TensorDataset:
            return None
        rows = torch.from_numpy(self._in_base(ids))
        columns = [tensor[rows] for tensor in self._base.tensors]
        self._reads.extend(ids.tolist())
        return columns

    def samples(self, ids: Ids, seed: int, step: int) -> list[Any]:
        """The samples `ids`, one object each, read at `step`.

        torch's, Python's and numpy's generators are seeded for each sample (EP-3), so that augmentation is the same
        wherever it is read. A data set with `__getitems__` is seeded once for the whole list.
        """
        columns = self.columns(ids)
        if columns is not None:
            return list(zip(*columns, strict=True))
        whole = getattr(self._base, "__getitems__", None)
        if callable(whole):
            seed_sample(seed, step, fold(*ids.tolist()))
            samples = list(whole(self._in_base(ids).tolist()))
            self._reads.extend(ids.tolist())
            return samples
        return [self._sample(*pair, seed, step) for pair in zip(ids.tolist(), self._in_base(ids).tolist(), strict=True)]

    def _sample(self, sample: int, number: int, seed: int, step: int) -> Any:
        seed_sample(seed, step, sample)
        value = self._base[number]
        self._reads.append(sample)
        return value

    def _in_base(self, ids: Ids) -> Ids:
        return np.array(ids if self._numbers is None else self._numbers[ids], dtype=np.int64)


class SampleRecorder:
    """Appends to `path` one JSON line per step: what this rank read for it.

    A line is one `write` to a descriptor opened for appending, so it survives a kill -9 of the process that follows.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._heading: dict[str, Any] | None = None
        self._ids: list[int] = []

    def begin(self, step: int, generation: tuple[int, int], attempt: int, epoch: int) -> None:
        """What is read from now on is for this step; what an abandoned step has read is dropped."""
        self._heading = {"step": step, "generation": list(generation), "attempt": attempt, "epoch": epoch}
        self._ids = []

    def add(self, ids: Iterable[int]) -> None:
        """These samples were read for the step begun.

        Raises:
            RuntimeError: no step has begun.
        """
        if self._heading is None:
            raise RuntimeError("samples were read for no step: SampleRecorder.begin comes first")
        self._ids.extend(ids)

    def flush(self) -> None:
        """Write the line of the step; call it before the exchange of that step.

        Raises:
            RuntimeError: no step has begun.
            OSError: the line could not be written in full.
        """
        if self._heading is None:
            raise RuntimeError("there is no step to write: SampleRecorder.begin comes first")
        line = json.dumps({**self._heading, "ids": self._ids}, separators=(",", ":")).encode() + b"\n"
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"{self._path}: only {written} of {len(line)} bytes could be written; is the disk full?")
        self._heading, self._ids = None, []

    def close(self) -> None:
        os.close(self._file)


def _looked_through(dataset: MapDataset) -> tuple[Any, Ids | None]:
    """The data set under any `Subset`s, and the number in it of each sample (None: its own)."""
    numbers: Ids | None = None
    while type(dataset) is Subset:
        inner = np.asarray(dataset.indices, dtype=np.int64)
        numbers = inner if numbers is None else inner[numbers]
        dataset = dataset.dataset
    return dataset, numbers
