"""What a job tells its governor, and what is to be done about the hosts as it sees them (GM-10, section 7).

The governor's state says how it is with each host; what follows from that is found anew whenever somebody looks, so that
nothing is missed after a restart, and what was done already is not done twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.governor.codes import NOISY, Code
from orchestrator.governor.config import Mode
from orchestrator.governor.events import Beat, Event, Evidence, Fenced, Joined, Late, Left, Observed, Scaled, Tick
from orchestrator.governor.hosts import HostRecord, Hosts, HostState
from orchestrator.governor.log import Governor
from orchestrator.governor.pressure import level
from orchestrator.governor.readings import Observation
from orchestrator.governor.signals import FIRST_TRUST

logger = logging.getLogger("quantarion.governor")

LATE_SECONDS = 1.5
"""Age of a heartbeat with which a host is suspect (GM-18)."""

DEAD_SECONDS = 3.0
GAPS = 5.0
"""Times the longest gap between two heartbeats so far, a host is dead, if that is more."""

TICK_SECONDS = 1.0
"""Between two ticks of the policy, where something waits for one."""

STALLED_SECONDS = 1.0
"""Between two looks at the heartbeats, after which they tell nothing: whoever looks has stood still itself."""

GONE = frozenset({Code.PROC_EXIT, Code.HEARTBEAT_DEAD, Code.DEVICE_LOST})
"""There is nobody who could leave at a step's end."""


class Way(StrEnum):
    """How a host leaves the job."""

    LOST = "lost"
    AT_ONCE = "at_once"
    AFTER_THE_STEP = "after_the_step"


@dataclass(frozen=True)
class Removal:
    host: str
    way: Way
    reason: str
    is_trusted: bool = False
    """What it has computed is right, as far as anybody knows."""
    is_dead: bool = False
    """For certain; one that is only silent may live."""


class Governing:
    """Between the coordinator's shell and the policy. Times are Unix seconds.

    Args:
        governor: the policy with its log.
        say: takes a kind and fields for events.jsonl.
    """

    def __init__(self, governor: Governor, say: Callable[[str, dict[str, object]], None]) -> None:
        self._governor, self._say = governor, say
        self._beats: dict[str, float] = {}  # when each was last heard of
        self._longest_gap = 0.0  # of those that were in time
        self._silent_since: dict[str, float] = {}  # of those that were given up: their last beat
        self._watched_at = self._ticked_at = 0.0
        self.emergency = False
        """So many hosts have left the healthy state at once that the job is to be saved (GM-32); whoever does so takes it
        back."""

    @property
    def records(self) -> Hosts:
        return self._governor.state.hosts

    @property
    def _out(self) -> list[HostRecord]:
        """Of the hosts that are not live."""
        return [self.records[host] for host in self.records if host in self.records.out]

    def tell(self, event: Event) -> None:
        """A policy that fails is a bug, and no reason for a job to end: it goes on as if nothing had been told (GM-11)."""
        try:
            verdicts = self._governor.tell(event)
        except Exception as error:
            logger.exception("the governor failed on %s", event)
            self._say("governor_failed", {"event": type(event).__name__, "error": f"{type(error).__name__}: {error}"})
            return
        for verdict in verdicts:
            self.emergency = self.emergency or (verdict.is_in_force and Code.MASS_FAILURE in verdict.reasons)
            self._say("verdict", {key: value for key, value in verdict.record().items() if key != "t"})

    # ------------------------------------------------------------------ what happens to hosts

    def generation(self, hosts: Mapping[str, str], now: float, *, first: bool) -> None:
        """These, with their groups, are in the generation that begins."""
        if first:
            self._longest_gap = 0.0  # a host that is loading all it needs tells nothing of how late one that trains is
        for host, group in hosts.items():
            record = self.records.get(host)
            if record is None:
                self.tell(Joined(now, host, group, first))

    def lost(self, host: str, now: float) -> None:
        """It is gone, and nobody has sent it away."""
        self._beats.pop(host, None)
        record = self.records.get(host)
        if record is not None and record.state not in (HostState.EVICTED, HostState.COOLING):
            self.tell(Evidence(now, host, Code.PROC_EXIT))

    def left(self, host: str, now: float) -> None:
        """It has gone as it was told to: where that was no eviction, it may come back as one that nobody knows."""
        self._beats.pop(host, None)
        record = self.records.get(host)
        if record is not None and record.state.is_live:
            self.tell(Left(now, host))

    def convict(self, host: str, code: Code, now: float) -> None:
        self.tell(Evidence(now, host, code))

    def scaled(self, hosts: int, now: float) -> None:
        self.tell(Scaled(now, hosts))

    # ------------------------------------------------------------------ windows

    def observed(
        self,
        observations: Mapping[str, Observation],
        steps: int,
        now: float,
        singles: tuple[Mapping[str, Observation], ...] = (),
    ) -> None:
        """The end of a window, after so many committed steps; and which shortages begin and end with it (GM-21).

        Args:
            singles: what was seen in single steps of it, where pools are made of those (GM-40).
        """
        before = set(self._governor.state.shortages)
        self.tell(Observed(now, observations, steps, singles))
        after = set(self._governor.state.shortages)
        for host, code in sorted(before ^ after):
            value = level(observations[host], code) if host in observations else None
            if value is None:  # it has gone
                continue
            begins, limits = (host, code) in after, self._governor.config.resource(code)
            limit = limits.alert if begins else limits.good
            told: dict[str, object] = {"host": host, "code": code.value, "value": value, "limit": limit, "begins": begins}
            self._say("resource_pressure", told)

    def short_of(self, code: Code) -> set[str]:
        """Hosts that are to be relieved."""
        if self._governor.config.relief is not Mode.ENFORCE:
            return set()
        return {each.host for each in self._governor.state.shortages if each.code is code}

    def shortages(self, host: str) -> list[Code]:
        """What it is short of, whether anything is done about it or not."""
        return [each.code for each in self._governor.state.shortages if each.host == host]

    # ------------------------------------------------------------------ heartbeats

    def beat(self, host: str, now: float) -> None:
        """Of its agent."""
        gap = now - self._beats.get(host, now)
        self._beats[host] = now
        if gap >= LATE_SECONDS:
            return
        self._longest_gap = max(self._longest_gap, gap)
        record = self.records.get(host)
        if record is not None and record.late is not None:
            self.tell(Beat(now, host))

    def is_silent(self, host: str, now: float) -> bool:
        """For longer than a live host ever is, while we hear others."""
        heard = [at for other, at in self._beats.items() if other != host]
        age = now - self._beats.get(host, now)
        return age >= self.dead_limit and any(now - at < LATE_SECONDS for at in heard)

    @property
    def dead_limit(self) -> float:
        """Seconds."""
        return max(DEAD_SECONDS, GAPS * self._longest_gap)

    def watch(self, members: Mapping[str, bool], busy: Collection[str], stepped_at: float, now: float) -> None:
        """Whose heartbeats are overdue. Nobody is given up where most are silent: then it is we who do not hear.

        Args:
            members: hosts of the generation that trains, and whether the stream of each is up. One whose stream was reset
                has lost its agent, which has time to come back (EP-14).
            busy: those of them that were in code of the task, whose length nobody knows, when last heard of: for them the
                others wait without a step.
            stepped_at: when the last step was committed, to which each of them has contributed.
        """
        if now - self._watched_at > STALLED_SECONDS:  # it was we who heard nothing
            self._beats = dict.fromkeys(self._beats, now)
        self._watched_at = now
        silent = [host for host in members if now - self._beats.get(host, 0.0) >= LATE_SECONDS]
        in_time = len(members) - len(silent)
        if not in_time or 2 * in_time < len(members):
            return
        for host in silent:
            if not members[host] or host not in self._beats or (record := self.records.get(host)) is None:
                continue
            age = now - max(self._beats[host], stepped_at)
            if age >= self.dead_limit and not set(busy) - {host} and record.state.is_live:
                if self._silent_since.get(host) != self._beats[host]:  # said once of each silence
                    self._silent_since[host] = self._beats[host]
                    self.tell(Evidence(now, host, Code.HEARTBEAT_DEAD))
            elif age >= LATE_SECONDS and record.state is HostState.HEALTHY:
                self.tell(Late(now, host))

    # ------------------------------------------------------------------ what is to be done

    def removals(self, present: Collection[str], placed: Collection[str], now: float) -> list[Removal]:
        """The hosts of those `present` in the job that are to go; to be asked again and again.

        A host that is not present and not `placed` any more is fenced.
        """
        if now - self._ticked_at >= TICK_SECONDS and any(_waits(record, now) for record in self._out):
            self._ticked_at = now
            self.tell(Tick(now))
        found = []
        for record in self._out:
            if record.state is not HostState.EVICTED:
                continue
            if record.host in present:
                found.append(_removal(record))
            elif record.host not in placed:
                self.tell(Fenced(now, record.host))
        return found

    def is_in(self, host: str) -> bool:
        """Nothing keeps it from taking part, as far as anything is known of it."""
        record = self.records.get(host)
        return record is None or record.state not in (HostState.EVICTED, HostState.COOLING)

    def is_cooling(self, host: str) -> bool:
        """It was evicted and is gone: it has to pass the host test to come back."""
        record = self.records.get(host)
        return record is not None and record.state is HostState.COOLING

    def to_test(self, present: Collection[str]) -> list[str]:
        """Hosts of those `present` whose removal a guard refuses: a test is to tell whether they stay. And all that are
        live after the loss of the job has jumped, each once."""
        asked = (self.records[host] for host in self.records.tested if host in present)
        return [each.host for each in asked if each.state not in (HostState.EVICTED, HostState.COOLING)]

    def trust(self, host: str) -> float:
        record = self.records.get(host)
        return FIRST_TRUST if record is None else record.trust

    def may_come(self, host: str) -> bool:
        """Whether a node that is known by this name may be taken into the job."""
        record = self.records.get(host)
        return record is None or (record.state is not HostState.EVICTED and (self.is_in(host) or record.is_tested))


def _waits(record: HostRecord, now: float) -> bool:
    """For time to pass: a guard that refuses, or a cooldown that is over."""
    if record.state is HostState.QUARANTINED:
        return True
    is_over = record.returns_at is not None and record.returns_at <= now
    return record.state is HostState.COOLING and is_over and not record.excluded and not record.is_tested


def _removal(record: HostRecord) -> Removal:
    code = record.evictions[-1].code
    if code in GONE:
        way = Way.LOST
    else:
        way = Way.AT_ONCE if code.needs_rollback or code is Code.HANG_CULPRIT else Way.AFTER_THE_STEP
    reason, is_dead = f"{record.host} is evicted: {code.value}", code is Code.PROC_EXIT
    return Removal(record.host, way, reason, is_trusted=code in NOISY, is_dead=is_dead)
