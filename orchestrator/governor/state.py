"""What the policy remembers from one event to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.governor.codes import Code
from orchestrator.governor.course import Course
from orchestrator.governor.hosts import Hosts
from orchestrator.governor.peers import Pool
from orchestrator.governor.pressure import Shortage
from orchestrator.governor.readings import Observation, Readings, read

Gone = tuple[float, str]
"""When, and who."""


@dataclass(frozen=True)
class GovernorState:
    """All that verdicts depend on beside events. `target`: how many hosts the job wants, `least`: with fewer nothing is
    trained; `seed`: the job's."""

    target: int
    seed: int = 0
    least: int = 1
    time: float = 0.0
    hosts: Hosts = field(default_factory=Hosts)
    steps: int = 0
    pools: Mapping[Code, Pool] = field(default_factory=dict)
    alerts: tuple[tuple[float, str, Code], ...] = ()
    """All of the last minute, also those that do not count."""
    removed: tuple[Gone, ...] = ()
    """On noisy evidence."""
    not_healthy: tuple[Gone, ...] = ()
    """Who has left the healthy state."""
    mass_failure: bool = False
    below_minimum: bool = True
    """Nobody is told of it while the first hosts join."""
    shortages: tuple[Shortage, ...] = ()
    """Of memory, disk and processors, those that last."""
    course: Course = field(default_factory=Course)
    """Of the job as a whole."""

    def read(
        self, observations: Mapping[str, Observation], singles: Sequence[Mapping[str, Observation]] = ()
    ) -> tuple[Readings, dict[Code, Pool]]:
        """The noisy signals of the hosts that are live, and the pools after it."""
        groups = {host: record.group for host, record in self.hosts.items() if record.state.is_live}
        live = {host: each for host, each in sorted(observations.items()) if host in groups}
        return read(live, groups, self.pools, singles)
