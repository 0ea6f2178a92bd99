"""Which codec to try on which bucket, beside the exchange, to know what it would keep and cost (CC-17)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from workers.compression.choice import NONE, Choice, Plan
from workers.compression.controller.candidates import CANDIDATES, RIVAL
from workers.compression.controller.wire import BucketFacts, transfers

FIRST_STEPS = 12
"""Steps in which everything is tried once, before the first decision."""

EVERY = 5
SELDOM_EVERY = 20
"""After that, in one step of so many something is tried again, if it is due; where next to nothing is lost. There steps are
short, and nothing hangs on errors of yesterday: a codec is chosen by them only when a link has become slower."""

DUE_STEPS = 100
SELDOM_STEPS = 1000
IN_USE_STEPS = 20
"""Steps after which a candidate is due again; one that would not save time as the link is; one that is in force."""

PATIENCE = 20
"""Steps after which what was asked for and not reported is asked for again."""


class Pair(NamedTuple):
    """A bucket and a candidate for it."""

    bucket: int
    choice: Choice


class Shadows:
    """What has been tried, and when.

    Args:
        saves: predicted seconds that a pair saves over `none` as the link is.
    """

    def __init__(self, buckets: Sequence[BucketFacts], saves: Callable[[Pair], float]) -> None:
        self._saves = saves
        self._tried: dict[Pair, int] = {}
        self._asked: dict[Pair, int] = {}
        self._step = 0
        self._left = 0
        self.begin_generation(buckets)

    def begin_generation(self, buckets: Sequence[BucketFacts]) -> None:
        """There may be other hosts from now on: another choice may send less than `none`."""
        self._pairs = [
            Pair(bucket, choice)
            for bucket, facts in enumerate(buckets)
            for choice in CANDIDATES
            if facts.hosts > 1 and sum(transfers(facts, choice)) < sum(transfers(facts, NONE))
        ]
        self._untried = set(self._pairs) - self._tried.keys()
        self._per_step = math.ceil(len(self._pairs) / FIRST_STEPS)

    def tried(self, pair: Pair) -> None:
        """It was, whether it was asked for or not."""
        self._tried[pair] = self._step
        self._untried.discard(pair)

    def next(self, step: int, plan: Plan) -> Pair | None:
        """The next to be tried in `step`, where `plan` is in force; None when that is enough for this step."""
        if step != self._step:
            self._step, self._left = step, self._per_step
        every = SELDOM_EVERY if all(choice in (NONE, RIVAL) for choice in plan) else EVERY
        if self._left <= 0 or (step % every and not self._untried):
            return None
        waiting = [pair for pair in self._pairs if step - self._asked.get(pair, -PATIENCE) >= PATIENCE]
        new = [pair for pair in waiting if pair not in self._tried]
        self._left -= 1
        if new:
            return self._ask(max(new, key=self._saves))
        self._left = 0
        if step % every:
            return None
        oldest_first = sorted(waiting, key=lambda pair: self._tried[pair])
        due = next((pair for pair in oldest_first if self._is_due(pair, plan)), None)
        return self._ask(due) if due else None

    def _ask(self, pair: Pair) -> Pair:
        self._asked[pair] = self._step
        return pair

    def _is_due(self, pair: Pair, plan: Plan) -> bool:
        age = self._step - self._tried[pair]
        if age >= IN_USE_STEPS and plan and plan[pair.bucket] == pair.choice:
            return True
        return age >= SELDOM_STEPS or (age >= DUE_STEPS and self._saves(pair) > 0)
