"""EP-3 and EP-17: micro-batches arrive as planned and are recorded on arrival, whoever reads them."""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from workers.data.loader import MicroBatchLoader
from workers.data.record import SampleRecorder
from workers.data.sampler import Ids
from workers.errors import TaskError

NUM_SAMPLES = 64
TABLE = TensorDataset(torch.arange(NUM_SAMPLES).float()[:, None] / 2, torch.arange(NUM_SAMPLES))


class TwoParts(Exception):
    """Cannot be made again from its message, so pickle cannot carry it."""

    def __init__(self, what: str, which: int) -> None:
        super().__init__(f"{what} {which}")


class Rows(Dataset[tuple[Tensor, int]]):
    """Read one by one, with augmentation and, once told so, a sample 6 that cannot be read."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 6 and self.error is not None:
            raise self.error
        return torch.rand(2), index

    def __len__(self) -> int:
        return NUM_SAMPLES


def step(number: int, *lists: list[int]) -> list[tuple[int, Ids]]:
    """What is planned for one step: a micro-batch per list of ids."""
    return [(number, np.array(ids, dtype=np.int64)) for ids in lists]


@contextmanager
def loader(dataset: Dataset[Any], num_workers: int, **arguments: Any) -> Iterator[MicroBatchLoader]:
    made = MicroBatchLoader(dataset, num_workers=num_workers, **arguments)
    try:
        yield made
    finally:
        made.close()


def take(batches: MicroBatchLoader, count: int) -> list[list[int]]:
    """The ids of the next micro-batches, each of which must hold what its ids say."""
    found = []
    for _ in range(count):
        ids, (_, targets) = next(batches)
        assert targets.tolist() == ids.tolist()
        found.append(ids.tolist())
    return found


def recorded(path: Path) -> list[list[int]]:
    return [json.loads(line)["ids"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("dataset", [TABLE, Rows()])
def test_micro_batches_arrive_in_the_order_of_the_plan(dataset: Dataset[Any], num_workers: int) -> None:
    with loader(dataset, num_workers) as batches:
        with pytest.raises(StopIteration):
            next(batches)
        batches.plan(step(1, [3, 1], [7], [9, 8, 2]) + step(2) + step(3, [0]))
        assert take(batches, 4) == [[3, 1], [7], [9, 8, 2], [0]]
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ep3_a_sample_is_augmented_alike_in_any_process_and_cut(num_workers: int) -> None:
    with loader(Rows(), 0, seed=4) as reference, loader(Rows(), num_workers, seed=4) as batches:
        reference.plan(step(11, [5, 6, 7, 8]))
        _, (expected, _) = next(reference)
        batches.plan(step(11, [5], [6, 7], [8]) + step(12, [5, 6, 7, 8]))
        parts = [next(batches)[1][0] for _ in range(3)]
        assert torch.equal(torch.cat(parts), expected)
        _, (other, _) = next(batches)
        assert not torch.equal(other, expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ep3_a_discarded_step_is_read_again_with_other_shares(num_workers: int) -> None:
    with loader(TABLE, num_workers) as batches:
        batches.plan(step(1, [1, 2], [3, 4], [5, 6]) + step(2, [20, 21]))
        assert take(batches, 1) == [[1, 2]]
        batches.plan(step(1, [5, 6], [1]) + step(2, [21]))
        assert take(batches, 3) == [[5, 6], [1], [21]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ep3_a_plan_is_drawn_from_a_few_micro_batches_ahead(num_workers: int) -> None:
    drawn: list[int] = []

    def endless() -> Iterator[tuple[int, Ids]]:
        for number in range(10**9):
            drawn.append(number)
            yield from step(number, [number % NUM_SAMPLES])

    with loader(TABLE, num_workers) as batches:
        for _ in range(2):
            drawn.clear()
            batches.plan(endless())
            assert take(batches, 5) == [[0], [1], [2], [3], [4]]
            assert len(drawn) <= 5 + 2 * num_workers


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ep17_only_what_arrives_for_the_step_is_recorded(num_workers: int, tmp_path: Path) -> None:
    recorder = SampleRecorder(tmp_path / "rank.jsonl")
    with loader(Rows(), num_workers, recorder=recorder) as batches:
        recorder.begin(1, (1, 1), 0, 0)
        batches.plan(step(1, [4, 5], [6]) + step(2, [40, 41]))
        take(batches, 2)
        recorder.flush()
        recorder.begin(2, (1, 2), 0, 0)
        batches.plan(step(2, [50]))  # 40 and 41, read ahead, are for nobody
        take(batches, 1)
        recorder.flush()
    assert recorded(tmp_path / "rank.jsonl") == [[4, 5, 6], [50]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_ep17_the_record_is_of_reads_not_of_the_plan(num_workers: int, tmp_path: Path) -> None:
    """A loader that asks for the right samples and reads others is found out."""
    recorder = SampleRecorder(tmp_path / "rank.jsonl")
    with loader(Rows(), num_workers, recorder=recorder) as batches:
        honest = batches._reader._dataset.samples
        batches._reader._dataset.samples = lambda ids, *key: honest(ids + 1, *key)  # type: ignore[method-assign]
        recorder.begin(1, (1, 1), 0, 0)
        batches.plan(step(1, [4, 5]))
        ids, _ = next(batches)
        recorder.flush()
    assert ids.tolist() == [4, 5]
    assert recorded(tmp_path / "rank.jsonl") == [[5, 6]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ep17_a_read_that_raised_is_not_recorded(num_workers: int, tmp_path: Path) -> None:
    recorder = SampleRecorder(tmp_path / "rank.jsonl")
    with loader(Rows(OSError("gone")), num_workers, recorder=recorder) as batches:
        recorder.begin(1, (1, 1), 0, 0)
        batches.plan(step(1, [5, 6], [7], [8]))
        with pytest.raises(OSError, match="gone"):
            next(batches)
        recorder.begin(1, (1, 2), 1, 0)
        batches.plan(step(1, [7], [8]))
        take(batches, 2)
        recorder.flush()
    assert recorded(tmp_path / "rank.jsonl") == [[7, 8]]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("error", [ValueError("sample 6 is broken"), KeyError(6), TaskError("no sample 6: add it", 3)])
def test_an_error_of_the_data_set_reaches_the_caller_as_itself(error: Exception, num_workers: int) -> None:
    with loader(Rows(error), num_workers) as batches:
        batches.plan(step(4, [5], [6, 7]))
        take(batches, 1)
        with pytest.raises(type(error)) as caught:
            next(batches)
    assert type(caught.value) is type(error) and str(caught.value) == str(error)
    assert getattr(caught.value, "exit_code", None) == getattr(error, "exit_code", None)
    if num_workers:
        (note,) = caught.value.__notes__
        assert note.startswith("raised in a DataLoader worker while it read for step 4 the samples 6, 7:\nTraceback")
        assert "raise self.error" in note


def test_an_error_that_cannot_travel_is_told_in_its_own_words() -> None:
    with loader(Rows(TwoParts("sample", 6)), 1) as batches:
        batches.plan(step(1, [6]))
        with pytest.raises(RuntimeError, match="TwoParts: sample 6"):
            next(batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stop_iteration_of_the_data_set_is_not_the_end_of_the_plan(num_workers: int) -> None:
    with loader(Rows(StopIteration()), num_workers) as batches:
        batches.plan(step(1, [6]))
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            next(batches)


@pytest.mark.parametrize("dataset", [TABLE, Rows()])
def test_a_collate_function_gets_one_object_per_sample(dataset: Dataset[Any]) -> None:
    with loader(dataset, 0, collate_fn=lambda samples: [int(target) for _, target in samples]) as batches:
        batches.plan(step(1, [3, 9]))
        _, batch = next(batches)
    assert batch == [3, 9]


def test_workers_leave_the_generators_of_the_user_alone() -> None:
    def draws() -> list[float]:
        return [*torch.rand(3).tolist(), random.random(), float(np.random.rand())]

    def seed() -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)

    seed()
    expected = draws()
    seed()
    with loader(Rows(), 1) as batches:
        for _ in range(2):
            batches.plan(step(1, [1], [2]))
            take(batches, 2)
        assert draws() == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_close_ends_plan_and_workers_and_what_is_planned_later_is_read_in_the_calling_process(num_workers: int) -> None:
    with loader(TABLE, num_workers) as batches:
        batches.plan(step(1, [1]) + step(2, [2], [3]))
        assert take(batches, 1) == [[1]]
        batches.close()
        with pytest.raises(StopIteration):
            next(batches)
        batches.plan(step(2, [3]))
        assert take(batches, 1) == [[3]]
        assert not multiprocessing.active_children()
