"""The checkpoints in a folder: listing, choosing the newest sound one, going back to one (CK-9)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic

from workers.checkpoint.errors import CheckpointError, StorageError
from workers.checkpoint.manifest import Label, parse_folder, read_manifest
from workers.checkpoint.places import Root, names, put_aside
from workers.checkpoint.reader import chain_of, load, verify
from workers.checkpoint.remote import Remote
from workers.identity import Generation
from workers.state import Captured

logger = logging.getLogger("quantarion.checkpoint")


@dataclass(frozen=True)
class Entry(Generic[Root]):
    """A checkpoint. `valid` None: looks whole, content not read; False: `reason` says why; True: verified.

    `tier` is the one in its name where the manifest cannot be read. `bases` are the folders of the checkpoints that it is a
    difference to, the nearest first; where one is missing it is not valid. `is_reached` False: the storage refused to have
    it read, this time, so what it needs may not be known.
    """

    path: Root
    step: int
    generation: Generation
    tier: str
    valid: bool | None
    reason: str = ""
    bases: tuple[str, ...] = ()
    is_reached: bool = True


Skipped = Callable[[Entry[Any]], None]


def list_checkpoints(root: Root) -> list[Entry[Root]]:
    """All checkpoints below `root`, newest first (`Label.age`); reads manifests and sizes only.

    A missing folder holds none. Raises StorageError where it cannot be listed.
    """
    labels = [label for name in names(root) if (label := parse_folder(name)) is not None]
    return [_entry(root / label.folder, label) for label in sorted(labels, key=lambda label: label.age, reverse=True)]


def check(entry: Entry[Root]) -> Entry[Root]:
    """The entry with `valid` decided by reading all of it; what cannot be read is not valid."""
    if entry.valid is not None:
        return entry
    try:
        verify(entry.path)
    except CheckpointError as error:
        return replace(entry, valid=False, reason=str(error), is_reached=not isinstance(error, StorageError))
    return replace(entry, valid=True)


def newest_valid(root: Root, tier: str | None = None, on_skip: Skipped | None = None) -> Entry[Root] | None:
    """The newest verified checkpoint, of `tier` if given. Damaged ones are logged, given to `on_skip`, passed over.

    Raises StorageError where it cannot be listed, or an object store does not let one be read: it may be sound.
    """
    for entry in list_checkpoints(root):
        if tier not in (None, entry.tier):
            continue
        if (checked := check(entry)).valid:
            return checked
        _skip(checked, on_skip)
    return None


def load_newest(
    root: Root, tier: str | None = None, on_skip: Skipped | None = None, at_most: int | None = None
) -> tuple[Entry[Root], Captured] | None:
    """`newest_valid` and its state, read once; of no later step than `at_most`. Raises as that."""
    for entry in list_checkpoints(root):
        if tier not in (None, entry.tier) or (at_most is not None and entry.step > at_most):
            continue
        if entry.valid is None:
            try:
                return replace(entry, valid=True), load(entry.path)
            except CheckpointError as error:
                entry = replace(entry, valid=False, reason=str(error), is_reached=not isinstance(error, StorageError))
        _skip(entry, on_skip)
    return None


def set_aside(root: Root, after: int) -> list[Root]:
    """Put the checkpoints of steps later than `after` where nobody looks for checkpoints; returns where they are now.

    They were whole, but what they hold is wrong: the job has gone back to before them (GM-17). Raises StorageError where
    the folder refuses.
    """
    return [put_aside(entry.path) for entry in list_checkpoints(root) if entry.step > after]


def put_first(path: Root) -> list[Root]:
    """Put all checkpoints beside the one at `path` that are newer where nobody looks for checkpoints, so that a resume
    takes this one; returns where they are now. Raises CheckpointError where it is none that is listed, or not sound."""
    entries = list_checkpoints(path.parent)
    chosen = next((index for index, entry in enumerate(entries) if entry.path.name == path.name), None)
    if chosen is None:
        raise CheckpointError(f"there is no checkpoint at {path}; `quantarion checkpoint list` shows those of a job")
    if not (checked := check(entries[chosen])).valid:
        raise CheckpointError(checked.reason)
    return [put_aside(entry.path) for entry in entries[:chosen]]


def _skip(entry: Entry[Any], on_skip: Skipped | None) -> None:
    if not entry.is_reached and isinstance(entry.path, Remote):
        raise StorageError(entry.reason)
    logger.warning("checkpoint skipped: %s", entry.reason)
    if on_skip is not None:
        on_skip(entry)


def _entry(path: Root, label: Label) -> Entry[Root]:
    entry = Entry(path, label.step, label.generation, label.tier, None)
    try:
        manifest = read_manifest(path)
        entry = replace(entry, tier=manifest.tier, bases=(manifest.base.folder,) if manifest.base is not None else ())
        entry = replace(entry, bases=tuple(below.name for below, _ in chain_of(path, manifest)[1:]))
    except CheckpointError as error:
        return replace(entry, valid=False, reason=str(error), is_reached=not isinstance(error, StorageError))
    return entry
