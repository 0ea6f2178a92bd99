"""Which checkpoint the next one of the qins tier is a difference to (CK-2), as its writer knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workers.checkpoint.deltas import Coded
from workers.checkpoint.errors import CheckpointError
from workers.checkpoint.manifest import Base, manifest_checksum, read_manifest
from workers.checkpoint.places import Where
from workers.checkpoint.reader import chain_of
from workers.checkpoint.shard import Increment


class Chain:
    """Of one writer. Holds two bytes for each weight and second moment, and while it writes a difference as much again."""

    def __init__(self) -> None:
        self._folder: Where | None = None
        self._checksum = ""
        self._depth = 0
        self._names: list[str] = []
        self._coded: Mapping[str, Coded] = {}

    def forget(self) -> None:
        """The next one is whole."""
        self._folder, self._coded = None, {}

    def increment(self, root: Where, names: Sequence[str], longest: int) -> Increment:
        """Of a state with these tensors, in that order, that is to be saved below `root`. It is whole where what the last
        one needs is not there any more, deleted, or set aside as the job has gone back to before it; where the last one has
        other tensors; or where `longest` checkpoints of the chain are there already."""
        folder = self._folder
        is_new = folder is None or folder.parent != root or self._depth >= longest or list(names) != self._names
        if folder is None or is_new or not self._is_there(folder):
            self.forget()
            return Increment(None, {})
        return Increment(Base(folder=folder.name, checksum=self._checksum), self._coded)

    def _is_there(self, folder: Where) -> bool:
        try:
            chain_of(folder, read_manifest(folder))
            return manifest_checksum(folder) == self._checksum
        except CheckpointError:
            return False

    def extend(self, folder: Where, names: Sequence[str], increment: Increment) -> None:
        """`increment` is published as `folder`."""
        try:
            self._checksum = manifest_checksum(folder)
        except CheckpointError:
            self.forget()
            return
        self._folder, self._names, self._coded = folder, list(names), increment.after
        self._depth = self._depth + 1 if increment.base is not None else 1
