"""A fleet of simulated hosts that the policy is told about, and what it says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from orchestrator.governor.codes import Code
from orchestrator.governor.config import GovernorConfig, Mode
from orchestrator.governor.events import Event, Fenced, HostTested, Joined, Late, Observed, Tick
from orchestrator.governor.groups import sizes
from orchestrator.governor.hosts import HostRecord, HostState
from orchestrator.governor.policy import decide
from orchestrator.governor.readings import Observation
from orchestrator.governor.state import GovernorState
from orchestrator.governor.verdicts import Act, Verdict

ENFORCED = GovernorConfig(certain=Mode.ENFORCE, noisy=Mode.ENFORCE)

Change = Callable[[Observation], Observation]


def normal(chance: random.Random) -> Observation:
    """What a host that is well looks like, with the noise that is left over a window of many steps."""
    return Observation(
        busy=0.01 * chance.gauss(1, 0.01),
        baseline=0.01,
        cosine=chance.gauss(0.6, 0.03),
        norm=chance.gauss(2.0, 0.1),
        loss=chance.gauss(1.2, 0.05),
        throughput=1e8 * chance.gauss(1, 0.05),
        net_loss=0.0,
        temperature=chance.gauss(60, 3),
    )


def slower(times: float) -> Change:
    return lambda each: replace(each, busy=(each.busy or 0.0) * times)


class Fleet:
    """Hosts in groups of at most 64. Every host test is passed unless the host is in `broken`; none ends where not
    `answers`. `tests`: the hosts whose tests have ended."""

    def __init__(self, hosts: int, config: GovernorConfig = ENFORCED, seed: int = 1) -> None:
        self.config, self.chance = config, random.Random(seed)
        self.state, self.verdicts = GovernorState(target=hosts, seed=seed), list[Verdict]()
        self.now, self.steps, self.broken = 0.0, 0, set[str]()
        self.tests, self.answers = list[str](), True
        names = iter(range(hosts))
        for group, size in enumerate(sizes(hosts)):
            for _ in range(size):
                self.tell(Joined(0.0, f"h{next(names)}", f"g{group}", first=True))

    def tell(self, event: Event) -> list[Verdict]:
        self.state, found = decide(self.state, event, self.config)
        self.verdicts += found
        for each in found:
            if each.is_in_force and each.act is Act.EVICT:
                self.tell(Fenced(self.now, each.target))
            elif each.is_in_force and each.act is Act.TEST and self.answers:
                for host in sorted(self.state.hosts.tested) if each.target == "job" else [each.target]:
                    self.test(host, passed=host not in self.broken)
        return found

    def test(self, host: str, *, passed: bool) -> None:
        """What comes of the test that it was asked for."""
        self.tests.append(host)
        self.tell(HostTested(self.now, host, passed))

    def late(self, host: str) -> None:
        self.tell(Late(self.now, host))

    def evaluate(self, times: int = 1, changes: Mapping[str, Change] | None = None, every: float = 10.0) -> None:
        """So many windows, in which the `changes` hosts are not as usual."""
        for _ in range(times):
            self.now += every
            self.steps += 10
            observations = {host: normal(self.chance) for host in self.hosts}
            for host, change in (changes or {}).items():
                if host in observations:
                    observations[host] = change(observations[host])
            self.tell(Observed(self.now, observations, self.steps))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tell(Tick(self.now))

    @property
    def hosts(self) -> list[str]:
        return [host for host, each in self.state.hosts.items() if each.state.is_live]

    def record(self, host: str) -> HostRecord:
        return self.state.hosts[host]

    def states(self, hosts: Iterable[str]) -> list[HostState]:
        return [self.record(host).state for host in hosts]

    def said(self, host: str) -> list[tuple[Act, tuple[Code, ...]]]:
        return [(each.act, each.reasons) for each in self.verdicts if each.target == host]

    def acts(self, host: str) -> list[Act]:
        return [act for act, _ in self.said(host)]
