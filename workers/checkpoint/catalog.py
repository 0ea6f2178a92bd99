"""The checkpoints in a folder: listing, choosing the newest sound one, keeping the newest few (CK-6, CK-9)."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from workers.checkpoint.errors import CheckpointError, StaleWriter, storage_error
from workers.checkpoint.manifest import EXACT, Label, parse_folder, read_manifest
from workers.checkpoint.reader import chain_of, load, verify
from workers.identity import Generation
from workers.state import Captured

logger = logging.getLogger("quantarion.checkpoint")

ASIDE = "rolled-back-"
"""The name of what `set_aside` has moved begins so."""


@dataclass(frozen=True)
class Entry:
    """A checkpoint on disk. `valid` None: looks whole, content not read; False: `reason` says why; True: verified.

    `tier` is the one in its name where the manifest cannot be read. `bases` are the folders of the checkpoints that it is a
    difference to, the nearest first; where one is missing it is not valid.
    """

    path: Path
    step: int
    generation: Generation
    tier: str
    valid: bool | None
    reason: str = ""
    bases: tuple[str, ...] = ()


Skipped = Callable[[Entry], None]


def list_checkpoints(root: Path) -> list[Entry]:
    """All checkpoints below `root`, newest first (`Label.age`); reads manifests and sizes only.

    A missing folder holds none. Raises StorageError where it cannot be listed.
    """
    try:
        with os.scandir(root) as found:
            names = [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error("list", root, error) from error
    labels = [label for name in names if (label := parse_folder(name)) is not None]
    return [_entry(root / label.folder, label) for label in sorted(labels, key=lambda label: label.age, reverse=True)]


def check(entry: Entry) -> Entry:
    """The entry with `valid` decided by reading all of it; what cannot be read is not valid."""
    if entry.valid is not None:
        return entry
    try:
        verify(entry.path)
    except CheckpointError as error:
        return replace(entry, valid=False, reason=str(error))
    return replace(entry, valid=True)


def newest_valid(root: Path, tier: str | None = None, on_skip: Skipped | None = None) -> Entry | None:
    """The newest verified checkpoint, of `tier` if given. Damaged ones are logged, given to `on_skip`, passed over."""
    for entry in list_checkpoints(root):
        if tier not in (None, entry.tier):
            continue
        if (checked := check(entry)).valid:
            return checked
        _skip(checked, on_skip)
    return None


def load_newest(
    root: Path, tier: str | None = None, on_skip: Skipped | None = None, at_most: int | None = None
) -> tuple[Entry, Captured] | None:
    """`newest_valid` and its state, read once; of no later step than `at_most`."""
    for entry in list_checkpoints(root):
        if tier not in (None, entry.tier) or (at_most is not None and entry.step > at_most):
            continue
        if entry.valid is None:
            try:
                return replace(entry, valid=True), load(entry.path)
            except CheckpointError as error:
                entry = replace(entry, valid=False, reason=str(error))
        _skip(entry, on_skip)
    return None


def prune(root: Path, keep: int, fence: Callable[[], bool], on_damage: Skipped | None = None) -> list[Path]:
    """Delete what is older than the newest `keep` verified checkpoints, but no exact one before a newer exact one is
    verified, and none that one of those that stay is a difference to; returns what was deleted.

    With fewer than `keep` sound ones nothing is deleted, and a damaged one only when it is older than those; `on_damage` is
    called for each that is met. Raises StaleWriter, before touching the next one, where `fence` says False; StorageError
    where the folder refuses.
    """
    if keep < 1:
        raise ValueError(f"keep {keep} would delete every checkpoint; write 1 or more")
    sound, has_exact = 0, False
    needed, verified = set[str](), set[str]()  # names: what those that stay are differences to; what was read with those
    deleted: list[Path] = []
    for entry in list_checkpoints(root):
        if sound < keep or (entry.tier == EXACT and not has_exact):
            is_sound = entry.path.name in verified or bool(check(entry).valid)
            sound += is_sound
            has_exact |= is_sound and entry.tier == EXACT
            needed.update(entry.bases)
            verified.update(entry.bases if is_sound else ())
            if not is_sound and on_damage is not None:
                on_damage(entry)
            continue
        if entry.path.name in needed:
            continue
        if not fence():
            raise StaleWriter(f"{entry.path} was not deleted: the generation of its successor's writer is over")
        _delete(entry.path)
        deleted.append(entry.path)
    return deleted


def set_aside(root: Path, after: int) -> list[Path]:
    """Put the checkpoints of steps later than `after` where nobody looks for checkpoints; returns where they are now.

    They were whole, but what they hold is wrong: the job has gone back to before them (GM-17). Raises StorageError where
    the folder refuses.
    """
    return [_put_aside(entry.path) for entry in list_checkpoints(root) if entry.step > after]


def put_first(path: Path) -> list[Path]:
    """Put all checkpoints beside the one at `path` that are newer where nobody looks for checkpoints, so that a resume
    takes this one; returns where they are now. Raises CheckpointError where it is none that is listed, or not sound."""
    entries = list_checkpoints(path.parent)
    chosen = next((index for index, entry in enumerate(entries) if entry.path.name == path.name), None)
    if chosen is None:
        raise CheckpointError(f"there is no checkpoint at {path}; `quantarion checkpoint list` shows those of a job")
    if not (checked := check(entries[chosen])).valid:
        raise CheckpointError(checked.reason)
    return [_put_aside(entry.path) for entry in entries[:chosen]]


def _put_aside(path: Path) -> Path:
    away = path.with_name(f"{ASIDE}{path.name}.{secrets.token_hex(4)}")
    try:
        path.rename(away)
    except OSError as error:
        raise storage_error("rename", path, error) from error
    return away


def _skip(entry: Entry, on_skip: Skipped | None) -> None:
    logger.warning("checkpoint skipped: %s", entry.reason)
    if on_skip is not None:
        on_skip(entry)


def _entry(path: Path, label: Label) -> Entry:
    entry = Entry(path, label.step, label.generation, label.tier, None)
    try:
        manifest = read_manifest(path)
        entry = replace(entry, tier=manifest.tier)
        entry = replace(entry, bases=tuple(below.name for below, _ in chain_of(path, manifest)[1:]))
    except CheckpointError as error:
        return replace(entry, valid=False, reason=str(error))
    return entry


def _delete(path: Path) -> None:
    """Out of sight by one rename, then gone; what a crash leaves is swept as stale."""
    hidden = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        path.rename(hidden)
        shutil.rmtree(hidden)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error("delete", path, error) from error
