"""The same kills for ours, torchrun elastic and Ray Train: one host, the model of the other comparisons.

Each system runs as `benchmarks.recovery` runs it; all that is read is the log to which every worker writes what it commits.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.model import GLOBAL_BATCH
from benchmarks.peers import ours, ray_train, torchrun_elastic
from benchmarks.steplog import Commit, LogTail
from benchmarks.storm.kinds import Kind
from benchmarks.storm.schedule import Planned, schedule
from benchmarks.storm.stretch import Stretch
from benchmarks.system import Running, System

START_SECONDS = 180.0
STEADY_STEPS, STEADY_SECONDS = 20, 3.0
WAIT_SECONDS = 10.0
"""For the rank that is to be killed to be there."""

STILL_SECONDS = 2.0
"""A rank that has committed nothing for so long is not taken for one that trains."""

LOOK_SECONDS = 0.05

NAMES = {"torchrun": "torchrun-10", "ray-train": "ray-10"}
"""What a peer is called on the command line, and its row in `benchmarks.recovery`: default settings, and a checkpoint every
ten steps."""


@dataclass(frozen=True)
class KillRun:
    """Of one system. Rates are samples per second, in the storm and in the quiet stretches before and after it."""

    label: str
    settings: str
    kills: int = 0
    skipped: int = 0
    storm: float = 0.0
    quiet: tuple[float, ...] = ()
    throughput_kept: float | None = None
    step_efficiency: float | None = None
    problem: str = ""


class NotSteady(Exception):
    """The system did not come up, or back, in time, or ended by itself."""


def known_systems(world: int) -> dict[str, System]:
    """By the names for the command line: those of `NAMES`, and every row of `benchmarks.recovery` of these systems."""
    rows = {system.key: system for system in (*torchrun_elastic.systems(world), *ray_train.systems(world))}
    return {**{name: rows[key] for name, key in NAMES.items()}, **rows}


def kills(seed: int, minutes: float, rate: float, world: int) -> list[Planned]:
    """Of ranks only; the same for every system. The rank is the slot."""
    return schedule(seed, minutes, rate, [Kind.KILL], 1, world, 1)


def measure(
    system: System, plan: Sequence[Planned], world: int, minutes: float, quiet: float, say: Callable[[str], None]
) -> KillRun:
    """Quiet, storm, quiet. A system that does not come back is given its storm, and has no quiet after it."""
    missing = system.missing()
    if missing is not None:
        return KillRun(system.label, system.settings, problem=missing)
    folder = Path(tempfile.mkdtemp(prefix="qs-"))
    try:
        with Running(system, folder) as running:
            return _Kills(running, system, world, say).run(plan, 60.0 * minutes, quiet)
    except NotSteady as error:
        return KillRun(system.label, system.settings, problem=str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Kills:
    """One storm of kills on a running system."""

    def __init__(self, running: Running, system: System, world: int, say: Callable[[str], None]) -> None:
        self._running, self._system, self._world, self._say = running, system, world, say
        self._tail = LogTail(running.folder)
        self._commits: list[Commit] = []
        self._newest: dict[int, Commit] = {}  # by rank

    def run(self, plan: Sequence[Planned], seconds: float, quiet: float) -> KillRun:
        self._wait_until_steady()
        stretches, problem = [self._pass(quiet)], ""
        storm, done = self._blow(plan, seconds)
        try:
            self._wait_until_steady()
            stretches.append(self._pass(quiet))
        except NotSteady as error:
            problem = f"after the storm: {error}"
        self._look()
        rates = tuple(rate(self._commits, each) for each in stretches)
        calm = sum(r * each.seconds for r, each in zip(rates, stretches, strict=True)) / sum(s.seconds for s in stretches)
        blown = rate(self._commits, storm)
        return KillRun(
            self._system.label,
            self._system.settings,
            done,
            len(plan) - done,
            blown,
            rates,
            blown / calm if calm else None,
            efficiency(self._commits, storm),
            problem,
        )

    def _look(self) -> None:
        new = self._tail.poll()
        self._commits += new
        for line in new:
            self._newest[line.rank] = line

    def _pass(self, seconds: float) -> Stretch:
        begin, end = time.time(), time.monotonic() + seconds
        while time.monotonic() < end:
            self._look()
            time.sleep(LOOK_SECONDS)
        return Stretch(begin, time.time())

    def _blow(self, plan: Sequence[Planned], seconds: float) -> tuple[Stretch, int]:
        """The stretch, and how many kills were done; one whose rank is not there in time is passed over."""
        begin, begun, done = time.time(), time.monotonic(), 0
        waiting: list[Planned] = []
        left = list(plan)
        while (now := time.monotonic() - begun) < seconds:
            self._look()
            while left and left[0].at <= now:
                waiting.append(left.pop(0))
            for each in list(waiting):
                if self._kill(each.slot or 0):
                    done += 1
                    waiting.remove(each)
                    self._say(f"{self._system.key}: rank {each.slot} killed after {now:.0f} s")
                elif now > each.at + WAIT_SECONDS:
                    waiting.remove(each)
                    self._say(f"{self._system.key}: rank {each.slot} was not there after {each.at:.0f} s")
            time.sleep(LOOK_SECONDS)
        return Stretch(begin, time.time()), done

    def _kill(self, rank: int) -> bool:
        """The process that committed last as this rank, if it has just done so."""
        line = self._newest.get(rank)
        if line is None or time.time() - line.t > STILL_SECONDS:
            return False
        try:
            os.kill(line.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        del self._newest[rank]
        return True

    def _wait_until_steady(self) -> None:
        """Until all ranks have committed some steps together, and for a while. Raises NotSteady."""
        begin, deadline = time.time(), time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._running.alive:
            self._look()
            if is_steady(self._commits, self._world, max(begin, time.time() - 2 * STEADY_SECONDS), time.time()):
                return
            time.sleep(LOOK_SECONDS)
        last = (self._running.folder / "output.log").read_text(errors="replace").strip().splitlines()[-1:]
        what = f"not all ranks trained within {START_SECONDS:g} s" if self._running.alive else "it ended by itself"
        raise NotSteady(f"{what}; its last line: {''.join(last)[:200]}")


def is_steady(commits: Sequence[Commit], world: int, since: float, now: float) -> bool:
    """Whether `world` processes have each committed some steps of a full world since then, over a while, until just now."""
    by_pid: dict[int, list[float]] = defaultdict(list)
    for line in reversed(commits):
        if line.t < since:
            break
        if line.world != world:
            return False
        by_pid[line.pid].append(line.t)
    times = [(len(found), max(found) - min(found), now - max(found)) for found in by_pid.values()]
    return len(times) == world and all(
        count >= STEADY_STEPS and lasted >= STEADY_SECONDS and ago < 1.0 for count, lasted, ago in times
    )


def kept(commits: Iterable[Commit]) -> dict[int, float]:
    """When each step was committed for the last time by the last of its ranks: what came before is gone, if it was computed
    again."""
    found: dict[int, float] = {}
    for line in commits:
        found[line.step] = max(found.get(line.step, 0.0), line.t)
    return found


def rate(commits: Iterable[Commit], stretch: Stretch) -> float:
    """Samples per second, of steps that count."""
    return sum(stretch.has(t) for t in kept(commits).values()) * GLOBAL_BATCH / stretch.seconds


def efficiency(commits: Sequence[Commit], stretch: Stretch) -> float | None:
    """Steps that count over all that were committed in the stretch; one that two processes have committed as the same rank
    was computed twice."""
    times: dict[tuple[int, int], int] = defaultdict(int)
    for line in commits:
        if stretch.has(line.t):
            times[line.step, line.rank] += 1
    tried: dict[int, int] = {}
    for (step, _), count in times.items():
        tried[step] = max(tried.get(step, 0), count)
    counted = sum(stretch.has(t) for t in kept(commits).values())
    return counted / sum(tried.values()) if tried else None


def ours_and(names: Sequence[str], world: int) -> list[System]:
    """Ours first, and the peers of these names.

    Raises:
        ValueError: there is no such peer.
    """
    known = known_systems(world)
    for name in names:
        if name not in known:
            raise ValueError(f"there is no peer {name!r}; choose from {', '.join(known)}")
    return [*ours.systems(world), *(known[name] for name in names)]
