"""Several buckets on their ways at once, in one thread (CC-5, CC-6).

A way is a generator that yields what it has to wait for next. Each rank issues the operations of a phase in the order of
the buckets, whichever of them gets there first: a way asks for its turn before each phase.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol

from workers.collectives.exchange import SLICE_SECONDS, Abandoned

BRIEFLY_SECONDS = 0.001
"""How long a wait for one way goes without looking at the others."""

LONGER_SECONDS = 0.004
"""The same where nothing has happened for a while: to look costs a processor that computes something else."""


def patience(before: float, *, moved: bool) -> float:
    """Seconds to wait for one way, after so many: `moved` where something was done since."""
    return BRIEFLY_SECONDS if moved else min(2 * before, LONGER_SECONDS)


class Awaited(Protocol):
    """Something that a way waits for."""

    def ready(self) -> bool:
        """Whether it is there; does not wait. Raises ExchangeError where it never will be."""

    def block(self, seconds: float) -> None:
        """Return when it may be ready, or after `seconds` at the latest."""


Way = Generator[Awaited, None, None]


class Task:
    """A way and how far it is; a `Pending`."""

    def __init__(self, tasks: Tasks, way: Way) -> None:
        self._tasks, self._way = tasks, way
        self.awaited: Awaited | None = None
        self.done = False

    def wait(self, stop: Callable[[], bool]) -> None:
        """Return when it is done. Raises Abandoned as soon as `stop()`, and whatever one of the ways raises."""
        self._tasks.drive(self, stop)

    def advance(self) -> bool:
        """Go on as far as it goes without waiting; True where something was done."""
        moved = False
        while not self.done and (self.awaited is None or self.awaited.ready()):
            moved = True
            try:
                self.awaited = next(self._way)
            except StopIteration:
                self.done = True
        return moved

    def close(self) -> None:
        """Let go of what it holds; it never gets on."""
        self._way.close()


class Tasks:
    """The ways of a step that are not at their ends."""

    def __init__(self) -> None:
        self._running: list[Task] = []

    def start(self, way: Way) -> Task:
        task = Task(self, way)
        self._running.append(task)
        self.progress()
        return task

    def progress(self) -> bool:
        """Let all get on, those begun first before the others; True where something was done."""
        moved = [task.advance() for task in self._running]
        self._running = [task for task in self._running if not task.done]
        return any(moved)

    def drive(self, task: Task, stop: Callable[[], bool]) -> None:
        """Let all get on until `task` is done. Raises Abandoned as soon as `stop()`."""
        briefly = BRIEFLY_SECONDS
        while True:
            moved = self.progress()
            if task.done:
                return
            if stop():
                raise Abandoned
            first = self._running[0].awaited
            if not moved and first is not None:
                first.block(SLICE_SECONDS if len(self._running) == 1 else briefly)
            briefly = patience(briefly, moved=moved)

    def clear(self) -> None:
        """Forget all of them, wherever they are."""
        for task in self._running:
            task.close()
        self._running.clear()


class Turns:
    """In each phase every way of a step has its turn, in the order of their numbers."""

    def __init__(self, phases: int) -> None:
        self._next = [0] * phases
        self._passed: list[set[int]] = [set() for _ in range(phases)]

    def turn(self, phase: int, number: int) -> Awaited:
        """To be awaited by way `number` before what it issues in `phase`."""
        return _Turn(self, phase, number)

    def over(self, phase: int, number: int) -> None:
        """It has issued what it issues in this phase, or will issue nothing."""
        passed = self._passed[phase]
        passed.add(number)
        while self._next[phase] in passed:
            passed.remove(self._next[phase])
            self._next[phase] += 1

    def is_next(self, phase: int, number: int) -> bool:
        return self._next[phase] == number


class _Turn:
    """The way before it, which is driven as well, blocks for both."""

    def __init__(self, turns: Turns, phase: int, number: int) -> None:
        self._turns, self._phase, self._number = turns, phase, number

    def ready(self) -> bool:
        return self._turns.is_next(self._phase, self._number)

    def block(self, seconds: float) -> None:
        return
