"""The micro-batches of a rank's plan, one after the other, and the record of what was read for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from workers.data.readahead import ReadAhead
from workers.data.reader import BatchReader, Reading, Request
from workers.data.record import MapDataset, SampleRecorder
from workers.data.sampler import Ids


class MicroBatchLoader:
    """`plan` says what is to be read from here on, `next` gives the micro-batches one by one.

    Args:
        dataset, collate_fn, seed: see `BatchReader`.
        num_workers: forked processes that read ahead, see `ReadAhead`; 0 reads in the calling one, when asked.
        recorder: is told what was read for each micro-batch that `next` gives (EP-17); None records nothing.
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
        self._ahead = ReadAhead(self._reader, num_workers) if num_workers > 0 else None
        self._readings: Iterator[Reading] = iter(())

    def plan(self, requests: Iterable[tuple[int, Ids]]) -> None:
        """From here on `next(loader)` gives the micro-batch of each (step, ids) in turn.

        What was planned before is dropped, and so is what has been read ahead of it: it was recorded for no step.
        `requests` may be as long as the job: it is drawn from as micro-batches are read, a few ahead with workers.

        Raises:
            ReaderDied: a DataLoader worker is dead.
        """
        self._readings = iter(())
        planned = (Request(*request) for request in requests)
        self._readings = map(self._reader.read, planned) if self._ahead is None else self._ahead.start(planned)

    def __next__(self) -> tuple[Ids, Any]:
        """(ids, collated samples) of the next planned micro-batch; StopIteration after the last.

        Raises:
            ReaderDied: a DataLoader worker is dead.
            Exception: what the data set or `collate_fn` raised, as it is, in whichever process it did.
        """
        reading = next(self._readings)
        if self._recorder is not None:
            self._recorder.add(reading.read)
        return reading.ids, reading.batch

    def close(self) -> None:
        """End the workers; what is planned afterwards is read in the calling process."""
        self._readings = iter(())
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.close()
