"""In which steps a rank tells the digest of its state (GM-17).

Digests are compared where all members tell one of the same state. Each rank has an interval of its own; intervals are
multiples of one another, so that every rank tells one where the rarest does.
"""

from __future__ import annotations

INTERVALS = (1, 5, 25, 100, 500, 2500, 12500, 62500)
"""Steps; each divides the next."""

USUAL = 100
LONGEST_SECONDS = 60.0
"""After so long there is a digest also where fewer than `USUAL` steps were made."""

SHARE = 0.01
"""Of the time of training, at most, that digests may take, as long as there is one in `RAREST_SECONDS`."""

RAREST_SECONDS = 600.0


class DigestRhythm:
    """Of one rank."""

    def __init__(self) -> None:
        self.interval = USUAL

    def is_due(self, step: int) -> bool:
        return step % self.interval == 0

    def took(self, digest_seconds: float, step_seconds: float) -> None:
        """A digest takes so long, and a step."""
        self.interval = INTERVALS[0]
        for interval in INTERVALS[1:]:
            seconds = interval * step_seconds
            usual = interval <= USUAL and seconds <= LONGEST_SECONDS
            dear = digest_seconds > SHARE * self.interval * step_seconds and seconds <= RAREST_SECONDS
            if not usual and not dear:
                return
            self.interval = interval
