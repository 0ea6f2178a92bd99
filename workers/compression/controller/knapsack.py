"""One error budget for all buckets: the knapsack of L-GreCo (Markov et al., MLSys 2024), by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

UNITS = 4096
"""Of the budget. An error counts as whole units, rounded up."""

Item = tuple[float, float]
"""Seconds, and the error in the budget's unit."""


def least_lossy(items: Sequence[Sequence[Item]], hidden: Sequence[float], budget: float, slack: float) -> list[int] | None:
    """Of each bucket's items the index of one, so that the errors together are within `budget`.

    Among those selections the exposed time, that of `forecast.exposed`, is within 1/(1 − slack) of the shortest, and
    the error, in units, the least of which that is true. None where no selection is within the budget.

    finish[b], after each bucket, is when the exchange can have ended with at most b units of error; the last bucket ends
    no later if one before it ends earlier, so the best of each b is all that has to be remembered.
    """
    finish = np.full(UNITS + 1, -np.inf)
    taken = []
    for options, spare in zip(items, hidden, strict=True):
        begin = np.maximum(finish, -spare)
        finish = np.full(UNITS + 1, np.inf)
        which = np.full(UNITS + 1, -1, dtype=np.int64)
        for index, (duration, error) in enumerate(options):
            cost = _units(error, budget)
            if cost > UNITS:
                continue
            candidate = begin[: UNITS + 1 - cost] + duration
            better = candidate < finish[cost:]
            finish[cost:][better] = candidate[better]
            which[cost:][better] = index
        taken.append(which)
    if not math.isfinite(finish[UNITS]):
        return None
    exposed = np.maximum(finish, 0.0)
    left = int(np.argmax(exposed * (1 - slack) <= exposed[UNITS]))
    chosen = []
    for which, options in zip(reversed(taken), reversed(items), strict=True):
        index = int(which[left])
        chosen.append(index)
        left -= _units(options[index][1], budget)
    return chosen[::-1]


def _units(error: float, budget: float) -> int:
    if error <= 0:
        return 0
    return math.ceil(min(error / budget, 2.0) * UNITS) if budget > 0 else UNITS + 1
