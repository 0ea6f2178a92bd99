"""EP-17: ids are taken down where the data set is read, and reach the disk before the exchange."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from workers.data.record import RecordedDataset, SampleRecorder
from workers.errors import TaskError

TABLE = TensorDataset(torch.arange(20).float() * 10, torch.arange(20))


class Squares(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index**2

    def __len__(self) -> int:
        return 20


class ManySquares(Squares):
    def __getitems__(self, indices: list[int]) -> list[int]:
        return [index**2 for index in indices]

    def __getitem__(self, index: int) -> int:
        raise AssertionError("read one by one")


class Noise(Dataset[float]):
    def __getitem__(self, index: int) -> float:
        return float(torch.rand(()))

    def __len__(self) -> int:
        return 20


def ids(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("dataset", [Squares(), ManySquares()])
def test_ep17_what_is_read_is_recorded_in_order(dataset: Dataset[int]) -> None:
    recorded = RecordedDataset(dataset)
    assert recorded.samples(ids(3, 1), 0, 0) == [9, 1]
    assert recorded.samples(ids(5), 0, 0) == [25]
    assert recorded.take_reads() == [3, 1, 5]
    assert recorded.take_reads() == []
    assert len(recorded) == 20


def test_ep17_a_read_that_fails_is_not_recorded() -> None:
    class Broken(Squares):
        def __getitem__(self, index: int) -> int:
            if index == 2:
                raise OSError("gone")
            return index

    recorded = RecordedDataset(Broken())
    with pytest.raises(OSError, match="gone"):
        recorded.samples(ids(1, 2, 3), 0, 0)
    assert recorded.take_reads() == [1]


def test_ep17_tensors_are_read_at_once_and_recorded() -> None:
    recorded = RecordedDataset(TABLE)
    columns = recorded.columns(ids(4, 2))
    assert columns is not None
    assert columns[0].tolist() == [40.0, 20.0] and columns[1].tolist() == [4, 2]
    assert [tuple(map(float, row)) for row in recorded.samples(ids(7), 0, 0)] == [(70.0, 7.0)]
    assert recorded.take_reads() == [4, 2, 7]
    assert RecordedDataset(Squares()).columns(ids(1)) is None


def test_ep17_ids_are_those_of_the_subset_not_of_what_lies_under_it() -> None:
    subset = Subset(Subset(TABLE, [10, 11, 12, 13, 14]), [4, 3])
    recorded = RecordedDataset(subset)
    columns = recorded.columns(ids(1, 0))
    assert columns is not None and columns[1].tolist() == [13, 14]
    assert recorded.take_reads() == [1, 0]
    squares = RecordedDataset(Subset(Squares(), [5, 6]))
    assert squares.samples(ids(1), 0, 0) == [36]
    assert squares.take_reads() == [1] and len(squares) == 2


def test_ep3_augmentation_of_a_sample_does_not_depend_on_its_neighbours() -> None:
    recorded = RecordedDataset(Noise())
    together = recorded.samples(ids(3, 8, 1), seed=1, step=2)
    assert recorded.samples(ids(8), seed=1, step=2) == [together[1]]
    assert recorded.samples(ids(8), seed=1, step=3) != [together[1]]


def test_a_data_set_without_numbers_is_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(())

    with pytest.raises(TaskError, match="Stream has no samples by number"):
        RecordedDataset(Stream())


def test_ep17_a_line_says_step_generation_attempt_epoch_and_ids(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "rank.jsonl"
    recorder = SampleRecorder(path)
    recorder.begin(5, (1, 2), 1, 0)
    recorder.add([3, 4])
    recorder.add([9])
    assert path.read_text() == ""
    recorder.flush()
    recorder.begin(6, (1, 2), 0, 1)
    recorder.flush()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 5, "generation": [1, 2], "attempt": 1, "epoch": 0, "ids": [3, 4, 9]},
        {"step": 6, "generation": [1, 2], "attempt": 0, "epoch": 1, "ids": []},
    ]
    recorder.close()


def test_ep17_an_abandoned_step_leaves_nothing_in_the_next(tmp_path: Path) -> None:
    recorder = SampleRecorder(tmp_path / "rank.jsonl")
    recorder.begin(5, (1, 2), 0, 0)
    recorder.add([1, 2, 3])
    recorder.begin(5, (1, 3), 1, 0)
    recorder.add([7])
    recorder.flush()
    (line,) = (tmp_path / "rank.jsonl").read_text().splitlines()
    assert json.loads(line)["ids"] == [7] and json.loads(line)["generation"] == [1, 3]


def test_ep17_nothing_is_recorded_for_no_step(tmp_path: Path) -> None:
    recorder = SampleRecorder(tmp_path / "rank.jsonl")
    with pytest.raises(RuntimeError, match="begin comes first"):
        recorder.add([1])
    with pytest.raises(RuntimeError, match="begin comes first"):
        recorder.flush()


def test_ep17_a_full_disk_is_an_error() -> None:
    recorder = SampleRecorder(Path("/dev/full"))
    recorder.begin(1, (1, 1), 0, 0)
    with pytest.raises(OSError, match="No space left"):
        recorder.flush()


def test_ep17_a_line_survives_kill_9_right_after_flush(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from workers.data.record import SampleRecorder
recorder = SampleRecorder(Path(sys.argv[1]))
for step in (1, 2):
    recorder.begin(step, (1, 1), 0, 0)
    recorder.add([10 * step])
    recorder.flush()
recorder.begin(3, (1, 1), 0, 0)
recorder.add([30])
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "rank.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program, str(path)], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [json.loads(line)["ids"] for line in path.read_text().splitlines()] == [[10], [20]]
