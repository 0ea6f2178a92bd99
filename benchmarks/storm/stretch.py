"""Stretches of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stretch:
    """In Unix seconds."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def has(self, t: float) -> bool:
        return self.begin < t <= self.end

    def shares(self, begin: float, end: float) -> float:
        """Seconds from `begin` to `end` that lie in it."""
        return max(0.0, min(end, self.end) - max(begin, self.begin))
