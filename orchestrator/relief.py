"""What is done for hosts that are short of disk or of processors, or too hot (GM-21). Nobody is removed for it."""

from __future__ import annotations

from collections.abc import Callable, Collection

from quantarion.v1 import control_pb2 as pb

from orchestrator.governing import Governing
from orchestrator.governor.codes import Code
from orchestrator.governor.config import GovernorConfig
from orchestrator.membership import Membership

WINDOWS = 3
"""That a rank goes by what it was told, so that relief ends by itself: also where nobody can tell it so."""

LONGEST_WAIT = 300.0
"""Seconds that a host test waits for less load. A host that is always busy is tested all the same."""


class Relief:
    """Of one job.

    Args:
        post: hands a message to the agent of a worker.
    """

    def __init__(
        self,
        config: GovernorConfig,
        governing: Governing,
        machine: Membership,
        post: Callable[[str, pb.CoordinatorMessage], None],
    ) -> None:
        self._config, self._governing, self._machine, self._post = config, governing, machine, post
        self._waiting: dict[str, float] = {}  # hosts whose test waits, and since when

    def give(self) -> None:
        """At the end of each window: ranks on a host whose disk is nearly full keep fewer checkpoints, if they write some,
        and others write from the next generation on; those on a host that is too hot get less to do."""
        self._machine.lighten(self._governing.short_of(Code.THERMAL))
        short = self._governing.short_of(Code.RESOURCE_DISK)
        self._machine.short_of_disk(short)
        good = self._config.resource(Code.RESOURCE_DISK).good
        relieve = pb.Relieve(seconds=WINDOWS * self._config.evaluation, above=good)
        for member in self._machine.roster.members:
            if member.host in short:
                directive = pb.Directive(workers=[member.worker], relieve=relieve)
                self._post(member.worker, pb.CoordinatorMessage(directive=directive))

    def testable(self, hosts: Collection[str], now: float) -> set[str]:
        """Of hosts that train and are to test themselves, those that have processors for it, or have waited for long
        enough; to be asked again and again."""
        loaded = self._governing.short_of(Code.RESOURCE_LOAD) & set(hosts)
        self._waiting = {host: self._waiting.get(host, now) for host in loaded}
        return {host for host in hosts if host not in loaded or now - self._waiting[host] >= LONGEST_WAIT}
