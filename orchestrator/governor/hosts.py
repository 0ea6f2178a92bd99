"""What the governor knows of a host, and the states that it goes through (section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from orchestrator.governor.codes import Code
from orchestrator.governor.returning import Eviction
from orchestrator.governor.signals import FIRST_TRUST, UNKNOWN, Score


class HostState(StrEnum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    PROBATION = "probation"
    QUARANTINED = "quarantined"
    """It gets parameters and contributes nothing (GM-28)."""
    EVICTED = "evicted"
    """It is being fenced and stopped."""
    COOLING = "cooling"

    @property
    def is_live(self) -> bool:
        return self in (HostState.HEALTHY, HostState.SUSPECT, HostState.PROBATION)


class Alert(NamedTuple):
    """An evaluation in which a signal was beyond its limit, that counts; `time` in seconds."""

    time: float
    code: Code


@dataclass(frozen=True)
class HostRecord:
    """Of one host, replicated in the journal. Times are seconds of the events' clock.

    Attributes:
        since: when it entered `state`.
        alerts: those that count, of the last while.
        well_since: since when its score has been well without a break; None where it is not.
        late: it is suspect for late heartbeats alone, and how many came in time since.
        refused_since: when a guard has first refused its removal.
        steps: committed steps of the job when it entered probation.
        pace: how many times its peers' time it took, when that was last known.
        returns_at: when its cooldown is over.
        is_tested: a host test was asked for, and has not ended.
        excluded: not before an operator clears it.
    """

    host: str
    group: str
    state: HostState
    since: float
    trust: float = FIRST_TRUST
    score: Score = UNKNOWN
    alerts: tuple[Alert, ...] = ()
    well_since: float | None = None
    late: int | None = None
    refused_since: float | None = None
    steps: int = 0
    pace: float = 0.0
    evictions: tuple[Eviction, ...] = ()
    returns_at: float | None = None
    is_tested: bool = False
    excluded: bool = False


class Hosts(dict[str, HostRecord]):
    """Records by the name of the host. Of thousands few are not live, and what is asked for at each event are those.

    Attributes:
        out: the names of hosts that are not live.
        tested: of those that were asked for a host test.
    """

    out: set[str]
    tested: set[str]

    def __init__(self, records: Mapping[str, HostRecord] | None = None) -> None:
        super().__init__(records or {})
        if isinstance(records, Hosts):
            self.out, self.tested = records.out.copy(), records.tested.copy()
        else:
            self.out = {host for host, record in self.items() if not record.state.is_live}
            self.tested = {host for host, record in self.items() if record.is_tested}

    def __setitem__(self, host: str, record: HostRecord) -> None:
        super().__setitem__(host, record)
        (self.out.discard if record.state.is_live else self.out.add)(host)
        (self.tested.add if record.is_tested else self.tested.discard)(host)

    def __delitem__(self, host: str) -> None:
        super().__delitem__(host)
        self.out.discard(host)
        self.tested.discard(host)

    @property
    def num_live(self) -> int:
        return len(self) - len(self.out)
