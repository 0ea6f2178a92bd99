"""One micro-batch: what is asked for, what has been read, and the reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils.data import default_collate

from workers.data.record import MapDataset, RecordedDataset
from workers.data.sampler import Ids


class Request(NamedTuple):
    """One micro-batch to read at `step`."""

    step: int
    ids: Ids


class Reading(NamedTuple):
    """One micro-batch: the ids asked for, those that were read, in the order of reading, and the collated samples."""

    ids: Ids
    read: list[int]
    batch: Any


class BatchReader:
    """Reads and collates micro-batches; the ids it has read travel with them, from another process too.

    Args:
        dataset: a map-style data set.
        collate_fn: as for a DataLoader; None is torch's default.
        seed: of the job; with step and sample id the key of random augmentation (EP-3).
    """

    def __init__(self, dataset: MapDataset, collate_fn: Callable[[list[Any]], Any] | None, seed: int) -> None:
        self._dataset = RecordedDataset(dataset)
        self._collate_fn = collate_fn
        self._seed = seed

    def read(self, request: Request) -> Reading:
        """Raises whatever the data set or `collate_fn` raises, but StopIteration, which would look like the end."""
        self._dataset.take_reads()  # of a read that raised
        try:
            batch = self._collated(request)
        except StopIteration as error:
            raise RuntimeError("the data set or its collate_fn raised StopIteration") from error
        return Reading(request.ids, self._dataset.take_reads(), batch)

    def _collated(self, request: Request) -> Any:
        if self._collate_fn is None:
            columns = self._dataset.columns(request.ids)
            if columns is not None:
                return columns
        samples = self._dataset.samples(request.ids, self._seed, request.step)
        return (self._collate_fn or default_collate)(samples)
