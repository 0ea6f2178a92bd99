"""From what is measured to what is done about it: a pure function of events, one after the other (GM-10 to GM-13).

`decide` knows no clock, no file and no chance of its own: the same events give the same verdicts, byte for byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

from orchestrator.governor import course, guards
from orchestrator.governor.codes import NOISY, RELIEVED, Code, Scope
from orchestrator.governor.config import GovernorConfig, Mode
from orchestrator.governor.events import (
    Asked,
    Beat,
    Event,
    Evidence,
    Fenced,
    HostTested,
    Joined,
    Late,
    Left,
    Observed,
    Scaled,
    Tick,
    Wish,
)
from orchestrator.governor.groups import TRUSTED
from orchestrator.governor.hosts import Alert, HostRecord, Hosts, HostState
from orchestrator.governor.peers import Pool
from orchestrator.governor.pressure import shortages
from orchestrator.governor.readings import Observation
from orchestrator.governor.returning import Eviction, may_return
from orchestrator.governor.signals import FIRST_TRUST, Score, trust
from orchestrator.governor.state import GovernorState
from orchestrator.governor.verdicts import Act, Verdict

WELL = 0.75
"""A score with which a suspect host is on its way back (GM-26)."""

BEATS = 3
"""In time, after which a host that was suspect for its heartbeats alone is healthy."""

CAUSE_SECONDS = 60.0
"""In which alerts of a group have one cause (GM-29)."""

OF_PACE = (Code.STRAGGLER, Code.SLOWDOWN, Code.NET_SLOW)
"""Who is removed for these was no danger, only slow: it has to be worth it (GM-34)."""

OF_LINKS = (Code.NET_SLOW, Code.NET_LOSS)
"""What many hosts of a group have of these is in the links that they share."""


def decide(state: GovernorState, event: Event, config: GovernorConfig) -> tuple[GovernorState, list[Verdict]]:
    """The state after `event`, and what follows from it. A clock that jumps back stands still."""
    turn = _Turn(state, event.time, config)
    match event:
        case Joined():
            turn.join(event)
        case Observed():
            turn.evaluate(event)
        case Evidence(host=host, code=code):
            turn.convict(host, code)
        case Late(host=host):
            turn.late(host)
        case Beat(host=host):
            turn.beat(host)
        case Fenced(host=host):
            turn.fence(host)
        case HostTested(host=host, passed=passed):
            turn.tested(host, passed=passed)
        case Left(host=host):
            turn.leave(host)
        case Asked(host=host, wish=wish):
            turn.ask(host, wish)
        case Scaled(hosts=hosts):
            turn.target = hosts
        case Tick():
            pass
    return turn.outcome()


class _Turn:
    """One event, from the state before it to the state after it."""

    def __init__(self, state: GovernorState, time: float, config: GovernorConfig) -> None:
        self.state, self.config = state, config
        self.now = max(time, state.time)
        self.hosts, self.steps, self.target = Hosts(state.hosts), state.steps, state.target
        self.pools: Mapping[Code, Pool] = state.pools
        self.shortages = state.shortages
        self.course = state.course
        self.verdicts: list[Verdict] = []
        self.alerts = [each for each in state.alerts if each[0] > self.now - CAUSE_SECONDS]
        self.removed = [each for each in state.removed if each[0] > self.now - guards.CAP_SECONDS]
        self.not_healthy = [each for each in state.not_healthy if each[0] > self.now - guards.MASS_SECONDS]
        self.removed_now: set[str] = set()  # groups

    def outcome(self) -> tuple[GovernorState, list[Verdict]]:
        for host in sorted(self.hosts.out):
            self._go_on(self.hosts[host])
        mass, minimum = self._mass_failure, self.hosts.num_live < self._minimum and bool(self.hosts)
        if mass and not self.state.mass_failure:
            self._say("job", Act.PAUSE, [Code.MASS_FAILURE])
        if minimum and not self.state.below_minimum:
            self._say("job", Act.PAUSE, [Code.MIN_HOSTS])
        after = replace(
            self.state,
            target=self.target,
            time=self.now,
            hosts=self.hosts,
            steps=self.steps,
            pools=self.pools,
            shortages=self.shortages,
            course=self.course,
            alerts=tuple(self.alerts),
            removed=tuple(self.removed),
            not_healthy=tuple(self.not_healthy),
            mass_failure=mass,
            below_minimum=minimum,
        )
        return after, self.verdicts

    # ------------------------------------------------------------------ events

    def join(self, event: Joined) -> None:
        known = self.hosts.get(event.host)
        state = HostState.HEALTHY if event.first else HostState.PROBATION
        fresh = HostRecord(event.host, event.group, state, self.now, steps=self.steps)
        if known is not None:  # it has been here before
            fresh = replace(fresh, trust=known.trust, evictions=known.evictions)
        self.hosts[event.host] = fresh

    def evaluate(self, event: Observed) -> None:
        readings, self.pools = self.state.read(event.observations, event.singles)
        signals = {code: self.config.signal(code) for code in NOISY}
        paces = readings.largest(OF_PACE)
        for host, score, pace in zip(readings.hosts, readings.scores(signals), paces, strict=True):
            self._judge(self.hosts[host], score, pace)
        found = readings.alerts(signals)
        self.steps = event.steps
        self.alerts += [(self.now, host, code) for host, codes in found.items() for code in codes]
        caused = self._group_causes()
        wanted: list[tuple[HostRecord, list[Code]]] = []
        for host in readings.hosts:
            own = [code for code in found.get(host, ()) if (self.hosts[host].group, code) not in caused]
            if self._count(host, own):
                wanted.append((self.hosts[host], own))
            else:
                self._recover(self.hosts[host])
        wanted.sort(key=lambda each: (each[0].score.value or 0.0, each[0].trust, each[0].host))
        for record, codes in wanted:
            self._quarantine(record, codes)
        self._relieve(event.observations)
        self._look_at_the_job(event)

    def convict(self, host: str, code: Code) -> None:
        record = self.hosts.get(host)
        if record is None or record.state in (HostState.EVICTED, HostState.COOLING):
            return
        mode = self.config.mode(code)
        self._say(host, Act.EVICT, [code, *self._reasons(record)], mode, rolls_back=code.needs_rollback)
        if mode is Mode.ENFORCE:
            self._evict(record, code)

    def late(self, host: str) -> None:
        record = self.hosts.get(host)
        if record is not None and record.state is HostState.HEALTHY:
            self._say(host, Act.SUSPECT, [])
            self._enter(record, HostState.SUSPECT, late=0)

    def beat(self, host: str) -> None:
        record = self.hosts.get(host)
        if record is None or record.late is None or record.state is not HostState.SUSPECT:
            return
        if record.late + 1 < BEATS:
            self.hosts[host] = replace(record, late=record.late + 1)
        else:
            self._say(host, Act.TRUST_AGAIN, [])
            self._enter(record, HostState.HEALTHY)

    def fence(self, host: str) -> None:
        record = self.hosts.get(host)
        if record is None or record.state is not HostState.EVICTED:
            return
        back = may_return(record.evictions, self._chance(record))
        at = max(back.at, self.now)
        self._enter(record, HostState.COOLING, returns_at=at, excluded=back.excluded)

    def tested(self, host: str, *, passed: bool) -> None:
        record = self.hosts.get(host)
        if record is not None and record.state.is_live and record.is_tested:
            self._tested_live(record, passed=passed)
            return
        if record is None or record.state not in (HostState.COOLING, HostState.QUARANTINED):
            return
        if record.state is HostState.QUARANTINED and not record.is_tested:  # it was asked for before that
            return
        if passed:
            self._say(host, Act.ADMIT, [])
            self._enter(record, HostState.PROBATION, steps=self.steps)
        elif record.state is HostState.QUARANTINED:
            self.convict(host, Code.HOST_TEST_FAILED)
        else:
            self._evict(record, Code.HOST_TEST_FAILED)
            self.fence(host)

    def _tested_live(self, record: HostRecord, *, passed: bool) -> None:
        """After a jump of the loss. Where many fail at once they have a cause in common, and it takes a person."""
        self.hosts[record.host] = replace(record, is_tested=False)
        if not passed and self._mass_failure:
            self._say(record.host, Act.EVICT, [Code.HOST_TEST_FAILED], guard="mass_failure")
        elif not passed:
            self.convict(record.host, Code.HOST_TEST_FAILED)

    def leave(self, host: str) -> None:
        if host in self.hosts:
            del self.hosts[host]

    def ask(self, host: str, wish: Wish) -> None:
        record = self.hosts.get(host)
        if record is None:
            return
        if wish is Wish.EVICT:
            self.convict(host, Code.OPERATOR_EVICT)
        elif record.state is HostState.COOLING:
            self.hosts[host] = replace(record, returns_at=self.now, excluded=False)

    # ------------------------------------------------------------------ an evaluation

    def _judge(self, record: HostRecord, score: Score, pace: float) -> None:
        well = score.value is not None and score.value >= WELL
        since = (self.now if record.well_since is None else record.well_since) if well else None
        believed = trust(record.trust, score)
        self.hosts[record.host] = replace(record, score=score, trust=believed, well_since=since, pace=pace)

    def _group_causes(self) -> set[tuple[str, Code]]:
        """What many hosts of a group have alerted on is the group's; what it has counted against them is taken back."""
        caused, before = self._caused(self.alerts), self._caused(self.state.alerts)
        for group, code in sorted(caused.keys() - before.keys()):
            self._say(group, Act.REGROUP, [_of_the_group(code), code], self.config.mode(code), scope=Scope.GROUP)
        for (_, code), hosts in sorted(caused.items()):
            for host in sorted(hosts):
                self._take_back(self.hosts[host], code)
        return set(caused)

    def _caused(self, alerts: Iterable[tuple[float, str, Code]]) -> dict[tuple[str, Code], set[str]]:
        """The hosts behind each cause."""
        members = Counter(record.group for record in self.hosts.values())
        hosts: dict[tuple[str, Code], set[str]] = {}
        for time, host, code in alerts:
            if host in self.hosts and time > self.now - CAUSE_SECONDS:
                hosts.setdefault((self.hosts[host].group, code), set()).add(host)
        return {cause: each for cause, each in hosts.items() if guards.is_group_cause(len(each), members[cause[0]])}

    def _take_back(self, record: HostRecord, code: Code) -> None:
        kept = tuple(each for each in record.alerts if each.code is not code or each.time <= self.now - CAUSE_SECONDS)
        self.hosts[record.host] = replace(record, alerts=kept)
        if record.state is HostState.QUARANTINED and not kept:
            self._say(record.host, Act.ADMIT, [_of_the_group(code)])
            self._enter(record, HostState.PROBATION, steps=self.steps)

    def _count(self, host: str, codes: Sequence[Code]) -> bool:
        """Whether the host is to be quarantined for what it has alerted on."""
        record = self.hosts[host]
        recent = tuple(alert for alert in record.alerts if alert.time > self.now - self.config.remember)
        if recent != record.alerts:
            record = self.hosts[host] = replace(record, alerts=recent)
        if not codes or (recent and self.now - recent[-1].time < self.config.apart):
            return False
        modes = {code: self.config.mode(code) for code in codes}
        record = self.hosts[host] = replace(record, alerts=(*recent, *(Alert(self.now, code) for code in codes)))
        enforced = [code for code in codes if modes[code] is Mode.ENFORCE]
        for code in codes:
            if modes[code] is not Mode.ENFORCE:
                again = any(self.config.mode(alert.code) is not Mode.ENFORCE for alert in recent)
                self._say(host, Act.QUARANTINE if again else Act.SUSPECT, [code], modes[code])
        if not enforced:
            return False
        before = any(self.config.mode(alert.code) is Mode.ENFORCE for alert in recent)
        if record.state is HostState.PROBATION or (record.state is HostState.SUSPECT and before):
            return True
        if record.state is HostState.HEALTHY:
            self._say(host, Act.SUSPECT, enforced)
        since = record.since if record.state is HostState.SUSPECT else self.now
        self._enter(record, HostState.SUSPECT, alerts=record.alerts, since=since)
        return False

    def _recover(self, record: HostRecord) -> None:
        """Who has been well for long enough is healthy."""
        calm = self.now - self.config.remember
        well = record.well_since is not None and record.well_since <= calm
        if record.state is HostState.SUSPECT and well and record.late is None:
            self._say(record.host, Act.TRUST_AGAIN, [])
            self._enter(record, HostState.HEALTHY)
        elif record.state is HostState.PROBATION and record.since <= calm and not record.alerts:
            if self.steps - record.steps >= self.config.probation_steps and record.trust >= TRUSTED:
                self._say(record.host, Act.TRUST_AGAIN, [])
                self._enter(record, HostState.HEALTHY)

    def _quarantine(self, record: HostRecord, codes: list[Code]) -> None:
        reasons = [*codes, *(code for code in self._reasons(record) if code not in codes)]
        live, guard = self.hosts.num_live, ""
        if record.group in self.removed_now or len(self.removed) >= guards.noisy_cap(live):
            guard = "cap"
        elif live - 1 < self._minimum:
            guard = "min_hosts"
        self._say(record.host, Act.QUARANTINE, reasons, guard=guard)
        if guard:
            return
        self.removed_now.add(record.group)
        self.removed.append((self.now, record.host))
        self._enter(record, HostState.QUARANTINED, alerts=record.alerts)

    def _relieve(self, observations: Mapping[str, Observation]) -> None:
        """Once of each shortage: what it brings goes on for as long as it lasts (GM-21)."""
        limits = {code: self.config.resource(code) for code in RELIEVED}
        gone = (HostState.EVICTED, HostState.COOLING)
        present = {each.host for each in self.hosts.values() if each.state not in gone}
        self.shortages = shortages(self.shortages, observations, limits, present)
        known = set(self.state.shortages)
        for each in self.shortages:
            if each not in known:
                self._say(each.host, Act.RELIEVE, [each.code], self.config.relief)

    def _look_at_the_job(self, event: Observed) -> None:
        """Once of each jump and each time that it falls behind. After a jump, which may be a host's doing that is in all
        gradients by now, each host tests itself; steps go on, as nothing is known to be wrong (GM-20)."""
        live = [each for host, each in sorted(event.observations.items()) if self._is_live(host)]
        self.course = course.after(self.course, live, self.now, event.steps, self.config.steps_per_second)
        before, mode = self.state.course, self.config.mode(Code.LOSS_SPIKE)
        if self.course.has_jumped and not before.has_jumped:
            self._say("job", Act.TEST, [Code.LOSS_SPIKE], mode)
            for host in sorted(self.hosts.keys() - self.hosts.out) if mode is Mode.ENFORCE else ():
                self.hosts[host] = replace(self.hosts[host], is_tested=True)
        if self.course.is_behind and not before.is_behind:
            self._say("job", Act.INFORM, [Code.THROUGHPUT_UNDERRUN])

    def _is_live(self, host: str) -> bool:
        return host in self.hosts and self.hosts[host].state.is_live

    # ------------------------------------------------------------------ as time passes

    def _go_on(self, record: HostRecord) -> None:
        if record.state is HostState.QUARANTINED:
            self._evict_if_allowed(record)
        elif record.state is HostState.COOLING and not record.excluded:
            if record.returns_at is not None and record.returns_at <= self.now:
                self._test(record, [])

    def _evict_if_allowed(self, record: HostRecord) -> None:
        reasons = self._reasons(record)
        guard = self._guard(record)
        first = record.refused_since is None
        if not guard:
            self._say(record.host, Act.EVICT, reasons)
            self._evict(record, reasons[0])
        elif first:
            self._say(record.host, Act.EVICT, reasons, guard=guard)
            self.hosts[record.host] = replace(record, refused_since=self.now)
        elif record.refused_since is not None and self.now - record.refused_since >= self.config.retry:
            self._test(record, reasons)

    def _test(self, record: HostRecord, reasons: Iterable[Code]) -> None:
        if not record.is_tested:
            self._say(record.host, Act.TEST, reasons)
            self.hosts[record.host] = replace(record, is_tested=True)

    def _guard(self, record: HostRecord) -> str:
        """What forbids to evict a quarantined host on noisy evidence; empty where nothing does."""
        live = self.hosts.num_live
        if self._mass_failure:
            return "mass_failure"
        pace = [alert.code for alert in record.alerts]
        if pace and set(pace) <= set(OF_PACE):
            if not guards.removal_gains(record.pace, live + 1, self.config.change_cost):
                return "gain"
        return ""

    # ------------------------------------------------------------------ changes

    def _enter(self, record: HostRecord, state: HostState, **others: object) -> None:
        """A new state begins with nothing held against the host but what `others` say."""
        if record.state is HostState.HEALTHY and state is not HostState.HEALTHY:
            self.not_healthy.append((self.now, record.host))
        fresh = HostRecord(record.host, record.group, state, self.now, record.trust, evictions=record.evictions)
        stays = record.is_tested and record.state.is_live and state.is_live
        kept = {"score": record.score, "pace": record.pace, "is_tested": stays, **others}
        self.hosts[record.host] = replace(fresh, **kept)  # type: ignore[arg-type]

    def _evict(self, record: HostRecord, code: Code) -> None:
        evictions = (*record.evictions, Eviction(self.now, code))
        self._enter(replace(record, evictions=evictions, trust=min(record.trust, FIRST_TRUST)), HostState.EVICTED)

    def _say(
        self,
        target: str,
        act: Act,
        reasons: Iterable[Code],
        mode: Mode = Mode.ENFORCE,
        *,
        scope: Scope | None = None,
        guard: str = "",
        rolls_back: bool = False,
    ) -> None:
        ordered = tuple(sorted(dict.fromkeys(reasons), key=lambda code: -code.weight))
        where = scope or (ordered[0].scope if ordered else Scope.NODE)
        self.verdicts.append(Verdict(self.now, target, where, act, ordered, mode, guard, rolls_back))

    # ------------------------------------------------------------------ what follows from it

    @property
    def _minimum(self) -> int:
        """Live hosts, below which none is removed on noisy evidence (GM-33)."""
        return max(self.state.least, guards.min_hosts(self.target))

    @property
    def _mass_failure(self) -> bool:
        gone = {host for _, host in self.not_healthy}
        are_out = {host for host in gone if host in self.hosts.out or host not in self.hosts}
        return guards.is_mass_failure(len(gone), self.hosts.num_live + len(are_out))

    def _reasons(self, record: HostRecord) -> list[Code]:
        return list(dict.fromkeys(alert.code for alert in record.alerts))

    def _chance(self, record: HostRecord) -> float:
        """Uniform in [0, 1): of the job's seed, the host and how often it was evicted."""
        text = f"{self.state.seed} {record.host} {len(record.evictions)}"
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _of_the_group(code: Code) -> Code:
    """What a group has of which many hosts alert on `code`."""
    return Code.GROUP_LINK if code in OF_LINKS else Code.GROUP_CORRELATED
