"""Which checkpoint the next one of the qins tier is a difference to (CK-2), as its writer knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workers.checkpoint.deltas import Coded
from workers.checkpoint.errors import CheckpointError
from workers.checkpoint.lossy import is_first_moment
from workers.checkpoint.manifest import Base, manifest_checksum


@dataclass(frozen=True)
class Increment:
    """One checkpoint: `before` has the codes in its `base`, by name, and gets none itself; `after` gets its own."""

    base: Base | None
    before: Mapping[str, Coded]
    after: dict[str, Coded] = field(default_factory=dict)

    def keeps(self, name: str) -> bool:
        """Whether a later checkpoint may hold a difference of this tensor. First moments are others after some steps."""
        return not is_first_moment(name)


class Chain:
    """Of one writer. Holds two bytes for each weight and second moment."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._checksum = ""
        self._depth = 0
        self._names: list[str] = []
        self._coded: Mapping[str, Coded] = {}

    def increment(self, root: Path, names: Sequence[str], longest: int) -> Increment:
        """Of a state with these tensors, in that order, that is to be saved below `root`. It is whole where the last one is
        not there, has other tensors, or `longest` checkpoints of the chain are there already."""
        folder = self._folder
        if folder is None or folder.parent != root or self._depth >= longest or list(names) != self._names:
            return Increment(None, {})
        try:
            is_there = manifest_checksum(folder) == self._checksum
        except CheckpointError:
            is_there = False
        if not is_there:  # deleted, or set aside as the job has gone back to before it
            return Increment(None, {})
        return Increment(Base(folder=folder.name, checksum=self._checksum), self._coded)

    def extend(self, folder: Path, names: Sequence[str], increment: Increment) -> None:
        """`increment` is published as `folder`."""
        try:
            self._checksum = manifest_checksum(folder)
        except CheckpointError:  # the next one will be whole
            self._folder, self._coded = None, {}
            return
        self._folder, self._names, self._coded = folder, list(names), increment.after
        self._depth = self._depth + 1 if increment.base is not None else 1
