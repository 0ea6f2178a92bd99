"""What is measured: recovery from a log of commits. Pure functions."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.steplog import Commit


@dataclass(frozen=True)
class Kill:
    """A `kill -9` at time `t` (Unix seconds) of `pid`, one of `members`, the processes of the full world."""

    t: float
    pid: int
    rank: int
    members: frozenset[int]


@dataclass(frozen=True)
class Recovery:
    """What one kill cost. Seconds are counted from the kill; None means that it did not happen in the time given.

    `first`: until the first step is committed anywhere that began after the kill.
    `survivors`: until as many processes as survived have each committed such a step, every survivor that the system
    kept among them.
    `full`: until as many distinct processes as before have committed one such step of a full world.
    `steps_lost`: steps committed by any process before the kill that lie at or after the one at which the system
    resumes: they are computed again, also where the log ends before they are.
    `kept`: survivors that committed again under the same pid.
    """

    rank: int
    first: float | None
    survivors: float | None
    full: float | None
    steps_lost: int
    kept: int


def recovery(commits: Iterable[Commit], kill: Kill) -> Recovery:
    """What `kill` cost, from all commits around it, in any order."""
    lines = sorted(commits)
    new = [line for line in lines if line.begun > kill.t]
    before = {line.step for line in lines if line.t <= kill.t}
    resumed = min((line.step for line in new), default=math.inf)
    first_by_pid: dict[int, float] = {}
    for line in new:
        first_by_pid.setdefault(line.pid, line.t - kill.t)
    kept = (kill.members - {kill.pid}) & first_by_pid.keys()
    return Recovery(
        rank=kill.rank,
        first=min(first_by_pid.values(), default=None),
        survivors=_all_survivors(first_by_pid, kept, len(kill.members) - 1),
        full=_full_world(new, kill, len(kill.members)),
        steps_lost=sum(step >= resumed for step in before),
        kept=len(kept),
    )


def _all_survivors(first_by_pid: dict[int, float], kept: Iterable[int], count: int) -> float | None:
    if len(first_by_pid) < count:
        return None
    return max([sorted(first_by_pid.values())[count - 1], *(first_by_pid[pid] for pid in kept)])


def _full_world(new: Iterable[Commit], kill: Kill, world: int) -> float | None:
    processes: dict[int, set[int]] = defaultdict(set)
    for line in new:
        if line.world == world:
            processes[line.step].add(line.pid)
            if len(processes[line.step]) == world:
                return line.t - kill.t
    return None


class Steady:
    """Follows a log and says when the full world has run undisturbed for long enough to be killed."""

    def __init__(self, world: int, steps: int, seconds: float) -> None:
        self._world, self._steps, self._seconds = world, steps, seconds
        self._seen: dict[int, list[Commit]] = {}

    def add(self, commits: Iterable[Commit]) -> None:
        """Take in new commits; a commit of another world size starts the count again."""
        for line in commits:
            if line.world != self._world:
                self._seen.clear()
                continue
            for pid in [pid for pid, seen in self._seen.items() if pid != line.pid and seen[-1].rank == line.rank]:
                del self._seen[pid]
            self._seen.setdefault(line.pid, []).append(line)

    def members(self, now: float) -> dict[int, int] | None:
        """The pid of each rank, or None while the world is not full, not long enough so, or has stopped moving."""
        if len(self._seen) != self._world:
            return None
        for seen in self._seen.values():
            if len(seen) < self._steps or now - seen[0].t < self._seconds or now - seen[-1].t > 1.0:
                return None
        return {seen[-1].rank: pid for pid, seen in self._seen.items()}

    def step_seconds(self) -> float:
        """Median seconds between commits of one process, over what was seen since the world became full."""
        gaps = [b.t - a.t for seen in self._seen.values() for a, b in itertools.pairwise(seen)]
        return median(gaps)


def spread(values: Sequence[float | None], limit: float) -> str:
    """`median (min to max)` in seconds; None counts as longer than `limit`, and so does a median among them."""
    if not values:
        return "–"
    filled = sorted(math.inf if value is None else value for value in values)

    def text(value: float) -> str:
        return f"> {limit:g}" if math.isinf(value) else f"{value:.2f}"

    return f"{text(median(filled))} ({text(filled[0])} to {text(filled[-1])})"
