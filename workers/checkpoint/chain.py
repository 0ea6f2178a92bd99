"""Which checkpoint the next one of the qins tier is a difference to (CK-2), as its writer knows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
        self._handed_in: tuple[Where, frozenset[str], Increment] | None = None

    def forget(self) -> None:
        """The next one is whole."""
        self._folder, self._coded, self._handed_in = None, {}, None

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

    def follow(self, base: Base | None, root: Where) -> Increment:
        """Of this writer's share of a checkpoint below `root` that is a difference to `base`, as who leads has said; of a
        whole one with None. The share is whole, too, where this writer has no codes of its share of the base."""
        self._names = []  # of a whole checkpoint it knows nothing: it cannot lead on from here
        if base is None:
            self.forget()
            return Increment(None, {})
        if self._handed_in is not None:
            folder, shards, increment = self._handed_in
            if folder == root / base.folder and self._is_published(folder, shards, base):
                self._folder, self._checksum, self._coded = folder, base.checksum, increment.after
            self._handed_in = None
        if self._folder != root / base.folder or self._checksum != base.checksum:
            self._folder, self._coded = None, {}
            return Increment(None, {})
        return Increment(base, self._coded)

    def hand_in(self, folder: Where, shards: Iterable[str], increment: Increment) -> None:
        """This writer's share of what may be published as `folder` lies in files of these names."""
        self._handed_in = folder, frozenset(shards), increment

    def _is_published(self, folder: Where, shards: frozenset[str], base: Base) -> bool:
        """Whether the checkpoint there is the one that these shards were written for."""
        try:
            manifest = read_manifest(folder)
            return manifest_checksum(folder) == base.checksum and shards <= {entry.name for entry in manifest.shards}
        except CheckpointError:
            return False

    def _is_there(self, folder: Where) -> bool:
        try:
            chain_of(folder, read_manifest(folder))
            return manifest_checksum(folder) == self._checksum
        except CheckpointError:
            return False

    def extend(self, folder: Where, names: Sequence[str], increment: Increment) -> None:
        """`increment`, all of it or this writer's share, is published as `folder`; that has these tensors."""
        try:
            self._checksum = manifest_checksum(folder)
        except CheckpointError:
            self.forget()
            return
        self._folder, self._names, self._coded = folder, list(names), increment.after
        self._depth = self._depth + 1 if increment.base is not None else 1
