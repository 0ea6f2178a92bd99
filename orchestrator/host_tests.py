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
        to_test = {host for host in job.governing.to_test(job.machine.hosts) if not self.has_to_wait(host)}
        begun = job.relief.testable(to_test - self._asked, now)
        for host in sorted(begun):
            self.begin(host)
        self._asked = (self._asked & to_test) | begun
        for host in [host for host, each in self._placed.items() if now - each.since > TEST_SECONDS]:
            self.give_up(host, f"no answer for {TEST_SECONDS:g} s")

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
