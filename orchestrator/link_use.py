"""How the links of each host carry what ranks send, as most of those see it who have a link with it (section 5, GM-30).

A link that is slow, or loses, does not say which of its ends is to blame: that shows in what a host's links have in common.
So what is told of a host is not what one peer has seen, but what half of its peers have, and three of them where there are
that many. The sender's kernel has measured it: how long it took until the other end had acknowledged what was sent, without
the time in which that had no room. In a ring all go at the pace of the slowest link; by this measure only that one is slow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from quantarion.v1 import control_pb2 as pb

LEAST_BYTES = 1 << 20
"""In a window, to say how fast a link is: of less, the time is that of round trips."""

LEAST_SECONDS = 0.05
"""That it took: the kernel counts them in ticks of 1 to 10 ms."""

LEAST_SEGMENTS = 1000
"""To say how many of them it loses."""

REPORTERS = 3
"""Peers that have to agree, where there are so many (GM-30). One alone is believed where there is no other."""


class Links(NamedTuple):
    """Of one host in one window; None where too few can say.

    Attributes:
        throughput: bytes per second of a connection while there was something to send.
        loss: share of segments that were sent again, 0 to 1.
    """

    throughput: float | None = None
    loss: float | None = None


class _Sums(NamedTuple):
    """As a LinkUse."""

    segments: int = 0
    retransmitted: int = 0
    nbytes: int = 0
    seconds: float = 0.0


Told = dict[str, _Sums]
"""By address of the peer."""


class LinkWatch:
    """Of one job. Agents tell sums since they began, so a beat that is lost costs nothing."""

    def __init__(self) -> None:
        self._now: dict[str, Told] = {}
        self._before: dict[str, Told] = {}  # at the end of the window before

    def heard(self, host: str, links: Iterable[pb.LinkUse]) -> None:
        if told := {each.address: _Sums(each.segments, each.retransmitted, each.bytes, each.seconds) for each in links}:
            self._now[host] = told

    def window(self, addresses: Mapping[str, str]) -> dict[str, Links]:
        """Since the window before.

        Args:
            addresses: of the hosts that train. Where two share one, their links cannot be told apart.
        """
        count = Counter(addresses.values())
        hosts = {address: host for host, address in addresses.items() if count[address] == 1}
        rates: dict[str, dict[str, float]] = {host: {} for host in addresses}
        losses: dict[str, dict[str, float]] = {host: {} for host in addresses}
        for host in addresses:
            for address, sums in self._sent(host).items():
                peer = hosts.get(address, host)
                if peer == host:
                    continue
                if sums.nbytes >= LEAST_BYTES and sums.seconds >= LEAST_SECONDS:
                    _note(rates, host, peer, sums.nbytes / sums.seconds, min)
                if sums.segments >= LEAST_SEGMENTS:
                    _note(losses, host, peer, sums.retransmitted / sums.segments, max)
        others = len(addresses) - 1
        return {
            host: Links(
                seen_by_most(sorted(rates[host].values()), others),
                seen_by_most(sorted(losses[host].values(), reverse=True), others),
            )
            for host in addresses
        }

    def _sent(self, host: str) -> Told:
        """In this window; nothing in its first one, or where the agent has begun anew."""
        now, before = self._now.get(host), self._before.get(host)
        if now is None:
            return {}
        self._before[host] = now
        if before is None:
            return {}
        sent = {address: _difference(sums, before.get(address, _Sums())) for address, sums in now.items()}
        began_anew = not before.keys() <= now.keys() or any(min(sums) < 0 for sums in sent.values())
        return {} if began_anew else sent


def seen_by_most(values: Sequence[float], others: int) -> float | None:
    """Of what peers see, the worst first: what half of them see or worse, and three, or all where there are fewer. None
    where only one of several others says anything.

    Args:
        others: hosts that could be peers.
    """
    if not values or len(values) < min(2, others):
        return None
    return values[max(min(REPORTERS, len(values)), math.ceil(len(values) / 2)) - 1]


def _difference(now: _Sums, before: _Sums) -> _Sums:
    return _Sums(
        now.segments - before.segments,
        now.retransmitted - before.retransmitted,
        now.nbytes - before.nbytes,
        now.seconds - before.seconds,
    )


def _note(
    seen: dict[str, dict[str, float]], host: str, peer: str, value: float, worse: Callable[[float, float], float]
) -> None:
    """Either end sees it, and of the two directions of a link the worse one counts."""
    for one, other in ((host, peer), (peer, host)):
        seen[one][other] = worse(seen[one].get(other, value), value)
