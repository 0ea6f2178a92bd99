"""What holds evictions back, each a function of numbers (GM-29 to GM-34)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from enum import StrEnum

CAP_SECONDS = 600.0
MASS_SECONDS = 60.0
GAIN_SECONDS = 600.0


def noisy_cap(live: int) -> int:
    """Hosts that may be removed on noisy evidence within `CAP_SECONDS` (GM-31)."""
    return max(1, math.floor(0.02 * live))


def is_mass_failure(left: int, live: int) -> bool:
    """Whether so many leaving the healthy state within `MASS_SECONDS` have a common cause (GM-32)."""
    return left >= max(3, 0.10 * live)


def is_group_cause(alerting: int, members: int) -> bool:
    """Whether so many hosts of a group that alert on one signal within 60 s have it from the group (GM-29)."""
    return alerting >= max(3, 0.25 * members)


def min_hosts(target: int) -> int:
    """Below which nobody is removed on noisy evidence, and the job pauses (GM-33)."""
    return max(1, math.ceil(target / 2))


def removal_gains(ratio: float, live: int, cost: float) -> bool:
    """Whether the job is faster without a straggler (GM-34).

    With it, all wait `ratio` times the others' time; without it the others compute its share, N/(N-1) times as much.

    Args:
        ratio: its busy time over its peers'.
        live: N, with it.
        cost: seconds that the change of generation takes.
    """
    if live < 2:
        return False
    without = live / (live - 1)
    won = GAIN_SECONDS * (1 - without / ratio) if ratio > 0 else 0.0
    return ratio > 1.1 * without and won > cost


class Quorum(StrEnum):
    YES = "yes"
    NO = "no"
    TIE = "tie"
    """Exactly half agree: the coordinator decides, alone if there are two hosts."""


def quorum(healed: Mapping[str, str], agreeing: Set[str], dead: Iterable[str] = ()) -> Quorum:
    """Whether a new generation has the agreement that it needs (GM-30): of more than half of the hosts that can still
    agree, and in at least three groups, or all if there are fewer, of more than half of the group's.

    Args:
        healed: hosts of the previous generation, with their groups.
        dead: whose death is certain. One that is only unreachable may train on elsewhere, and counts.
    """
    gone = set(dead)
    voters = {host: group for host, group in healed.items() if host not in gone}
    for_it = sum(host in agreeing for host in voters)
    if not voters or 2 * for_it < len(voters):
        return Quorum.NO
    if 2 * for_it == len(voters):
        return Quorum.TIE
    by_group: dict[str, list[bool]] = {}
    for host, group in voters.items():
        by_group.setdefault(group, []).append(host in agreeing)
    agreed = sum(2 * sum(votes) > len(votes) for votes in by_group.values())
    return Quorum.YES if agreed >= min(3, len(by_group)) else Quorum.NO
