"""Saving beside the training thread: one low-priority thread, patient with a full disk (CK-3, CK-7)."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workers.checkpoint.catalog import Entry
from workers.checkpoint.chain import Chain
from workers.checkpoint.errors import CheckpointError, StaleWriter, StorageError
from workers.checkpoint.joint import HandedIn, Joint
from workers.checkpoint.manifest import EXACT
from workers.checkpoint.places import Where
from workers.checkpoint.remote import Remote, io_thread
from workers.checkpoint.retention import Metric, prune
from workers.checkpoint.writer import Published, hand_in, save
from workers.resources import disk_share
from workers.state import Captured

logger = logging.getLogger("quantarion.checkpoint")

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
NICENESS = 10

LEAST = 2
"""Checkpoints that stay however full the disk is, with the newest exact one: whether ranks differ is known a little later
than the newest one is written, and then the job goes back to the one before (GM-17)."""

Outcome = Published[Any] | HandedIn | CheckpointError
Done = Callable[[Outcome], None]
Release = Callable[[Mapping[str, torch.Tensor]], None]
Fence = Callable[[], bool]


class BackgroundWriter:
    """Saves submitted states one at a time; training never waits for it.

    `on_done` is called in the writer's thread: with Published for each state that became visible, with the error of
    each attempt that failed (a StorageError is tried again, after 1, 2, 4, … 60 seconds, until a newer state arrives
    or the writer is closed), and with an error where old checkpoints could not be pruned after that. With `keep`, the
    newest that many sound checkpoints stay, and the newest exact one; fewer after `make_room`. `every` and `best` are those
    of `prune`.

    What several ranks write together is tried once, and pushes nothing out, nor does anything push it out: the others count
    on it.
    """

    def __init__(
        self,
        root: Where,
        *,
        job: str,
        on_done: Done,
        keep: int | None = None,
        every: int = 0,
        best: Metric | None = None,
        first_retry_seconds: float = FIRST_RETRY_SECONDS,
    ) -> None:
        self._root, self._job, self._on_done, self._keep = root, job, on_done, keep
        self._every, self._best = every, best
        self._verified = set[str]() if isinstance(root, Remote) else None
        """What a store holds is fetched once to be verified, what is on a disk is read again and again: disks lose bits."""
        self._first_retry_seconds = first_retry_seconds
        self._chain = Chain()
        self._changed = threading.Condition()
        self._queued: deque[_Order] = deque()
        self._is_writing = False
        self._is_closed = False
        self._scarce_until, self._above = -math.inf, 1.0
        self._to_prune: Fence | None = None  # by which fence, where it is asked for
        self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
        self._thread.start()

    def submit(
        self,
        state: Captured,
        *,
        step: int,
        generation: tuple[int, int],
        lineage: int,
        world: int,
        fence: Callable[[], bool],
        rounds: int = 0,
        tier: str = EXACT,
        weights: str = "int8",
        whole_every: int = 1,
        release: Release | None = None,
        joint: Joint | None = None,
        on_done: Done | None = None,
    ) -> None:
        """Queue a state, which from now on belongs to the writer, until it calls `release` with its tensors, in any thread.
        Returns at once.

        One still queued is dropped; but where that is exact and the new one is not, the new one is. With `joint` only this
        rank's share of it is written; `on_done` hears of this state in place of the writer's.
        """

        def write() -> Published[Any] | HandedIn:
            common: dict[str, Any] = {"step": step, "generation": generation, "rounds": rounds, "tier": tier}
            common |= {"weights": weights, "chain": self._chain, "whole_every": whole_every}
            if joint is not None and not joint.leads:
                return hand_in(state, self._root, joint, **common)
            rest: dict[str, Any] = {"job": self._job, "lineage": lineage, "world": world, "fence": fence, "joint": joint}
            return save(state, self._root, **common, **rest)

        with self._changed:
            if self._is_closed:
                raise RuntimeError("the checkpoint writer is closed")
            let_go = partial(release or _nothing, state.tensors)
            order = _Order(write, fence, tier == EXACT, let_go, on_done or self._on_done, joint)
            dropped = self._queue(order)
            self._changed.notify_all()
        if dropped is not None:
            dropped.release()

    def _queue(self, order: _Order) -> _Order | None:
        """Returns the one that is not to be written after all."""
        last = self._queued[-1] if self._queued else None
        if last is None or last.joint is not None or order.joint is not None:
            self._queued.append(order)
            return None
        if last.is_exact and not order.is_exact:
            return order
        self._queued[-1] = order
        return last

    @property
    def is_busy(self) -> bool:
        """Whether there is anything that it has not finished."""
        with self._changed:
            return self._is_asked or self._is_writing

    def make_room(self, seconds: float, above: float, fence: Fence) -> None:
        """The disk is nearly full: for so long, and while more than the share `above` of it is used, no more checkpoints
        are kept than there have to be. Those that are too many go now, and others as new ones come. Returns at once."""
        with self._changed:
            now = time.monotonic()
            if now >= self._scarce_until and not self._is_closed:  # else they have gone already
                self._to_prune = fence
            self._scarce_until, self._above = now + seconds, above
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Until nothing is queued, written, pruned or to be tried again; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_asked and not self._is_writing, timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Finish the write in progress and the one queued, without further retries; False after `timeout` seconds."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        _lower_priority(threading.get_native_id())
        if isinstance(self._root, Remote) and (transfers := io_thread()) is not None:
            _lower_priority(transfers)
        while (task := self._next()) is not None:
            try:
                task()
            except Exception:
                logger.exception("the checkpoint writer met a bug; it goes on with the next state")
            finally:
                with self._changed:
                    self._is_writing = False
                    self._changed.notify_all()

    @property
    def _is_asked(self) -> bool:
        """For anything."""
        return bool(self._queued) or self._to_prune is not None

    def _next(self) -> Callable[[], None] | None:
        """To prune comes first: it makes room for what is to be saved. None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_asked or self._is_closed)
            fence = self._to_prune
            self._is_writing = self._is_asked
            if fence is not None:
                self._to_prune = None
                return partial(self._prune, fence)
            return partial(self._finish, self._queued.popleft()) if self._queued else None

    def _finish(self, order: _Order) -> None:
        try:
            self._write(order)
        except Exception:
            bug = CheckpointError("the checkpoint was not written because of a bug; the log has its traceback")
            self._report(bug, order.on_done)
            raise
        finally:
            order.release()

    def _write(self, order: _Order) -> None:
        pause = self._first_retry_seconds
        while True:
            try:
                published = order.write()
                break
            except CheckpointError as error:
                self._report(error, order.on_done)
                if isinstance(error, StorageError) and self._is_scarce and order.leads:
                    self._prune(order.fence)  # else it is refused again
                is_final = order.joint is not None or not isinstance(error, StorageError)
                if is_final or self._is_superseded_within(pause):
                    return
                pause = min(2 * pause, LONGEST_RETRY_SECONDS)
        self._report(published, order.on_done)
        if order.leads:
            self._prune(order.fence)

    @property
    def _is_scarce(self) -> bool:
        return time.monotonic() < self._scarce_until

    def _prune(self, fence: Fence) -> None:
        if self._keep is None:
            return
        try:
            self._delete(self._keep, fence)
            for keep in range(self._keep - 1, LEAST - 1, -1):
                share = disk_share(self._root) if isinstance(self._root, Path) else None
                if not self._is_scarce or (share or 0.0) <= self._above:
                    return
                self._delete(keep, fence)
        except StaleWriter as error:
            logger.info("%s", error)  # the writer of the new generation deletes it
        except CheckpointError as error:
            self._report(error)

    def _delete(self, keep: int, fence: Fence) -> None:
        chosen: dict[str, Any] = {"every": self._every, "best": self._best, "known": self._verified}
        prune(self._root, keep, fence, self._on_damage, **chosen)

    def _on_damage(self, entry: Entry) -> None:
        """The next one in the qins tier is whole: it may have been a difference to that one."""
        if entry.tier != EXACT:
            self._chain.forget()

    def _is_superseded_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._queued) or self._is_closed, seconds)

    def _report(self, outcome: Outcome, on_done: Done | None = None) -> None:
        try:
            (on_done or self._on_done)(outcome)
        except Exception:
            logger.exception("the callback of the checkpoint writer raised")


class _Order:
    """A state to save, bound to how, the fence of its generation, and what is called when nobody needs it any more."""

    def __init__(
        self,
        write: Callable[[], Published[Any] | HandedIn],
        fence: Fence,
        is_exact: bool,
        release: Callable[[], None],
        on_done: Done,
        joint: Joint | None,
    ) -> None:
        self.write, self.fence, self.is_exact, self.release = write, fence, is_exact, release
        self.on_done, self.joint = on_done, joint
        self.leads = joint is None or joint.leads


def _nothing(tensors: Mapping[str, torch.Tensor]) -> None:
    """Who saves once only keeps no memory for it."""


def _lower_priority(thread: int) -> None:
    """Only of this thread: Linux keeps a niceness per thread; elsewhere nothing is changed."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, thread, NICENESS)
