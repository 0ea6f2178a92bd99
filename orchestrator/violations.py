"""Messages of a host that were refused: when they are told of, and when they are evidence against it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from orchestrator.messages import Reason, Refusal

EVIDENCE_AT = 10
"""Refused messages within `WINDOW_SECONDS`, for PROTOCOL_VIOLATION. One may be of a moment, such as a page of shared memory
that was read while it was written; so many are of an agent or a rank that is broken."""

WINDOW_SECONDS = 60.0

TELL_SECONDS = 60.0
"""Between two events about messages of a host that are refused for the same reason."""


@dataclass
class _Host:
    times: deque[float] = field(default_factory=deque)  # of the last ones, in seconds
    told_at: dict[Reason, float] = field(default_factory=dict)
    untold: dict[Reason, int] = field(default_factory=dict)


class Violations:
    """Of the hosts of one job. Times are seconds of one clock that only rises."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}

    def add(self, host: str, refusal: Refusal, now: float) -> dict[str, object] | None:
        """One more. What is to be told now of it and of those that were not told, if anything is."""
        seen = self._hosts.setdefault(host, _Host())
        seen.times.append(now)
        if len(seen.times) > EVIDENCE_AT:
            seen.times.popleft()
        reason = refusal.reason
        count = seen.untold[reason] = seen.untold.get(reason, 0) + 1
        if now - seen.told_at.get(reason, -TELL_SECONDS) < TELL_SECONDS:
            return None
        seen.told_at[reason], seen.untold[reason] = now, 0
        return {"host": host, "reason": reason.value, "message": refusal.text, "count": count}

    def is_evidence(self, host: str) -> bool:
        """Its last messages were refused one soon after the other. Asked once of each lot: after that they begin anew."""
        seen = self._hosts.get(host)
        if seen is None or len(seen.times) < EVIDENCE_AT or seen.times[-1] - seen.times[0] > WINDOW_SECONDS:
            return False
        seen.times.clear()
        return True
