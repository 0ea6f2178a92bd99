"""Who leads the hosts of a large job, and by which ways they reach the coordinator (GM-1, GM-4, GM-7, GM-18).

Up to `hosts.group` hosts have nobody between them and the coordinator. More are cut into groups, each with a leader. It
hears the heartbeats of its group beside the coordinator, so a host that only one of the two hears is not taken for dead;
and a host that cannot reach the coordinator attaches through it. From `hosts.streams` hosts on all attach through their
leaders, and the leader of the next group is the second who hears them.

Nothing depends on a leader. Where one is lost its hosts attach by streams of their own, and another is appointed at the
next tick.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantarion.v1 import control_pb2 as pb

from orchestrator.governor.codes import Code
from orchestrator.governor.groups import Candidate, are_to_be_cut_anew, leader, sizes
from orchestrator.governor.hosts import HostState
from orchestrator.membership import JobPhase
from workers import tls
from workers.identity import NO_GENERATION

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator

REST_SECONDS = 10.0
"""For which a host that has come back from its leader is left alone; twice as long where that has lasted no longer than its
rest before."""
MOST_REST_SECONDS = 640.0

ANSWER_SECONDS = 5.0
"""For one who is appointed to let others in."""
UNFIT_SECONDS = 60.0
"""For which one who has not done so is passed over."""

AGAIN_SECONDS = 1.0
"""Between two looks where something is not as it should be."""

MOST_SHARE = 0.1
"""Of a processor, for that: with thousands of hosts it is done more seldom."""

MOST_TURNS = 128
"""Hosts that are sent another way at once: each of them says hello there."""

_LAST = 1 << 30
"""Rank of a host that has none."""


@dataclass(eq=False)
class Group:
    """Hosts of one leader. `port`: where it lets the others in; 0 while it does not."""

    hosts: list[str]
    leader: str = ""
    term: int = 0
    port: int = 0
    since: float = 0.0  # the leader was appointed


class Leaders:
    """Of the job of one coordinator."""

    def __init__(self, job: Coordinator) -> None:
        self._job = job
        self.groups: list[Group] = []
        self._of: dict[str, Group] = {}
        self._observers: dict[str, Group] = {}  # by host: the group whose leader hears it
        self._followed: dict[str, pb.Follow] = {}  # what hosts were told last, without the term
        self._led: dict[str, pb.Lead] = {}
        self._rests: dict[str, tuple[float, float]] = {}  # until when, and for how long that was
        self._unfit: dict[str, float] = {}  # until when
        self._terms = 0
        self._passed_at = self._looks_at = self._cut_at = float("-inf")
        self._took = 0.0  # seconds, the last time
        self._cut_for = NO_GENERATION

    # ------------------------------------------------------------------ what has happened

    def attached(self, host: str, through: str) -> None:
        """By the stream of `through`: its own, or its leader's."""
        self._soon()
        if self._leads(host):
            self._dismiss(self._of[host], "its agent has attached anew")
        if through != host:
            return
        before = self._followed.pop(host, None)
        if before is not None and before.HasField("leader"):
            now = self._job.now()
            until, rested = self._rests.get(host, (0.0, 0.0))
            rest = min(2 * rested, MOST_REST_SECONDS) if now - until <= rested else REST_SECONDS
            self._rests[host] = now + rest, rest

    def detached(self, host: str) -> None:
        self._soon()
        if self._leads(host):
            self._dismiss(self._of[host], "its stream is gone")

    def forget(self, host: str) -> None:
        """It is no host of the job any more."""
        self.detached(host)
        for known in (self._followed, self._rests, self._unfit):
            known.pop(host, None)

    def listens(self, host: str, told: pb.Leads) -> None:
        """A leader lets others in."""
        if self._leads(host) and self._of[host].term == told.term:
            self._of[host].port = told.port
            self._soon()

    def may_attach(self, leading: str, host: str) -> bool:
        """Whether a host of the group hangs on the stream of that leader."""
        group = self._of.get(host)
        return group is not None and group.leader == leading

    def observes(self, leading: str, host: str) -> bool:
        """Whether that leader hears the heartbeats of this host."""
        group = self._observers.get(host)
        return group is not None and group.leader == leading

    def _leads(self, host: str) -> bool:
        group = self._of.get(host)
        return group is not None and group.leader == host

    def _soon(self) -> None:
        self._looks_at = min(self._looks_at, self._passed_at + self._took / MOST_SHARE)

    # ------------------------------------------------------------------ what follows

    def tick(self) -> None:
        """Costs nothing where nothing has happened since the last time."""
        job, now = self._job, self._job.now()
        is_new = job.machine.generation != self._cut_for
        if job.machine.phase is not JobPhase.TRAINING or (now < self._looks_at and not is_new):
            return
        begun, self._passed_at = time.perf_counter(), now
        self._sort(is_new=is_new)
        self._cut_for = job.machine.generation
        for group in self.groups:
            self._see_to(group, now)
        all_led = len(self._of) >= job.spec.hosts.streams
        self._observe(all_led=all_led)
        turns = 0
        for group in self.groups:
            for host in group.hosts:
                turns += self._tell(host, self._follow(host, group, all_led=all_led), turns < MOST_TURNS)
        unsettled = turns >= MOST_TURNS or any(not group.port for group in self.groups)
        away = any(not job.streams.is_attached(host) for host in self._of)
        resting = [until for until, _ in self._rests.values() if until > now]
        self._took = time.perf_counter() - begun
        again = max(AGAIN_SECONDS, self._took / MOST_SHARE)
        self._looks_at = now + again if unsettled or away else min(resting, default=float("inf"))

    # ------------------------------------------------------------------ groups

    def _sort(self, *, is_new: bool) -> None:
        """Who is new joins the smallest group. At a new generation groups that have become too uneven are cut anew."""
        most = self._job.spec.hosts.group
        hosts = list(self._job.machine.hosts)
        if len(hosts) <= most:
            self._cut([])
            return
        present = set(hosts)
        for group in self.groups:
            group.hosts = [host for host in group.hosts if host in present]
        self.groups = [group for group in self.groups if group.hosts]
        self._of = {host: group for group in self.groups for host in group.hosts}
        for host in hosts:
            if host not in self._of and self.groups:
                smallest = min(self.groups, key=lambda group: len(group.hosts))
                smallest.hosts.append(host)
                self._of[host] = smallest
        numbers, best = [len(group.hosts) for group in self.groups], sizes(len(hosts), most)
        rested = self._job.now() - self._cut_at
        is_due = is_new and are_to_be_cut_anew(numbers, since_last=rested, most=most)
        if not numbers or (is_due and sorted(numbers) != sorted(best)):
            hosts.sort(key=lambda host: (self._rank(host), host))
            cuts, begin = [], 0
            for size in best:
                cuts.append(hosts[begin : begin + size])
                begin += size
            self._cut(cuts)

    def _cut(self, cuts: Sequence[list[str]]) -> None:
        """A host that leads goes on leading, if it comes to be the first of those in its new group."""
        before, self.groups = {group.leader: group for group in self.groups}, []
        for hosts in cuts:
            was = before.get(next((host for host in hosts if host in before), ""))
            self.groups.append(Group(hosts) if was is None else Group(hosts, was.leader, was.term, was.port, was.since))
        self._of = {host: group for group in self.groups for host in group.hosts}
        if not cuts:
            self._observers = {}
            for host in list(self._followed):
                self._tell(host, pb.Follow(), may_turn=True)
            self._followed.clear()
        for host in list(self._led):
            if not self._leads(host):
                self._resign(host)
        self._cut_at = self._job.now()

    # ------------------------------------------------------------------ leaders

    def _see_to(self, group: Group, now: float) -> None:
        """That it has a leader who is there, stays, and lets others in."""
        if group.leader and self._job.machine.hosts[group.leader].leaving:
            self._dismiss(group, "it leaves")
        elif group.leader and not group.port and now - group.since > ANSWER_SECONDS:
            self._unfit[group.leader] = now + UNFIT_SECONDS
            self._dismiss(group, "it lets nobody in")
        if not group.leader:
            self._appoint(group, now)

    def _appoint(self, group: Group, now: float) -> None:
        job, candidates = self._job, []
        for host in group.hosts:
            record = job.governing.records.get(host)
            fit = job.streams.is_alone(host) and not job.machine.hosts[host].leaving and self._unfit.get(host, 0.0) <= now
            if record is not None and fit:
                healthy, probation = record.state is HostState.HEALTHY, record.state is HostState.PROBATION
                candidates.append(Candidate(host, self._rank(host), healthy, probation, record.trust))
        found = leader(candidates)
        if found is not None:
            group.leader, group.term, group.port, group.since = found, self._next_term(), 0, now
            job.event("leader", {"host": found, "hosts": len(group.hosts)})

    def _dismiss(self, group: Group, reason: str) -> None:
        code, host = Code.GROUP_LEADER_LOST.value, group.leader
        self._job.event("leader_lost", {"host": host, "hosts": len(group.hosts), "code": code, "reason": reason})
        group.leader, group.port = "", 0
        self._resign(host)

    def _resign(self, host: str) -> None:
        """It leads nobody any more; where it is there it is told so."""
        if self._led.pop(host, None) is not None:
            self._job.streams.post(host, pb.CoordinatorMessage(lead=pb.Lead()))

    def _observe(self, *, all_led: bool) -> None:
        """Who hears whom as the second; and what each leader is told of that."""
        self._observers = {}
        heard: dict[str, list[str]] = {}
        for group, after in zip(self.groups, [*self.groups[1:], *self.groups[:1]], strict=True):
            for host in group.hosts:
                comes_by_leader = all_led or self._job.streams.through(host) == group.leader
                observing = after if comes_by_leader or host == group.leader else group
                if observing.leader and observing.leader != host:
                    self._observers[host] = observing
                    heard.setdefault(observing.leader, []).append(host)
        for group in self.groups:
            if group.leader:
                others = [host for host in group.hosts if host != group.leader]
                secured = self._job.spec.name if self._job.entrance.server_name else ""
                order = pb.Lead(term=group.term, hosts=others, observed=heard.get(group.leader, ()), job=secured)
                if self._led.get(group.leader) != order:
                    self._led[group.leader] = order
                    self._job.streams.post(group.leader, pb.CoordinatorMessage(lead=order))

    # ------------------------------------------------------------------ those that follow

    def _follow(self, host: str, group: Group, *, all_led: bool) -> pb.Follow:
        """By which ways it is to go. A host that is led, as it could not come by itself, goes on so."""
        order = pb.Follow()
        observing = self._observers.get(host)
        if observing is not None and observing.port:
            order.observer.CopyFrom(self._way(observing))
        by_itself = self._job.streams.is_alone(host) and not all_led
        until, _ = self._rests.get(host, (0.0, 0.0))
        if group.port and group.leader != host and not by_itself and until <= self._job.now():
            order.leader.CopyFrom(self._way(group))
        return order

    def _way(self, group: Group) -> pb.Way:
        address = self._job.machine.hosts[group.leader].address
        secured = self._job.entrance.server_name
        name = tls.leader_name(self._job.spec.name, group.leader) if secured else ""
        return pb.Way(address=f"{address}:{group.port}", server_name=name)

    def _tell(self, host: str, order: pb.Follow, may_turn: bool) -> bool:
        """Where it is another than before, or where the host is away and may not have heard it; by who hears it then.

        `may_turn`: to another leader, or to none. Returns whether it is told to.
        """
        before, is_here = self._followed.get(host), self._job.streams.is_attached(host)
        if before == order and is_here:
            return False
        turns = before is None or before.leader != order.leader
        if turns and not may_turn:
            return False
        message = pb.CoordinatorMessage(follow=order)
        message.follow.term = self._next_term()
        if is_here:
            self._job.streams.post(host, message)
        elif (observing := self._observers.get(host)) is not None and observing.leader:
            self._job.streams.post_by(observing.leader, host, message)
        self._followed[host] = order
        return turns and order.HasField("leader")

    def _next_term(self) -> int:
        self._terms += 1
        return (self._job.machine.incarnation << 32) + self._terms

    def _rank(self, host: str) -> int:
        return min((worker.rank for worker in self._job.machine.roster.on(host) if worker.rank is not None), default=_LAST)
