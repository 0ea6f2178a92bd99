"""Micro-batches of a rank's share, read in the process itself or ahead by DataLoader workers."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from workers.data.record import MapDataset, RecordedDataset, SampleRecorder
from workers.data.sampler import Ids

_PR_SET_PDEATHSIG = 1


class Request(NamedTuple):
    """One micro-batch to read at `step`."""

    step: int
    ids: Ids

    def same(self, other: Request) -> bool:
        return self.step == other.step and np.array_equal(self.ids, other.ids)


class Reading(NamedTuple):
    """One micro-batch: the ids asked for, those that were read, in the order of reading, and the collated samples."""

    ids: Ids
    read: list[int]
    batch: Any


class BatchReader(Dataset[Reading]):
    """Reads and collates one micro-batch; the ids it has read travel with it, from another process too."""

    def __init__(self, dataset: MapDataset, collate_fn: Callable[[list[Any]], Any] | None, seed: int) -> None:
        self._dataset = RecordedDataset(dataset)
        self._collate_fn = collate_fn
        self._seed = seed

    def __getitems__(self, request: Request) -> Reading:
        self._dataset.take_reads()  # of a read that raised
        batch = self._read(request)
        return Reading(request.ids, self._dataset.take_reads(), batch)

    def _read(self, request: Request) -> Any:
        if self._collate_fn is None:
            columns = self._dataset.columns(request.ids)
            if columns is not None:
                return columns
        samples = self._dataset.samples(request.ids, self._seed, request.step)
        return (self._collate_fn or default_collate)(samples)


class MicroBatchLoader:
    """Reads the micro-batches of one step after the other, and hands what was read to the recorder.

    With `num_workers`, a torch DataLoader reads in as many forked processes: all micro-batches of a step at once, and
    those of the next step ahead if `prefetch` names them. The processes end with the thread that loads first, however
    it ends, and leave Ctrl-C to their parent.

    Args:
        dataset: a map-style data set.
        collate_fn: as for a DataLoader; None is torch's default.
        num_workers: processes that read; 0 reads in the calling one.
        recorder: is told what arrives for the step (EP-17); None records nothing.
        seed: of the job; with step and sample id the key of random augmentation (EP-3).
    """

    def __init__(
        self,
        dataset: MapDataset,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        recorder: SampleRecorder | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self._reader = BatchReader(dataset, collate_fn, seed)
        self._recorder = recorder
        self._plan = _Plan()
        self._outstanding = 0
        self._planned: Iterator[tuple[Ids, Any]] = iter(())
        self._later: list[Request] | None = None
        self._ahead: tuple[list[Request], Iterator[Reading]] | None = None
        self._arrivals: Any = None
        self._loader: DataLoader[Reading] | None = None
        if num_workers > 0:
            self._loader = DataLoader(
                self._reader,
                batch_sampler=self._plan,
                collate_fn=_as_it_is,
                num_workers=num_workers,
                persistent_workers=True,
                worker_init_fn=partial(_serve, os.getpid()),
                generator=torch.Generator(),  # its draws leave the user's generator alone
                multiprocessing_context="fork",
            )

    def load(self, ids_lists: Sequence[Ids], step: int = 0) -> Iterator[tuple[Ids, Any]]:
        """Yield (ids, collated samples) for each list of ids, in order. A step left halfway may be loaded again.

        Workers start to read at the call; without them each list is read when it is asked for.
        """
        requests = [Request(step, ids) for ids in ids_lists]
        if self._loader is None:
            return self._recorded(map(self._reader.__getitems__, requests))
        arrivals = self._take_ahead(requests)
        if arrivals is None:
            arrivals = self._start(requests)
        self._outstanding = len(requests)
        return self._recorded(self._arriving(arrivals, len(requests)))

    def plan(self, requests: Iterable[tuple[int, Ids]]) -> None:
        """From here on `next(loader)` gives the micro-batch of each (step, ids) in turn; what was planned is dropped.

        `requests` may be as long as the job: it is drawn from as workers become free, a few micro-batches ahead.
        """
        self.invalidate()
        planned = (Request(*request) for request in requests)
        readings = map(self._reader.__getitems__, planned) if self._loader is None else self._start(planned)
        self._planned = self._recorded(readings)

    def __next__(self) -> tuple[Ids, Any]:
        """(ids, collated samples) of the next planned micro-batch; StopIteration after the last."""
        return next(self._planned)

    def prefetch(self, ids_lists: Sequence[Ids], step: int = 0) -> None:
        """Read these ahead as soon as the step being loaded has arrived; nothing happens without workers."""
        if self._loader is None:
            return
        self._later = [Request(step, ids) for ids in ids_lists]
        if self._outstanding == 0:
            self._start_later()

    def invalidate(self) -> None:
        """Drop what is read ahead: the shares have changed (EP-3). It was recorded for no step."""
        self._later = self._ahead = None
        self._outstanding = 0
        self._planned = iter(())

    def close(self) -> None:
        """End the workers; what is loaded afterwards is read in the calling process.

        Left to garbage collection, torch would end them in whatever thread that runs in, which can hang for seconds.
        """
        self.invalidate()
        if self._arrivals is not None:
            self._arrivals._shutdown_workers()
        self._loader = self._arrivals = None

    def _recorded(self, readings: Iterator[Reading]) -> Iterator[tuple[Ids, Any]]:
        for reading in readings:
            if self._recorder is not None:
                self._recorder.add(reading.read)
            yield reading.ids, reading.batch

    def _arriving(self, arrivals: Iterator[Reading], count: int) -> Iterator[Reading]:
        for _ in range(count):
            reading = next(arrivals)
            self._outstanding -= 1
            if self._outstanding == 0:
                self._start_later()
            yield reading

    def _take_ahead(self, requests: list[Request]) -> Iterator[Reading] | None:
        ahead, self._ahead = self._ahead, None
        if ahead is None or len(ahead[0]) != len(requests):
            return None
        return ahead[1] if all(map(Request.same, ahead[0], requests)) else None

    def _start_later(self) -> None:
        later, self._later = self._later, None
        if later:
            self._ahead = later, self._start(later)

    def _start(self, requests: Iterable[Request]) -> Iterator[Reading]:
        """Hand the requests to the workers; what they still owe for earlier ones is dropped by the DataLoader."""
        assert self._loader is not None
        self._plan.requests = requests
        self._arrivals = iter(self._loader)  # the same object each time, with the same workers
        return cast(Iterator[Reading], self._arrivals)


class _Plan:
    """The batch sampler of the DataLoader: whatever the next iteration is to read."""

    requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.requests)


def _as_it_is(reading: Any) -> Any:
    """The reader has collated already."""
    return reading


def _serve(parent: int, worker: int) -> None:
    """In a new worker: end with the parent even if it is killed, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
