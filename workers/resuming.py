"""The state with which a job begins: the newest sound checkpoint of its folder, where it fits the model and the plan."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, TypeVar

from quantarion.v1 import control_pb2 as pb

from workers.checkpoint import CheckpointError, Entry, check_fits, load_newest, set_aside
from workers.checkpoint.errors import StorageError
from workers.checkpoint.manifest import EXACT
from workers.checkpoint.places import MANIFEST, Where, checkpoints_of, read_bytes
from workers.collectives.exchange import Abandoned
from workers.config import TrainingConfig
from workers.errors import TaskError
from workers.identity import NOWHERE, StateId, next_lineage
from workers.paths import DISTRUSTED
from workers.rank import Rank
from workers.state import Captured, ReplicatedState
from workers.training_plan import another_plan, plan_of
from workers.transfer import Snapshot

PAUSES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds between looks for a checkpoint in storage that refuses."""

Found = TypeVar("Found")


class Finder:
    """Looks for the state of a job; on the rank of which a gang without a state takes it."""

    def __init__(self, rank: Rank, replica: ReplicatedState, config: TrainingConfig) -> None:
        self._rank, self._replica, self._config = rank, replica, config
        self._root = checkpoints_of(rank.folder)
        self._skipped_told: set[str] = set()

    def find(self, at_most: int | None = None) -> Snapshot | None:
        """The newest sound checkpoint of this job's folder, or None where there is none (a fresh start).

        Args:
            at_most: those of later steps are wrong, and put aside.

        Raises:
            TaskError: it does not fit the model or the plan.
        """
        self._rank.page.set_busy(True)  # for as long as the storage takes
        try:
            newest = self._newest(self._trusted(at_most))
        finally:
            self._rank.page.set_busy(False)
        if newest is None:
            return None
        entry, captured = newest
        self._check(entry, captured)
        self._tell("resumed", path=entry.path.name, tier=entry.tier, step=entry.step)
        state, previous = (StateId.of(captured.meta[name]) for name in ("state_id", "previous_id"))
        if entry.tier != EXACT:
            return Snapshot(self._patiently(lambda: rounded(state, entry.path)), NOWHERE, captured)
        return Snapshot(state, previous, captured)

    def _newest(self, at_most: int | None) -> tuple[Entry[Any], Captured] | None:
        tier = EXACT if self._exact_only() else None

        def look() -> tuple[Entry[Any], Captured] | None:
            if at_most is not None:
                set_aside(self._root, at_most)
            return load_newest(self._root, tier, lambda entry: self._tell_skipped(str(entry.reason)), at_most)

        return self._patiently(look)

    def _check(self, entry: Entry[Any], captured: Captured) -> None:
        name = entry.path.name
        if (other := another_plan(captured.meta.get("plan"), plan_of(self._config))) is not None:
            raise TaskError(f"{name} {other}, or start afresh without --resume", exit_code=5)
        if "groups" not in captured.meta:
            raise TaskError(f"{name} holds weights, but no training; start afresh without --resume", exit_code=5)
        try:
            attached = tuple(f"{prefix}." for prefix in self._replica.attached)
            check_fits(captured, self._replica.expected(), optional=("optimizer.", "kept.", *attached))
            self._replica.check_settings(captured)
        except (CheckpointError, ValueError) as error:
            raise TaskError(f"{name}: {error}; start afresh without --resume", exit_code=5) from None

    def _patiently(self, look: Callable[[], Found]) -> Found:
        """What `look` finds, once the storage answers. Raises TaskError where it does not for a minute: a fresh start, or
        one from an older checkpoint, is not what was asked for."""
        for pause in (*PAUSES, None):
            try:
                return look()
            except StorageError as error:
                self._tell_skipped(str(error))
                if pause is None:
                    raise TaskError(f"{error}; start again with --resume once it answers", exit_code=4) from None
                until = time.monotonic() + pause
                while time.monotonic() < until:
                    if self._rank.must_stop():
                        raise Abandoned from None  # the next generation looks again
                    time.sleep(min(0.05, pause))
        raise AssertionError

    def _trusted(self, at_most: int | None) -> int | None:
        """The last step whose checkpoint may be taken, if an earlier start of the job has left word of that too."""
        try:
            after = int(json.loads((self._rank.folder / "control" / DISTRUSTED).read_text())["after"])
        except (OSError, ValueError, KeyError):
            return at_most
        return after if at_most is None else min(after, at_most)

    def _exact_only(self) -> bool:
        if self._config.reproducible:  # a rounded state leads to other bits
            return True
        try:
            return bool(json.loads((self._rank.folder / "job.json").read_text()).get("exact"))
        except (OSError, ValueError):
            return False

    def _tell_skipped(self, reason: str) -> None:
        """Once for each: a gang that is formed again looks through the same folder."""
        if reason not in self._skipped_told:
            self._skipped_told.add(reason)
            self._tell("checkpoint_skipped", reason=reason)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._rank.post(pb.RankReport(worker=self._rank.worker, note=pb.Note(kind=kind, json=json.dumps(fields))))


def rounded(state: StateId, path: Where) -> StateId:
    """The id of what a lossy checkpoint made of `state`: equal ids mean equal bytes, and these are others."""
    content = int.from_bytes(blake2b(read_bytes(path / MANIFEST), digest_size=8).digest(), "big")
    return state._replace(lineage=next_lineage(state, state.step, state.round, state.generation, content))
