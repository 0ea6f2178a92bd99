"""Hosts that have to pass the host test: to come back, or to stay where a guard forbids their removal (GM-36)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantarion.v1 import control_pb2 as pb

from orchestrator.governor.events import HostTested

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator

TEST_SECONDS = 60.0
"""For a host to come up and pass its test."""

AGAIN_SECONDS = 30.0
"""After a test that could not be done."""

SPARE_SECONDS = 600.0
"""Between two tests of a spare host; one that fails is not taken again for as long (GM-37)."""


@dataclass(frozen=True)
class Placed:
    """A host that is placed for the host test which it has to pass to come back."""

    address: str
    group: str
    since: float


class HostTests:
    """Of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._job = coordinator
        self._placed: dict[str, Placed] = {}
        self._asked: set[str] = set()  # hosts of the job that were asked to test themselves
        self._not_before: dict[str, float] = {}  # when a host that could not be tested may be tested again
        self._spares: dict[str, float] = {}  # when each was tested last, or became one

    def place(self, host: str, address: str, group: str) -> None:
        """Its agent is being started; it is no part of the job yet."""
        self._placed[host] = Placed(address, group, self._job.now())

    def awaits(self, host: str) -> bool:
        """It is placed to be tested."""
        return host in self._placed

    def has_to_wait(self, host: str) -> bool:
        """A test of it could not be done a moment ago."""
        return self._job.now() < self._not_before.get(host, 0.0)

    def begin(self, host: str) -> None:
        """On the stream of its agent."""
        self._job.streams.post(host, pb.CoordinatorMessage(host_test=pb.HostTest()))

    def tick(self) -> None:
        """Test the quarantined whom a guard keeps; give up those that do not answer."""
        job, now = self._job, self._job.now()
        attached = {host for host, view in job.machine.hosts.items() if view.attached}  # else it would not hear of it
        to_test = {host for host in job.governing.to_test(attached) if not self.has_to_wait(host)}
        begun = job.relief.testable(to_test - self._asked, now)
        for host in sorted(begun):
            self.begin(host)
        self._asked = (self._asked & to_test) | begun
        self._test_spares()
        for host in [host for host, each in self._placed.items() if now - each.since > TEST_SECONDS]:
            self.give_up(host, f"no answer for {TEST_SECONDS:g} s")

    def _test_spares(self) -> None:
        """Who waits to help has to be able to; and is no help if nothing is heard of it."""
        job, now = self._job, self._job.now()
        self._spares = {host: self._spares.get(host, now) for host in job.machine.roster.spares}
        for host, last in list(self._spares.items()):
            if job.governing.is_silent(host, now):
                job.do(job.machine.host_lost(host, "a spare host fell silent", now, certain=False))
            elif now - last >= SPARE_SECONDS:
                self._spares[host] = now
                self.begin(host)

    def told(self, host: str, result: pb.HostTested) -> None:
        """What came of it. An error tells nothing of the host."""
        job, now = self._job, self._job.now()
        if result.error:
            self._not_before[host] = now + AGAIN_SECONDS
            self.give_up(host, result.error)
            return
        placed, failures = self._placed.pop(host, None), list(result.failures)
        job.event("host_test", {"host": host, "passed": not failures, "failures": failures, "seconds": result.seconds})
        job.governing.tell(HostTested(now, host, not failures))
        if placed is None:
            if failures and host in self._spares:
                self._not_before[host] = now + SPARE_SECONDS
                job.do(job.machine.host_lost(host, "a spare host has failed its test", now))
            return
        if not job.governing.is_in(host):
            job.drop(host)
            return
        job.do(job.machine.expect_host(host, placed.address, now, placed.group))
        job.do(job.machine.attach(host, placed.address, [], now))

    def give_up(self, host: str, reason: str) -> None:
        """If it is being tested to come back. It is tried again after a while, as a node that is offered."""
        if host not in self._placed:
            return
        job, now = self._job, self._job.now()
        since = self._placed.pop(host).since
        self._not_before[host] = now + AGAIN_SECONDS
        job.event("host_test", {"host": host, "passed": False, "failures": [reason], "seconds": now - since})
        job.drop(host)
