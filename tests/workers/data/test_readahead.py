"""EP-3 and EP-17 with DataLoader workers: nothing stale arrives, a new plan keeps them, a dead one is told at once."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from workers.data.readahead import ReadAhead, ReaderDied
from workers.data.reader import BatchReader, Request
from workers.readable import wait_readable

NUM_SAMPLES = 32
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class Numbers(Dataset[int]):
    """Sample n is n."""

    def __getitem__(self, index: int) -> int:
        return index

    def __len__(self) -> int:
        return NUM_SAMPLES


class Held(Numbers):
    """Counts its reads, where every process sees them. Of the samples from 10 on, each read waits for `release`."""

    def __init__(self) -> None:
        self.reads = torch.zeros(NUM_SAMPLES, dtype=torch.int64).share_memory_()
        self.ended = torch.zeros(NUM_SAMPLES, dtype=torch.int64).share_memory_()
        self.begun = multiprocessing.get_context("fork").Event()
        self.release = multiprocessing.get_context("fork").Event()

    def __getitem__(self, index: int) -> int:
        self.reads[index] += 1
        if index == 13:
            raise ValueError("sample 13 is broken")
        if index >= 10:
            self.begun.set()
            assert self.release.wait(60)
        self.ended[index] += 1
        return index


@contextmanager
def read_ahead(
    dataset: Dataset[Any], num_workers: int, collate_fn: Callable[[list[Any]], Any] | None = None
) -> Iterator[ReadAhead]:
    made = ReadAhead(BatchReader(dataset, collate_fn, 0), num_workers)
    try:
        yield made
    finally:
        made.close()


def requests(*samples: int) -> list[Request]:
    return [Request(1, np.array([sample])) for sample in samples]


def endless() -> Iterator[Request]:
    return (Request(step, np.array([step % 9])) for step in range(10**9))


def taken(ahead: ReadAhead, count: int) -> list[list[int]]:
    readings = [next(ahead) for _ in range(count)]
    assert [reading.batch.tolist() for reading in readings] == [reading.read for reading in readings]
    return [reading.read for reading in readings]


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def end_of(pid: int) -> Callable[[], None]:
    """Waits for the end of the process; made while it lives."""
    pidfd = os.pidfd_open(pid)

    def wait() -> None:
        assert wait_readable(pidfd, 60)
        os.close(pidfd)

    return wait


def test_ep3_late_arrivals_of_an_earlier_plan_are_dropped_and_what_was_not_begun_is_not_read() -> None:
    dataset = Held()
    with read_ahead(dataset, 1) as ahead:
        earlier = ahead._plan._number[0] + 1
        ahead.start(requests(1, 10, 11, 12))
        before = children()
        assert taken(ahead, 1) == [[1]]
        assert dataset.begun.wait(60)  # 10 is being read, 11 is asked for

        def release_once_the_plan_has_changed() -> None:
            while ahead._plan.holds(earlier):
                time.sleep(0.001)
            dataset.release.set()

        thread = threading.Thread(target=release_once_the_plan_has_changed)
        thread.start()
        ahead.start(requests(2, 3))
        thread.join()
        assert taken(ahead, 2) == [[2], [3]]
        with pytest.raises(StopIteration):
            next(ahead)
        assert children() == before
    assert dataset.reads[:13].tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0]


def test_ep3_an_error_of_an_earlier_plan_is_dropped() -> None:
    dataset = Held()
    with read_ahead(dataset, 1) as ahead:
        ahead.start(requests(1, 13, 2))
        assert taken(ahead, 1) == [[1]]
        while not dataset.reads[13]:
            time.sleep(0.001)
        ahead.start(requests(3))
        assert taken(ahead, 1) == [[3]]


def test_ep3_a_change_of_plan_keeps_the_workers_and_nothing_of_the_plan_before() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    with read_ahead(Numbers(), 2) as ahead:
        assert taken(ahead.start(endless()), 3) == [[0], [1], [2]]
        before, files = children(), open_files()
        for change in range(40):
            assert taken(ahead.start(endless()), change % 3) == [[0], [1]][: change % 3]
        ahead.start(())
        assert children() == before
        assert open_files() <= files


def test_what_cannot_be_sent_is_an_error_and_not_a_wait() -> None:
    with read_ahead(Numbers(), 1, lambda samples: lambda: samples) as ahead:
        ahead.start(requests(1))
        with pytest.raises(TypeError, match=r"cannot send what it has read \(.*\): let collate_fn return tensors"):
            next(ahead)


def test_a_killed_worker_is_an_error_and_not_a_wait() -> None:
    with read_ahead(Numbers(), 2) as ahead:
        taken(ahead.start(endless()), 1)
        victim = min(children())
        wait_for_the_end = end_of(victim)
        os.kill(victim, signal.SIGKILL)
        wait_for_the_end()
        for _ in range(3):
            for ask in (lambda: taken(ahead, 9), lambda: taken(ahead, 1), lambda: ahead.start(requests(1))):
                with pytest.raises(ReaderDied, match=rf"^a DataLoader worker \(pid {victim}\) was killed by SIGKILL; was"):
                    ask()


def test_a_worker_killed_half_way_through_a_message_is_an_error_and_not_a_wait() -> None:
    with read_ahead(Numbers(), 1, lambda samples: bytes(10**7)) as ahead:
        ahead.start(endless())
        pipe = ahead._arrivals._worker_result_queue._reader
        (victim,) = children()
        connection.wait([pipe])  # it holds less than the message
        os.kill(victim, signal.SIGSTOP)

        def kill_it_once_all_is_read() -> None:
            while int.from_bytes(fcntl.ioctl(pipe.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder):
                time.sleep(0.001)
            os.kill(victim, signal.SIGKILL)

        thread = threading.Thread(target=kill_it_once_all_is_read)
        thread.start()
        with pytest.raises(ReaderDied, match="killed by SIGKILL"):
            next(ahead)
        thread.join()
        ahead._arrivals._workers_done_event._cond.acquire()  # as the dead one may have done
    assert not children()


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda: os._exit(7), "ended with exit code 7"),
        (lambda: os.kill(os.getpid(), signal.SIGABRT), "was killed by SIGABRT"),
        (lambda: os.kill(os.getpid(), signal.SIGRTMIN + 3), f"was killed by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_a_worker_that_dies_while_it_is_waited_for_is_an_error(end: Callable[[], None], told: str) -> None:
    class Deadly(Numbers):
        def __getitem__(self, index: int) -> int:
            if index == 3:
                end()
            return index

    with read_ahead(Deadly(), 2) as ahead:
        ahead.start(requests(1, 3, 5))
        with pytest.raises(ReaderDied, match=rf"^a DataLoader worker \(pid \d+\) {told}$"):
            taken(ahead, 3)


def test_workers_end_with_close_and_each_with_what_it_reads() -> None:
    dataset = Held()
    with read_ahead(dataset, 2) as ahead:
        assert taken(ahead.start(requests(1, 10)), 1) == [[1]]
        idle, reading = ahead._arrivals._workers
        assert dataset.begun.wait(60)
        wait_for_the_end = end_of(idle.pid)

        def release_once_the_idle_one_is_gone() -> None:
            wait_for_the_end()
            dataset.release.set()

        thread = threading.Thread(target=release_once_the_idle_one_is_gone)
        thread.start()
    thread.join()
    assert idle.exitcode == reading.exitcode == 0
    assert dataset.ended[10] == 1


def test_workers_start_from_another_thread() -> None:
    """A rank's task does not run in the main thread of its process."""
    found: list[list[list[int]]] = []

    def body() -> None:
        with read_ahead(Numbers(), 1) as ahead:
            found.append(taken(ahead.start(requests(1, 2)), 2))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [[[1], [2]]]


PARENT = """
import multiprocessing, os, signal, sys, time, numpy as np
from torch.utils.data import Dataset
from workers.data.loader import MicroBatchLoader

class Numbers(Dataset):
    def __getitem__(self, index):
        if index >= 2 and sys.argv[1] == "wait":
            time.sleep(3600)
        return index

    def __len__(self):
        return 4

loader = MicroBatchLoader(Numbers(), num_workers=2)
loader.plan((0, np.array([index])) for index in range(4))
next(loader), next(loader)  # one of each worker
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
if sys.argv[1] == "wait":
    signal.pause()
"""


def ignores(pid: int, number: signal.Signals) -> bool:
    (mask,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_a_killed_rank(ending: signal.Signals) -> None:
    """Not even in the middle of a read that never ends."""
    command = [sys.executable, "-c", PARENT, "wait"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        try:
            assert len(pids) == 2
            assert all(ignores(pid, signal.SIGINT) for pid in pids)  # Ctrl-C reaches them too, and is for the rank
            ends = [end_of(pid) for pid in pids]
            parent.send_signal(ending)
            for wait_for_the_end in ends:
                wait_for_the_end()
        finally:
            parent.kill()


def test_a_script_that_just_ends_takes_its_workers_along_without_a_word() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PARENT, "end"], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)
