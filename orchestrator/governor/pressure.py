"""Which hosts are short of memory, disk or processors, or too hot (GM-21).

That brings relief and counts against nobody: it is no part of the score, by which hosts are ordered for removal and are
trusted again (GM-22, GM-23). Else a disk that fills would keep a host on probation, where one alert is enough to evict it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from orchestrator.governor.codes import RELIEVED, Code
from orchestrator.governor.readings import Observation
from orchestrator.governor.signals import Limits


class Shortage(NamedTuple):
    host: str
    code: Code


def level(observation: Observation, code: Code) -> float | None:
    """Of what `code` is about; None where it is not known."""
    match code:
        case Code.RESOURCE_MEMORY:
            return observation.memory
        case Code.RESOURCE_DISK:
            return observation.disk
        case Code.THERMAL:
            return observation.temperature
        case _:
            return observation.load


def shortages(
    before: Collection[Shortage],
    observations: Mapping[str, Observation],
    limits: Mapping[Code, Limits],
    present: Collection[str],
) -> tuple[Shortage, ...]:
    """After an evaluation, sorted. A shortage begins beyond `alert` and ends at `good`, so that it does not come and go.
    Where nothing is known it stays as it is.

    Args:
        present: hosts in the job; of others there is none.
    """
    found = {each for each in before if each.host in present}
    for host in observations.keys() & set(present):
        for code in RELIEVED:
            value = level(observations[host], code)
            if value is None:
                continue
            if value > limits[code].alert:
                found.add(Shortage(host, code))
            elif value <= limits[code].good:
                found.discard(Shortage(host, code))
    return tuple(sorted(found))
