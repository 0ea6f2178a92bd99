"""What a donor gives to peers: the commits that it remembers, or a copy of its state (EP-9, EP-10).

A commit's tensors are those of the staging row that it was reduced in, until that row is used again; while peers ask,
copies are kept for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from workers.collectives.buckets import Staging
from workers.identity import NO_GENERATION, Generation, StateId
from workers.protocol import RankMachine
from workers.transfer import Commit, Offer, Snapshot

RETAIN_SECONDS = 30.0
RETAIN_BYTES = 512 << 20


class Recent:
    """Of one rank. `lock` is held round every change of the state machine that a peer could see half of."""

    def __init__(self, machine: RankMachine, staging: Staging, lock: threading.Lock) -> None:
        self._machine, self._staging, self._lock = machine, staging, lock
        self._commits: list[tuple[Commit, int | None]] = []  # with the staging row its tensors live in
        self._snapshot: Snapshot | None = None
        self._retain_until = 0.0
        self.wanted = threading.Event()
        """A peer waits for a copy of the state."""

    def take_row(self) -> None:
        """Use the other staging row: the commits whose tensors live in it are forgotten."""
        with self._lock:
            self._staging.flip()
            self._commits = [(c, s) for c, s in self._commits if s != self._staging.current]

    def forget(self) -> None:
        """The state is another's. Call it with the lock held."""
        self._commits.clear()
        self._snapshot = None

    def remember(self, commit: Commit, staging_row: int | None, *, servable: bool) -> None:
        """The state machine is told of a commit, and peers may have it, if it is `servable`.

        Args:
            staging_row: that its tensors live in; None where they are its own.
        """
        with self._lock:
            self._machine.committed(commit.after)
            if not servable:
                self._commits.clear()
                return
            if time.monotonic() > self._retain_until:
                self._commits = [(commit, staging_row)]
                self._snapshot = None
                return
            copies = [t.clone() for t in commit.tensors] if staging_row is not None else commit.tensors
            self._commits.append((Commit(commit.before, commit.after, commit.meta, copies), None))
            size = sum(t.nbytes for t in copies)
            while len(self._commits) > 1 and len(self._commits) * size > RETAIN_BYTES:
                self._commits.pop(0)

    def find_offer(self, have: StateId, generation: Generation = NO_GENERATION) -> Offer | None:
        """A donor's answer; called by the state server's threads. None: ask again shortly.

        A member that asks names its `generation`, and a donor that has not entered it yet has no answer: it may still
        have to learn that it was left behind.
        """
        with self._lock:
            if not self._machine.healed or self._machine.generation < generation:
                return None
            state = self._machine.state
            if have == state:
                self._retain()
                return Offer([], None, lambda: True)
            chain = self._chain(have)
            if chain is not None:
                self._retain()
                return chain
            snapshot = self._snapshot
            if snapshot is not None and (snapshot.state == state or self._chain(snapshot.state) is not None):
                self._retain()
                return Offer([], snapshot, lambda: True)
            self.wanted.set()
            return None

    def serve_snapshot(self, capture: Callable[[], Snapshot]) -> None:
        """Called by the rank's own thread at poll points: copy the state where a peer waits for it."""
        if self.wanted.is_set() and self._machine.healed:
            snapshot = capture()
            with self._lock:
                self._snapshot = snapshot
                self._retain()
                self.wanted.clear()

    def _chain(self, have: StateId) -> Offer | None:
        for index, (commit, _) in enumerate(self._commits):
            if commit.before == have:
                rest = self._commits[index:]
                uses = {s: self._staging.uses[s] for _, s in rest if s is not None}
                return Offer([c for c, _ in rest], None, partial(self._unused_since, uses))
        return None

    def _unused_since(self, uses: dict[int, int]) -> bool:
        """True where no later step has begun to write into these staging rows."""
        return all(self._staging.uses[s] == n for s, n in uses.items())

    def _retain(self) -> None:
        self._retain_until = time.monotonic() + RETAIN_SECONDS
