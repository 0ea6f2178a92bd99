"""Which faults come when: a pure function of the seed and of what there is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.storm.kinds import TRAITS, Kind, Target, away, held

CALM_SECONDS = 3.0
"""At the end of a storm, without a new fault."""

RATES = (10.0, 40.0)
"""Mbit/s of a link that is slowed down."""


@dataclass(frozen=True)
class Planned:
    """One fault to come.

    Attributes:
        number: from 0, in the order of time.
        at: seconds from the beginning of the storm.
        host: index of a machine; None where the job as a whole is the target.
        slot: which of the ranks that the host has; None where no single rank is the target.
        seconds: how long it lasts.
        rate: Mbit/s, of `shape`.
    """

    number: int
    at: float
    kind: Kind
    host: int | None
    slot: int | None
    seconds: float
    rate: float | None = None


def schedule(
    seed: int, minutes: float, rate: float, kinds: Sequence[Kind], hosts: int, ranks_per_host: int, hosts_min: int
) -> list[Planned]:
    """The faults of a storm of `minutes`, about `rate` of them a minute.

    Moments are uniform over the storm. Kinds are dealt out, so that each comes once before any comes again. A fault that
    may cost the job a host is drawn only where `hosts_min` are left, without those that are away by then as it is planned;
    no host is the target of a second one before it is back from the first. A moment for which nothing is left passes.

    Raises:
        ValueError: a number makes no sense, or none of the kinds may be done with so few hosts.
    """
    kinds = [kind for kind in kinds if hosts > hosts_min or any(not away(kind, low) for low, _ in TRAITS[kind].lasts)]
    if minutes <= 0 or rate <= 0 or not kinds or not 1 <= hosts_min <= hosts or ranks_per_host < 1:
        what = f"{minutes:g} minutes, {rate:g} faults a minute of {len(kinds)} kinds that may be done"
        raise ValueError(f"{what} to {hosts} hosts, of which {hosts_min} have to be left: that is no storm")
    drawn = _Draw(seed, hosts, ranks_per_host, hosts_min)
    last = max(0.0, 60.0 * minutes - CALM_SECONDS)
    moments = sorted(drawn.chance.uniform(0.0, last) for _ in range(round(minutes * rate)))
    deck: list[Kind] = []
    plan: list[Planned] = []
    quiet_until = 0.0
    for moment in moments:
        at = max(moment, quiet_until)
        if not deck:
            deck = drawn.chance.sample(list(kinds), len(kinds))
        found = next((fault for kind in deck if (fault := drawn.fault(len(plan), kind, at)) is not None), None)
        if found is None or at > last:
            continue
        drawn.take(found)
        deck.remove(found.kind)
        plan.append(found)
        quiet_until = at + TRAITS[found.kind].alone
    return plan


class _Draw:
    """Draws faults, and remembers which hosts are taken by then."""

    def __init__(self, seed: int, hosts: int, ranks_per_host: int, hosts_min: int) -> None:
        self.chance = random.Random(seed)
        self._ranks, self._min = ranks_per_host, hosts_min
        self._held = [0.0] * hosts  # until when
        self._away = [0.0] * hosts
        self._job_held = dict.fromkeys(Kind, 0.0)

    def fault(self, number: int, kind: Kind, at: float) -> Planned | None:
        """None where there is nobody whom it may befall now."""
        traits, chance = TRAITS[kind], self.chance
        seconds = chance.uniform(*chance.choice(traits.lasts))
        if traits.target is Target.JOB:
            return None if self._job_held[kind] > at else Planned(number, at, kind, None, None, seconds)
        free = [host for host, until in enumerate(self._held) if until <= at]
        present = sum(until <= at for until in self._away)
        if not free or (away(kind, seconds) and present - 1 < self._min):
            return None
        slot = chance.randrange(self._ranks) if traits.target is Target.RANK else None
        rate = chance.uniform(*RATES) if kind is Kind.SHAPE else None
        return Planned(number, at, kind, chance.choice(free), slot, seconds, rate)

    def take(self, fault: Planned) -> None:
        until = fault.at + held(fault.kind, fault.seconds)
        if fault.host is None:
            self._job_held[fault.kind] = until
            return
        self._held[fault.host] = max(self._held[fault.host], until)
        self._away[fault.host] = max(self._away[fault.host], fault.at + away(fault.kind, fault.seconds))
