"""Groups of hosts: how many of which size, when they are cut anew, and who leads one (GM-1, GM-4, GM-7)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MOST_HOSTS = 64
"""Of a group."""

UNEVEN_BY = 8
"""Hosts between the largest and the smallest group, more than which are put right."""

REST_SECONDS = 60.0
"""Between two new cuts at least."""

TRUSTED = 0.90


def sizes(hosts: int, most: int = MOST_HOSTS) -> tuple[int, ...]:
    """Of the groups of so many hosts, of at most `most` each, the larger ones first; none for no hosts."""
    if hosts < 1:
        return ()
    groups = math.ceil(hosts / most)
    each, rest = divmod(hosts, groups)
    return (each + 1,) * rest + (each,) * (groups - rest)


def are_to_be_cut_anew(present: Sequence[int], *, since_last: float, asked: bool = False, most: int = MOST_HOSTS) -> bool:
    """Whether groups of `present` sizes are, at the next generation.

    Args:
        since_last: seconds.
        asked: an operator wants it.
        most: hosts of a group.
    """
    if not present or since_last < REST_SECONDS:
        return False
    uneven = max(present) - min(present) > UNEVEN_BY
    alone = min(present) < 2 and sum(present) >= 4
    too_many = max(present) > most
    return asked or uneven or alone or too_many


class Candidate(NamedTuple):
    """A live host that may lead its group."""

    host: str
    rank: int
    """The lowest of its ranks."""
    healthy: bool
    probation: bool
    trust: float


def leader(candidates: Iterable[Candidate]) -> str | None:
    """The lowest-ranked healthy host that is trusted, else healthy one, else live one, those on probation last."""

    def order(each: Candidate) -> tuple[int, int]:
        if each.healthy:
            return (0 if each.trust >= TRUSTED else 1), each.rank
        return (3 if each.probation else 2), each.rank

    found = min(candidates, key=order, default=None)
    return None if found is None else found.host
