"""EP-3 and EP-17: micro-batches arrive as asked for, are recorded on arrival, and readers never outlive their rank."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
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

NUM_SAMPLES = 64
TABLE = TensorDataset(torch.arange(NUM_SAMPLES).float()[:, None] / 2, torch.arange(NUM_SAMPLES))


class Rows(Dataset[tuple[Tensor, int]]):
    """Read one by one, with augmentation and, once told so, a sample that cannot be read."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.broken:
            raise ValueError(f"sample {index} is broken")
        return torch.rand(2), index

    def __len__(self) -> int:
        return NUM_SAMPLES


def cut(*lists: list[int]) -> list[Ids]:
    return [np.array(ids, dtype=np.int64) for ids in lists]


def labels(arrivals: Iterator[tuple[Ids, Any]]) -> list[list[int]]:
    """The labels that arrived; each micro-batch must hold what its ids say."""
    found = []
    for ids, (_, targets) in arrivals:
        assert targets.tolist() == ids.tolist()
        found.append(ids.tolist())
    return found


@contextmanager
def loader(dataset: Dataset[Any], num_workers: int, **arguments: Any) -> Iterator[MicroBatchLoader]:
    made = MicroBatchLoader(dataset, num_workers=num_workers, **arguments)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("dataset", [TABLE, Rows()])
def test_micro_batches_arrive_in_order(dataset: Dataset[Any], num_workers: int) -> None:
    with loader(dataset, num_workers) as batches:
        assert labels(batches.load(cut([3, 1], [7], [9, 8, 2]), 1)) == [[3, 1], [7], [9, 8, 2]]
        assert labels(batches.load([], 2)) == []
        assert labels(batches.load(cut([0]), 3)) == [[0]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ep3_a_sample_is_augmented_alike_in_any_process_and_cut(num_workers: int) -> None:
    with loader(Rows(), 0, seed=4) as reference, loader(Rows(), num_workers, seed=4) as batches:
        ((_, (expected, _)),) = reference.load(cut([5, 6, 7, 8]), 11)
        parts = [inputs for _, (inputs, _) in batches.load(cut([5], [6, 7], [8]), 11)]
        assert torch.equal(torch.cat(parts), expected)
        ((_, (other, _)),) = batches.load(cut([5, 6, 7, 8]), 12)
        assert not torch.equal(other, expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ep3_a_discarded_step_is_read_again_with_other_shares(num_workers: int) -> None:
    with loader(TABLE, num_workers) as batches:
        arrivals = batches.load(cut([1, 2], [3, 4], [5, 6]), 1)
        batches.prefetch(cut([20, 21]), 2)
        assert next(arrivals)[0].tolist() == [1, 2]
        batches.invalidate()
        assert labels(batches.load(cut([5, 6], [1]), 1)) == [[5, 6], [1]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ep3_prefetch_is_used_if_the_shares_are_the_same_and_dropped_if_not(num_workers: int) -> None:
    with loader(TABLE, num_workers) as batches:
        arrivals = batches.load(cut([1], [2]), 1)
        batches.prefetch(cut([3], [4]), 2)
        assert labels(arrivals) == [[1], [2]]
        arrivals = batches.load(cut([3], [4]), 2)
        assert labels(arrivals) == [[3], [4]]
        batches.prefetch(cut([5], [6]), 3)
        assert labels(batches.load(cut([6, 7]), 3)) == [[6, 7]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ep3_a_plan_is_drawn_from_lazily_and_replaced_when_shares_change(num_workers: int) -> None:
    drawn: list[int] = []

    def endless() -> Iterator[tuple[int, Ids]]:
        for step in range(10**9):
            drawn.append(step)
            yield step, np.array([step % NUM_SAMPLES], dtype=np.int64)

    with loader(TABLE, num_workers) as batches:
        batches.plan(endless())
        assert [next(batches)[0].tolist() for _ in range(5)] == [[0], [1], [2], [3], [4]]
        assert len(drawn) <= 5 + 4 * num_workers
        batches.plan((step, ids) for step, ids in enumerate(cut([9, 8], [7])))
        ids, (inputs, targets) = next(batches)
        assert ids.tolist() == targets.tolist() == [9, 8]
        assert inputs.tolist() == [[4.5], [4.0]]
        assert next(batches)[0].tolist() == [7]
        with pytest.raises(StopIteration):
            next(batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ep17_only_what_arrives_for_the_step_is_recorded(num_workers: int, tmp_path: Path) -> None:
    recorder = SampleRecorder(tmp_path / "rank.jsonl")
    with loader(Rows(), num_workers, recorder=recorder) as batches:
        recorder.begin(1, (1, 1), 0, 0)
        arrivals = batches.load(cut([4, 5], [6]), 1)
        batches.prefetch(cut([40, 41]), 2)
        assert labels(arrivals) == [[4, 5], [6]]
        recorder.flush()
        recorder.begin(2, (1, 2), 0, 0)
        batches.plan((2, ids) for ids in cut([50]))  # the prefetched samples are for nobody
        next(batches)
        recorder.flush()
    recorded = [json.loads(line)["ids"] for line in (tmp_path / "rank.jsonl").read_text().splitlines()]
    assert recorded == [[4, 5, 6], [50]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_ep17_the_record_is_of_reads_not_of_the_plan(num_workers: int, tmp_path: Path) -> None:
    """A loader that asks for the right samples and reads others is found out."""
    recorder = SampleRecorder(tmp_path / "rank.jsonl")
    with loader(Rows(), num_workers, recorder=recorder) as batches:
        honest = batches._reader._dataset.samples
        batches._reader._dataset.samples = lambda ids, *key: honest(ids + 1, *key)  # type: ignore[method-assign]
        recorder.begin(1, (1, 1), 0, 0)
        ((ids, _),) = batches.load(cut([4, 5]), 1)
        recorder.flush()
    assert ids.tolist() == [4, 5]
    assert json.loads((tmp_path / "rank.jsonl").read_text())["ids"] == [5, 6]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_the_data_set_reaches_the_caller(num_workers: int) -> None:
    with loader(Rows(broken=6), num_workers) as batches, pytest.raises(ValueError, match="sample 6 is broken"):
        labels(batches.load(cut([5, 6]), 1))


@pytest.mark.parametrize("dataset", [TABLE, Rows()])
def test_a_collate_function_gets_one_object_per_sample(dataset: Dataset[Any]) -> None:
    with loader(dataset, 0, collate_fn=lambda samples: [int(target) for _, target in samples]) as batches:
        ((_, batch),) = batches.load(cut([3, 9]), 1)
    assert batch == [3, 9]


def test_workers_leave_the_generator_of_the_user_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with loader(TABLE, 1) as batches:
        labels(batches.load(cut([1]), 1))
        labels(batches.load(cut([2]), 2))
        assert torch.equal(torch.rand(3), expected)


def test_workers_end_with_close() -> None:
    with loader(TABLE, 2) as batches:
        labels(batches.load(cut([1]), 1))
        workers = multiprocessing.active_children()
        assert len(workers) == 2
    for worker in workers:
        worker.join(60)
        assert worker.exitcode is not None


def test_workers_start_from_another_thread() -> None:
    """A rank's task does not run in the main thread of its process."""
    found: list[list[list[int]]] = []

    def body() -> None:
        with loader(TABLE, 1) as batches:
            found.append(labels(batches.load(cut([1, 2]), 1)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [[[1, 2]]]


PARENT = """
import multiprocessing, signal, torch, numpy as np
from torch.utils.data import TensorDataset
from workers.data.loader import MicroBatchLoader
loader = MicroBatchLoader(TensorDataset(torch.arange(9)), num_workers=2)
loader.plan((step, np.array([step % 9])) for step in range(10**9))
next(loader), next(loader)  # one of each worker
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
signal.pause()
"""


def ignores(pid: int, number: signal.Signals) -> bool:
    (mask,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_a_killed_rank(ending: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    watched = [os.pidfd_open(pid) for pid in pids]
    try:
        assert all(ignores(pid, signal.SIGINT) for pid in pids)  # Ctrl-C reaches them too, and is for the rank
        parent.send_signal(ending)
        parent.wait(60)
        for pidfd in watched:
            assert select.select([pidfd], [], [], 60)[0] == [pidfd]
    finally:
        parent.kill()
        parent.stdout.close()
        for pidfd in watched:
            os.close(pidfd)
