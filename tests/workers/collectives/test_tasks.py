"""How long a rank waits for one way before it looks at the others."""

from __future__ import annotations

import pytest

from workers.collectives.tasks import BRIEFLY_SECONDS, LONGER_SECONDS, Tasks, Way


class Arrival:
    """Is there after it was waited for so many times; `waited` has the seconds of all waits."""

    def __init__(self, waits: int, waited: list[float]) -> None:
        self._left, self._waited = waits, waited

    def ready(self) -> bool:
        return self._left == 0

    def block(self, seconds: float) -> None:
        self._left -= 1
        self._waited.append(seconds)


def test_cc6_waits_grow_where_nothing_happens_and_begin_anew_where_something_does() -> None:
    waited: list[float] = []

    def way(*waits: int) -> Way:
        for each in waits:
            yield Arrival(each, waited)

    tasks = Tasks()
    first = tasks.start(way(5, 3))
    tasks.start(way(100))  # so that nobody is waited for alone
    tasks.drive(first, lambda: False)
    grown = [BRIEFLY_SECONDS, 2 * BRIEFLY_SECONDS, *[LONGER_SECONDS] * 3]
    assert waited == pytest.approx([*grown, *grown[:3]])
