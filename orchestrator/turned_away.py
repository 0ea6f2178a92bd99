"""Who was turned away, by the check that it has not passed: always counted, told so seldom that no flood fills a disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

TELL_SECONDS = 60.0
"""Between two tellings of one check."""

_LONGEST = 300
"""Characters of a message: what a stranger says of himself may be long."""


class Check(StrEnum):
    """What a peer has to pass, in this order."""

    ROOM = "room"
    """Not too many others are shaking hands."""
    TLS = "tls"
    """It speaks TLS, and not plaintext."""
    HANDSHAKE = "handshake"
    """It goes through with the handshake, in time."""
    CERTIFICATE = "certificate"
    """It shows one."""
    AUTHORITY = "authority"
    """It is signed by an authority of this job."""
    EXPIRY = "expiry"
    """It is good at this time."""
    PURPOSE = "purpose"
    """It is for one who asks: the coordinator's is not."""
    IDENTITY = "identity"
    """It names an agent or an operator of this job; and what the peer says of itself is what it names."""
    ROLE = "role"
    """What it asks for is for its role."""


@dataclass(frozen=True)
class TurnedAway:
    """One peer that was."""

    check: Check
    address: str  # it came from
    message: str  # one sentence


@dataclass
class _Told:
    """Of one check."""

    at: float
    since: int = 0  # turned away since then
    last: TurnedAway | None = None  # of those


class Tally:
    """Counts and tells.

    Args:
        tell: takes the fields of an event: check, address, message, and `times`, how many it stands for.
        now: Unix seconds.
    """

    def __init__(self, tell: Callable[[dict[str, object]], None], now: Callable[[], float]) -> None:
        self._tell, self._now = tell, now
        self._told: dict[Check, _Told] = {}
        self.counts: dict[Check, int] = {}

    def add(self, peer: TurnedAway) -> None:
        """The first one of a check is told at once, the others together from time to time."""
        self.counts[peer.check] = self.counts.get(peer.check, 0) + 1
        told = self._told.get(peer.check)
        if told is None:
            self._told[peer.check] = _Told(self._now())
            self._say(peer, 1)
            return
        told.since, told.last = told.since + 1, peer
        self.catch_up()

    def catch_up(self, *, all_of_them: bool = False) -> None:
        """Tell what has waited for long enough, or all that waits."""
        now = self._now()
        for told in self._told.values():
            if told.last is not None and (all_of_them or now - told.at >= TELL_SECONDS):
                last, times = told.last, told.since
                told.at, told.since, told.last = now, 0, None
                self._say(last, times)

    def _say(self, peer: TurnedAway, times: int) -> None:
        message = peer.message[:_LONGEST]
        self._tell({"check": peer.check.value, "address": peer.address, "message": message, "times": times})
