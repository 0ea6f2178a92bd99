"""Micro-batches read ahead by DataLoader workers: forked processes that outlive a change of plan, but not their rank."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing import connection
from multiprocessing.context import ForkContext
from multiprocessing.queues import Queue
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from workers.data.reader import BatchReader, Reading, Request
from workers.errors import TaskError

_PR_SET_PDEATHSIG = 1
_SHOWN_IDS = 8
_NOTICED_SECONDS = 1.0
"""So long a failed DataLoader may wait for the word of `_Watch` that a worker's death was the cause."""


class ReaderDied(TaskError):
    """A DataLoader worker is dead, and with it what it was to read."""


class ReadAhead(Iterator[Reading]):
    """The readings of a plan, in its order, by `num_workers` processes that are two micro-batches ahead each.

    They are forked at the first plan and serve every later one. They end with the thread that called `start` first,
    however it ends, and leave Ctrl-C to it.
    """

    def __init__(self, reader: BatchReader, num_workers: int) -> None:
        self._plan = _Plan()
        self._watch: _Watch | None = None
        self._arrivals: Any = None
        self._loader: DataLoader[Reading] = DataLoader(
            _InWorker(reader, self._plan),
            batch_sampler=self._plan,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            prefetch_factor=2,
            persistent_workers=True,
            worker_init_fn=partial(_serve, os.getpid()),
            generator=torch.Generator(),  # its draws leave the user's generator alone
            multiprocessing_context=_Fork(),
        )

    def start(self, requests: Iterable[Request]) -> ReadAhead:
        """Read these from now on. A read in progress is waited for, what was asked for earlier is skipped.

        Raises:
            ReaderDied: a worker is dead.
        """
        self._plan.change(requests)
        self._raise_if_dead()
        try:
            self._arrivals = iter(self._loader)  # the same object each time, with the same workers
        except Exception:
            self._raise_if_dead(_NOTICED_SECONDS)
            raise
        if self._watch is None:
            self._watch = _Watch(self._arrivals)
        return self

    def __next__(self) -> Reading:
        self._raise_if_dead()
        try:
            reading = next(self._arrivals)
        except StopIteration:
            raise
        except Exception:
            self._raise_if_dead(_NOTICED_SECONDS)
            raise
        if isinstance(reading, _Failure):
            reading.error.add_note(reading.note)
            raise reading.error
        return reading

    def close(self) -> None:
        """End the workers.

        Left to garbage collection, torch would end them in whatever thread that runs in, which can hang for seconds.
        """
        if self._watch is None:
            return
        if self._watch.death:
            self._arrivals._shutdown = True  # torch's own way would wait for a lock that the dead one may have held
        else:
            self._watch.expected = True
            self._arrivals._shutdown_workers()
        self._watch.join()

    def _raise_if_dead(self, seconds: float = 0.0) -> None:
        if self._watch is not None:
            self._watch.join(seconds)
            if self._watch.death:
                raise ReaderDied(self._watch.death, exit_code=1) from None


class _Plan:
    """The batch sampler of the DataLoader: whatever is to be read now, each request with the number of its plan."""

    def __init__(self) -> None:
        self._requests: Iterable[Request] = ()
        self._number = memoryview(mmap.mmap(-1, 8)).cast("Q")  # shared with the workers

    def change(self, requests: Iterable[Request]) -> None:
        self._requests = requests
        self._number[0] += 1

    def holds(self, number: int) -> bool:
        return self._number[0] == number

    def __iter__(self) -> Iterator[Any]:
        number = self._number[0]
        return ((number, request) for request in self._requests)


class _Failure(NamedTuple):
    """What was raised in a worker, and where."""

    error: Exception
    note: str


class _InWorker(Dataset[Reading]):
    """The data set that a DataLoader worker sees: its index is a request."""

    def __init__(self, reader: BatchReader, plan: _Plan) -> None:
        self._reader = reader
        self._plan = plan

    def __getitems__(self, numbered: tuple[int, Request]) -> Reading | _Failure | None:
        number, request = numbered
        if not self._plan.holds(number):
            return None  # the DataLoader drops it
        try:
            return self._reader.read(request)
        except Exception as error:
            shown = [*map(str, request.ids[:_SHOWN_IDS].tolist()), *["…"] * (len(request.ids) > _SHOWN_IDS)]
            where = f"raised in a DataLoader worker while it read for step {request.step} the samples {', '.join(shown)}:"
            return _Failure(_portable(error), f"{where}\n{traceback.format_exc()}")


class _Queue(Queue):  # type: ignore[type-arg]  # Queue[Any] cannot be written in a program
    """What cannot be pickled is told to the rank; torch's queue loses it, and the rank would wait for ever."""

    def _on_queue_feeder_error(self, error: Exception, lost: Any) -> None:
        advice = "let collate_fn return tensors, or set num_workers to 0"
        sentence = f"a DataLoader worker cannot send what it has read ({error}): {advice}"
        self.put((lost[0], _Failure(TypeError(sentence), "".join(traceback.format_exception(error)))))


class _Fork(ForkContext):
    def Queue(self, maxsize: int = 0) -> _Queue:
        return _Queue(maxsize, ctx=self)


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same, if it does not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Watch(threading.Thread):
    """Notices at once that a worker is dead, and ends the others.

    Else the rank could wait for ever: for the rest of a message, because the others hold the pipe open, or for one
    that waits for the dead one's lock. torch looks after its workers every 5 s only, and in neither case.
    """

    def __init__(self, arrivals: Any) -> None:
        super().__init__(name="watch-readers", daemon=True)
        self.expected = False
        self.death = ""
        self._workers = arrivals._workers
        self._pipe = arrivals._worker_result_queue._writer
        _remove_worker_pids(id(arrivals))  # else torch raises in the middle of what the main thread is doing
        arrivals._worker_pids_set = False
        self.start()

    def run(self) -> None:
        ended = connection.wait([worker.sentinel for worker in self._workers])
        if self.expected:
            return
        dead = next(worker for worker in self._workers if worker.sentinel in ended)
        dead.join(1.0)
        self.death = f"a DataLoader worker (pid {dead.pid}) {_ending(dead.exitcode)}"
        for worker in self._workers:
            worker.kill()
        self._pipe.close()
        for worker in self._workers:
            worker.join(1.0)


def _ending(exitcode: int | None) -> str:
    if exitcode is None:
        return "died"
    if exitcode < 0:
        name = next((each.name for each in signal.Signals if each == -exitcode), f"signal {-exitcode}")
        return f"was killed by {name}" + ("; was memory short? Then set num_workers lower" if name == "SIGKILL" else "")
    return f"ended with exit code {exitcode}"


def _as_it_is(reading: Any) -> Any:
    """The reader has collated already."""
    return reading


def _serve(parent: int, worker: int) -> None:
    """In a new worker: end with the parent even if it is killed, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
