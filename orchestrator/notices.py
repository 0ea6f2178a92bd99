"""Notices that hosts will be taken away: gathered, so that those of one second are one change of members, and obeyed in
time (GM-38). Pure; times are Unix seconds that are passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import IntEnum, StrEnum
from typing import Any

from orchestrator.governing import Removal, Way

DEADLINE_SECONDS = 30.0
"""From a notice that names none."""

GATHER_SECONDS = 1.5
"""What is heard so long after the first notice is obeyed with it: those of one second, each heard within half of one."""

GATHER_SHARE = 0.25
"""Of the time that there is; longer nobody waits for other notices."""

SAME_SECONDS = 1.0
"""Deadlines that are no further apart are the same one, said again."""


class Source(StrEnum):
    """Who has said so."""

    AGENT = "agent"
    RAY = "ray"


@dataclass(frozen=True)
class Notice:
    """That a host will be taken away. It may be gone at any moment after its deadline."""

    host: str
    source: Source
    reason: str
    heard: float
    deadline: float

    @property
    def gathered(self) -> float:
        """When to wait for others no longer."""
        return self.heard + min(GATHER_SECONDS, GATHER_SHARE * (self.deadline - self.heard))

    @property
    def half(self) -> float:
        """Until then a step may be finished."""
        return (self.heard + self.deadline) / 2

    def record(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Notice:
        """Of the journal."""
        fields = {**record, "source": Source(record["source"])}
        return cls(**fields)


class _Stage(IntEnum):
    """How far it is with a notice."""

    HEARD = 0
    TOLD = 1  # its host leaves after the step
    HASTENED = 2  # it waits for no step
    OVERDUE = 3


class Notices:
    """Of the hosts of a job.

    Args:
        known: what a coordinator before this one has heard.
        told: the hosts that it has told to leave.
    """

    def __init__(self, known: Iterable[Notice] = (), told: Collection[str] = ()) -> None:
        self._notices = {notice.host: notice for notice in known}
        self._stages = {host: _Stage.TOLD if host in told else _Stage.HEARD for host in self._notices}

    def hear(self, notice: Notice) -> Notice | None:
        """What is known by it now; None where that is nothing new. Of several notices the first deadline counts."""
        known = self._notices.get(notice.host)
        if known is not None:
            if notice.deadline >= known.deadline - SAME_SECONDS:
                return None
            notice = replace(notice, heard=known.heard)
        self._notices[notice.host] = notice
        self._stages.setdefault(notice.host, _Stage.HEARD)
        return notice

    def withdraw(self, draining: Collection[str]) -> list[str]:
        """Ray drains the nodes of these hosts and no others: of which it was otherwise. Who was told to leave leaves."""
        over = [each.host for each in self._notices.values() if each.source is Source.RAY and each.host not in draining]
        for host in over:
            self._forget(host)
        return over

    def due(self, present: Collection[str], step_ends: float | None, now: float) -> list[Removal]:
        """What is to be done about hosts of those `present`, each thing once.

        Args:
            step_ends: when the step is committed at whose end hosts could leave, probably; None where nobody knows.
        """
        for host, notice in list(self._notices.items()):
            if host not in present and now >= notice.deadline:
                self._forget(host)
        here = [notice for host, notice in self._notices.items() if host in present]
        return [*self._hasten(here, now), *self._tell(here, step_ends, now)]

    def _tell(self, here: list[Notice], step_ends: float | None, now: float) -> list[Removal]:
        """Where the step takes too long for one of them, it is discarded, and the others need not wait for it either."""
        new = [notice for notice in here if self._stages[notice.host] is _Stage.HEARD]
        if not new or now < min(notice.gathered for notice in new):
            return []
        fits = step_ends is None or step_ends <= min(notice.half for notice in new)
        stage, way = (_Stage.TOLD, Way.AFTER_THE_STEP) if fits else (_Stage.HASTENED, Way.AT_ONCE)
        return [self._order(notice, stage, way) for notice in new]

    def _hasten(self, here: list[Notice], now: float) -> list[Removal]:
        found = []
        for notice in here:
            stage = self._stages[notice.host]
            if _Stage.HEARD < stage < _Stage.OVERDUE and now >= notice.deadline:
                found.append(self._order(notice, _Stage.OVERDUE, Way.LOST))
            elif stage is _Stage.TOLD and now >= notice.half:
                found.append(self._order(notice, _Stage.HASTENED, Way.AT_ONCE))
        return found

    def _order(self, notice: Notice, stage: _Stage, way: Way) -> Removal:
        self._stages[notice.host] = stage
        late = ", and it has not left before its deadline" if way is Way.LOST else ""
        return Removal(notice.host, way, notice.reason + late, is_trusted=True)

    def keeps_away(self, host: str, now: float) -> bool:
        """Its node is not to be taken."""
        notice = self._notices.get(host)
        return notice is not None and now < notice.deadline

    def _forget(self, host: str) -> None:
        del self._notices[host], self._stages[host]
