"""How long a rank works on a sample, without what it waits for others (GM-14)."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median

STEPS = 20
"""That the median is over."""

IGNORED = 5
"""Steps at the beginning of a generation: they compile, connect and fetch."""


class BusyTime:
    """Of one rank: from the end of a step, or of whatever came between, to its arrival at the next one's reduce.

    Args:
        clock: seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=STEPS)
        self._begun: float | None = None
        self._ignore = IGNORED

    def begin_generation(self) -> None:
        """What was measured before stays: it is about this rank alone."""
        self._ignore, self._begun = IGNORED, None

    def begin(self) -> None:
        """Nothing is waited for from here on; what has begun already goes on."""
        if self._begun is None:
            self._begun = self._clock()

    def interrupt(self) -> None:
        """Something other than a step is done now; the next `begin` counts."""
        self._begun = None

    def arrive(self, samples: int) -> None:
        """At the reduce, with the gradients of so many samples."""
        begun, self._begun = self._begun, None
        if begun is None or not samples:
            return
        if self._ignore:
            self._ignore -= 1
            return
        self._recent.append((self._clock() - begun) / samples)

    @property
    def per_sample(self) -> float:
        """Seconds, the median of the last steps; NaN where there were none."""
        return median(self._recent) if self._recent else math.nan
