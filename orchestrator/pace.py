"""How fast the job gets on: what the beats say of steps, and the limits learned from it (EP-8, EP-15)."""

from __future__ import annotations

from dataclasses import dataclass

MEASURE_SECONDS = 0.4
"""Shortest time over which steps are counted: the beats of two hosts may come right after one another."""

BEAT_SECONDS = 0.5
"""So long after its commit a step is heard of at the latest."""

ORDER_SECONDS = 0.15
"""For an order to arrive."""

HASTE = 0.2
"""Share of its usual time by which a step may be shorter."""


@dataclass
class Pace:
    """The highest step seen in shared memory, and how long steps take. It never decides an authority (EP-9)."""

    step: int = 0
    step_at: float = 0.0
    resumed_at: float = 0.0
    progress_at: float = 0.0  # of anything at all
    longest_step: float = 0.0
    step_seconds: float = 0.0  # mean, recent
    _mark: tuple[int, float] | None = None  # step and time from which the next mean is taken

    def saw(self, step: int, longest_step: float, now: float) -> None:
        """From a beat."""
        self.longest_step = max(self.longest_step, longest_step)
        if step <= self.step:
            return
        self.step, self.step_at, self.progress_at = step, now, now
        if self._mark is None:
            self._mark = (step, now)
        elif now - self._mark[1] >= MEASURE_SECONDS:
            recent = (now - self._mark[1]) / (step - self._mark[0])
            self.step_seconds = recent if not self.step_seconds else 0.7 * self.step_seconds + 0.3 * recent
            self._mark = (step, now)

    def resumed(self, now: float) -> None:
        """Training goes on; the pause before is no measure of a step."""
        self.step_at, self.resumed_at, self._mark = now, now, None

    def begins_anew(self) -> None:
        """The line starts again, perhaps far behind."""
        self.step, self._mark = 0, None

    def soon(self, now: float) -> int:
        """A step that no rank has passed yet when an order arrives, so that a planned change discards nothing; or 0."""
        if not self.step or not self.step_seconds:
            return 0
        since = max(0.0, now - self.step_at) + min(self.step_seconds, BEAT_SECONDS + HASTE * self.step_seconds)
        return self.step + int((since + ORDER_SECONDS) / self.step_seconds) + 1

    def until(self, step: int, now: float) -> float:
        """Seconds until `step`, which `soon` has named, is probably committed."""
        return max(0.0, (step - self.step) * self.step_seconds - (now - self.step_at))

    @property
    def answer_limit(self) -> float:
        """Seconds a rank has to answer PREPARE."""
        return max(5.0, 5.0 * self.longest_step)

    @property
    def patience(self) -> float:
        """Seconds in which nothing at all may happen before ranks are asked."""
        return 60.0 if not self.longest_step else max(10.0, 5.0 * self.longest_step)
