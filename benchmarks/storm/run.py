"""One storm: quiet before it, faults at their moments, quiet after it."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.storm.gang import StormGang
from benchmarks.storm.inject import Injector
from benchmarks.storm.records import Fault, FaultLog
from benchmarks.storm.schedule import Planned
from benchmarks.storm.stretch import Stretch
from benchmarks.storm.watch import Watch
from orchestrator.records import Record

LOOK_SECONDS = 0.05
TRY_SECONDS = 0.3
WAIT_SECONDS = 10.0
"""For a target to be there; then the fault is passed over."""

WARM_STEPS = 40
SETTLE_SECONDS = 180.0
"""After a storm, for the last host to be back."""

ASK_SECONDS = 10.0
"""From one request to stop to the next."""

STEADY_SECONDS = 4.0
"""With all ranks, before quiet counts as quiet."""


class JobEnded(Exception):
    """The job has ended in the middle of it."""


class Show(Protocol):
    """What a person sees of a storm."""

    def begins(self, what: str, seconds: float) -> None:
        """A stretch of about so many seconds."""

    def goes_on(self, seconds: float, now: str) -> None:
        """So many of them are over; what happens now."""

    def says(self, fault: Fault, what: str) -> None:
        """Something was done."""

    def heard(self, event: Record) -> None:
        """The job tells of something."""


@dataclass(eq=False)
class _Waiting:
    """A fault whose moment has come."""

    next_try: float
    until: float
    planned: Planned
    why: str = ""


class Storm:
    """On a gang that runs."""

    def __init__(self, gang: StormGang, watch: Watch, plan: Sequence[Planned], log: FaultLog, show: Show) -> None:
        self.faults: list[Fault] = []
        self._gang, self._watch, self._plan, self._log, self._show = gang, watch, plan, log, show
        self._injector = Injector(gang, watch, self._look)
        self._ends: list[tuple[float, int, Fault]] = []  # due, seconds of the monotonic clock
        self._waiting: list[_Waiting] = []
        self._planned = {planned.number: planned for planned in plan}

    # ------------------------------------------------------------------ stretches

    def warm_up(self) -> None:
        """Until all ranks train, and have for a while. Raises InVain."""
        self._show.begins("starting", 20.0)
        gang, watch = self._gang, self._watch

        def is_warm() -> bool:
            self._look()
            return watch.step >= WARM_STEPS and watch.ranks == gang.world

        gang.wait_for(f"{WARM_STEPS} steps of {gang.world} ranks", is_warm)

    def quiet(self, seconds: float) -> Stretch:
        """Nothing is done for so long."""
        self._show.begins("quiet", seconds)
        begin = time.time()
        self._until(time.monotonic() + seconds, seconds, lambda: "nothing is done")
        return Stretch(begin, time.time())

    def blow(self, seconds: float) -> Stretch:
        """The faults of the plan, each at its moment."""
        self._show.begins("storm", seconds)
        begin, begun = time.time(), time.monotonic()
        left = list(self._plan)

        def due() -> None:
            now = time.monotonic()
            while left and begun + left[0].at <= now:
                planned = left.pop(0)
                self._waiting.append(_Waiting(now, now + WAIT_SECONDS, planned))
            for each in list(self._waiting):
                if each.next_try <= now:
                    self._try(each, now)

        self._until(begun + seconds, seconds, self._doing, due)
        for each in self._waiting:
            self._skip(each, f"{each.why or 'its moment had come'} when the storm was over")
        self._waiting.clear()
        return Stretch(begin, time.time())

    def settle(self) -> bool:
        """Until what was done is undone, and all ranks train again; False where that takes too long."""
        self._show.begins("coming back", 60.0)
        begun = calm_since = time.monotonic()
        while (now := time.monotonic()) < begun + SETTLE_SECONDS:
            self._turn()
            self._injector.take_back_all()
            if self._ends or self._watch.ranks != self._gang.world or self._pause() > STEADY_SECONDS:
                calm_since = now
            if now - calm_since >= STEADY_SECONDS:
                return True
            self._show.goes_on(now - begun, self._doing())
            time.sleep(LOOK_SECONDS)
        return False

    def _pause(self) -> float:
        """Seconds since the newest step."""
        return time.time() - float(self._watch.steps[-1]["t"]) if self._watch.steps else 0.0

    def finish(self) -> None:
        """Stop the job as an operator does. Raises InVain."""
        self._show.begins("stopping", 10.0)
        for fault in self.faults:
            was_skipped = bool(fault.skipped)
            self._injector.look_again(fault, self._planned[fault.number])
            if was_skipped and fault.t is not None:
                self._log.add("injected", fault)
        asked_at = -math.inf

        def has_ended() -> bool:
            nonlocal asked_at
            self._look()
            if self._watch.ended is None and time.monotonic() > asked_at + ASK_SECONDS:  # the coordinator may just be away
                asked_at = time.monotonic()
                self._gang.operate("stop")
            return self._watch.ended is not None

        self._gang.wait_for("the end of the job", has_ended)

    def let_go(self) -> None:
        """Whatever happened: nothing that was done to this machine stays."""
        self._injector.end_all()

    # ------------------------------------------------------------------ turns

    def _until(self, end: float, seconds: float, now: Callable[[], str], also: Callable[[], None] = lambda: None) -> None:
        """Raises JobEnded."""
        while (left := end - time.monotonic()) > 0:
            self._turn()
            also()
            self._show.goes_on(seconds - left, now())
            time.sleep(min(LOOK_SECONDS, left))

    def _turn(self) -> None:
        self._look()
        if self._watch.ended is not None:
            raise JobEnded(str(self._watch.ended.get("message") or "it has finished"))
        for fault in self._injector.tick():
            self._known(fault)
        while self._ends and self._ends[0][0] <= time.monotonic():
            _, _, fault = heapq.heappop(self._ends)
            self._injector.end(fault)
            self._log.add("ended", fault)
            self._show.says(fault, "is over")

    def _look(self) -> None:
        for event in self._watch.look():
            self._show.heard(event)

    def _try(self, each: _Waiting, now: float) -> None:
        found = self._injector.target(each.planned)
        if isinstance(found, Fault):
            self._waiting.remove(each)
            self.faults.append(found)
            self._injector.begin(found, each.planned)
            if found.t is not None:
                self._known(found)
        elif now >= each.until:
            self._waiting.remove(each)
            self._skip(each, found)
        else:
            each.why, each.next_try = found, now + TRY_SECONDS

    def _skip(self, each: _Waiting, why: str) -> None:
        fault = Fault.of(each.planned)
        fault.skipped = why
        self.faults.append(fault)
        self._known(fault)

    def _known(self, fault: Fault) -> None:
        """It has happened, or was passed over."""
        if fault.skipped:
            self._log.add("skipped", fault)
            self._show.says(fault, f"is passed over: {fault.skipped}")
            return
        self._log.add("injected", fault)
        self._show.says(fault, "")
        if fault.seconds:
            assert fault.t is not None
            due = time.monotonic() + max(0.0, fault.t + fault.seconds - time.time())
            heapq.heappush(self._ends, (due, fault.number, fault))

    def _doing(self) -> str:
        """For a person, in a few words."""
        names = [str(fault.kind) for _, _, fault in sorted(self._ends, key=lambda end: end[1])]
        names += [f"{each.planned.kind} waits" for each in self._waiting]
        return ", ".join(names) or "nothing is done"
