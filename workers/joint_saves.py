"""Which states the ranks save together, each of them a share (CK-4).

It follows from what is committed with a step (workers/votes.py): so all of them save the same states, also those whose
writers are not of the same speed. A state that is due while a writer is busy is not saved; the first one is after which
none is. What could not be written is tried again, with a newer state, after 1, 2, 4, … 60 seconds; after three failures in
a row, or where a writer is busy for ten minutes, the first of the ring saves by itself, until the next generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from workers.checkpoint.background import FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS, Outcome
from workers.checkpoint.errors import CheckpointError, StaleWriter
from workers.checkpoint.joint import LONGEST_WAIT, Joint
from workers.checkpoint.manifest import EXACT, QINS
from workers.checkpoint.writer import Published
from workers.config import CheckpointConfig
from workers.votes import NO_VOTES, Votes

PATIENCE = 3
"""Failures in a row."""


class JointSaves:
    """Of one rank; `heard` is called in the writer's thread, everything else in the rank's."""

    def __init__(self, config: CheckpointConfig, is_busy: Callable[[], bool]) -> None:
        """`is_busy`: whether this rank's writer is."""
        self._config, self._is_busy = config, is_busy
        self.writers = 1
        """How many ranks write the next state that is due; where it is one, nothing here is used."""
        self._leads = False
        self._due: str | None = None  # the tier, where it was due and has not been saved
        self._decided: tuple[int, str | None] = 0, None
        self._said = NO_VOTES
        self._current: Joint | None = None
        self._failed = False
        self._again: tuple[str, float] | None = None  # the tier, and when, monotonic seconds
        self._failures = 0
        self._late_since: float | None = None  # something is due, and a writer is busy; monotonic seconds
        self._generations = 0

    def begin_generation(self, leads: bool) -> bool:
        """What was under way is over. Returns whether an exact state was due and has not been begun."""
        is_owed = self._due == EXACT or (self._again is not None and self._again[0] == EXACT)
        self.writers, self._leads, self._due, self._decided = 1, leads, None, (0, None)
        self._said, self._current, self._failed, self._again, self._failures = NO_VOTES, None, False, None, 0
        self._late_since = None
        self._generations += 1
        return is_owed

    def vote(self, is_asked: bool) -> Votes:
        """What this rank says with a step, as often as it is asked. `is_asked`: an exact one is wanted after it."""
        now, is_hopeless = time.monotonic(), self._failures >= PATIENCE
        is_hung = self._late_since is not None and now - self._late_since > LONGEST_WAIT
        again = self._again[0] if self._again is not None and (is_hopeless or now >= self._again[1]) else None
        is_asked = is_asked and (self._again is None or again is not None)  # else it would be asked without a pause
        vote = Votes(
            busy=float(self._is_busy()),
            failed=float(self._failed),
            exact=float(self._leads and (is_asked or again == EXACT)),
            qins=float(self._leads and again == QINS),
            alone=float(self._leads and (is_hopeless or is_hung)),
        )
        self._said = Votes(*map(max, self._said, vote))
        return vote

    def decide(self, step: int, votes: Votes) -> str | None:
        """The tier in which the ranks save the state after `step`, by the sums of their votes; None: they do not."""
        if self._decided[0] != step:
            self._decided = step, self._decide(step, votes)
        return self._decided[1]

    def _decide(self, step: int, votes: Votes) -> str | None:
        said, self._said = self._said, NO_VOTES
        if said.failed:
            self._failed = False
        if said.exact or said.qins:
            self._again = None
        if votes.failed:
            self.give_up()
        tiers = (EXACT if votes.exact else None, QINS if votes.qins else None, self._config.due(step), self._due)
        wanted = next((tier for tier in (EXACT, QINS) if tier in tiers), None)
        is_late = bool(wanted and votes.busy and not votes.alone)
        self._due = wanted if is_late else None
        self._late_since = (self._late_since or time.monotonic()) if is_late else None
        return None if is_late else wanted

    def begun(self, joint: Joint) -> Callable[[str, Outcome], bool]:
        """This rank's writer has its share. Returns `heard`, for what becomes of it."""
        self._current = joint
        return partial(self.heard, self._generations)

    def give_up(self) -> None:
        """Nobody waits any more for the shares of what is under way."""
        if self._current is not None:
            self._current.give_up()

    def heard(self, generation: int, tier: str, outcome: Outcome) -> bool:
        """What became of what was begun in that of the generations. False where that is over."""
        if generation != self._generations:
            return False
        self._hear(tier, outcome)
        return True

    def _hear(self, tier: str, outcome: Outcome) -> None:
        if isinstance(outcome, StaleWriter):
            self._failed |= self._leads  # where the generation goes on, the others wait for it
            return
        if not isinstance(outcome, CheckpointError):
            self._failures = 0
            self._failed |= isinstance(outcome, Published) and not outcome.new  # so nobody needs the others' shares
            return
        self._failed = True
        if self._leads:
            pause = min(FIRST_RETRY_SECONDS * 2.0**self._failures, LONGEST_RETRY_SECONDS)
            self._failures += 1
            is_exact = tier == EXACT or (self._again is not None and self._again[0] == EXACT)
            self._again = EXACT if is_exact else tier, time.monotonic() + pause
