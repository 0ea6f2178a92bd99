"""Which checkpoints stay, and the deletion of the others (CK-6)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Literal

from workers import plain
from workers.checkpoint.catalog import Entry, Skipped, check, list_checkpoints
from workers.checkpoint.errors import CheckpointError, StaleWriter, StorageError
from workers.checkpoint.manifest import EXACT, read_manifest
from workers.checkpoint.places import Root, delete, is_pinned
from workers.checkpoint.remote import Remote
from workers.rounds import EVALUATE

Metric = Literal["accuracy", "loss"]
"""Of evaluations: `correct` or `loss` over `count`; the highest accuracy is the best, the lowest loss."""


def prune(
    root: Root,
    keep: int,
    fence: Callable[[], bool],
    on_damage: Skipped | None = None,
    *,
    every: int = 0,
    best: Metric | None = None,
    known: set[str] | None = None,
) -> list[Root]:
    """Delete what is older than the newest `keep` verified checkpoints, but no exact one before a newer exact one is
    verified, and none that one of those that stay is a difference to; returns what was deleted.

    Beside those stay what is pinned, those of a step that is a multiple of `every`, and the one that was the best and is
    sound. `known` has the names of those that were verified before, and gets those that are: they are not read again.

    With fewer than `keep` sound ones nothing is deleted, and a damaged one only when it is older than those; `on_damage` is
    called for each that is met. Raises StaleWriter, before touching the next one, where `fence` says False; StorageError
    where the folder refuses, or has refused to have one read that stays: what that needs is not known.
    """
    if keep < 1:
        raise ValueError(f"keep {keep} would delete every checkpoint; write 1 or more")
    sound, has_exact = 0, False
    needed = set[str]()  # names of what those that stay are differences to
    verified = set[str]() if known is None else known
    deleted: list[Root] = []
    entries = list_checkpoints(root)

    def is_sound(entry: Entry[Root]) -> bool:
        """A chain is verified as a whole."""
        if entry.valid is not None or entry.path.name in verified:
            return entry.valid is not False
        checked = check(entry)
        if not checked.is_reached and (best is not None or isinstance(root, Remote)):
            raise StorageError(f"nothing is deleted: {checked.reason}")
        verified.update((entry.path.name, *entry.bases) if checked.valid else ())
        return bool(checked.valid)

    best_one = None
    if best is not None and len(entries) > keep:
        if unread := [entry for entry in entries if not entry.is_reached]:
            raise StorageError(f"nothing is deleted: {unread[0].reason}")  # it may be the best
        best_one = next((entry for entry in best_first(entries, best) if is_sound(entry)), None)
    for entry in entries:
        counts = sound < keep or (entry.tier == EXACT and not has_exact)
        is_chosen = entry is best_one or (every > 0 and entry.step > 0 and entry.step % every == 0)
        if counts and is_sound(entry):
            sound += 1
            has_exact |= entry.tier == EXACT
        elif counts and on_damage is not None:
            on_damage(entry)
        if counts or is_chosen or entry.path.name in needed or is_pinned(entry.path):
            if not entry.is_reached:
                raise StorageError(f"nothing is deleted: {entry.reason}")
            needed.update(entry.bases)
            continue
        if not fence():
            raise StaleWriter(f"{entry.path} was not deleted: the generation of its successor's writer is over")
        delete(entry.path)
        deleted.append(entry.path)
    return deleted


def best_first(entries: Sequence[Entry[Root]], metric: Metric) -> list[Entry[Root]]:
    """Those of `entries`, newest first, that were evaluated, the best one first.

    The newest one that can be read knows all evaluations of its job. That of a checkpoint is the last one of its step, or
    else of the last step before it that has one; of those that share one, the first one after it is meant. One that came to
    no number counts for no checkpoint.
    """
    values = _evaluations(entries, metric)
    sign = -1.0 if metric == "accuracy" else 1.0
    ranked: list[tuple[float, int, int]] = []
    for index, entry in enumerate(entries):
        evaluated = max((step for step in values if step <= entry.step), default=None)
        if entry.valid is not False and evaluated is not None and math.isfinite(values[evaluated]):
            ranked.append((sign * values[evaluated], entry.step - evaluated, index))
    return [entries[index] for _, _, index in sorted(ranked)]


def _evaluations(entries: Sequence[Entry[Root]], metric: Metric) -> dict[int, float]:
    """By step; the last one of each."""
    key = "correct" if metric == "accuracy" else "loss"
    for entry in entries:
        try:
            meta = plain.loads(json.dumps(read_manifest(entry.path).meta))
            rows = [(int(step), dict(sums)) for step, name, sums in meta["history"] if name == EVALUATE]
            return {
                step: float(sums[key]) / float(sums["count"]) for step, sums in rows if sums.get("count") and key in sums
            }
        except StorageError:
            raise
        except (CheckpointError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
            continue
    return {}
