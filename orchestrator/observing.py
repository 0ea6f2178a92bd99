"""From the beats of agents to what the governor is told of each host at the end of a window (GM-14, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median

from quantarion.v1 import control_pb2 as pb

from orchestrator.governor.readings import Observation
from orchestrator.link_use import LinkWatch

FOLLOW = 0.05
"""Weight of a window in what is usual for a host."""


class Observing:
    """Of one job."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, tuple[int, float]]] = {}  # of each host's workers: the step, and that of the cosine
        self._beats: dict[str, pb.Beat] = {}
        self._last: dict[str, pb.Beat] = {}
        self._usual: dict[str, float] = {}
        self._links = LinkWatch()

    def heard(self, host: str, beat: pb.Beat) -> None:
        self._beats[host] = self._last[host] = beat
        self._links.heard(host, beat.links)

    def last(self, host: str) -> pb.Beat:
        """What was heard of it last; nothing where it was never heard."""
        return self._last.get(host, pb.Beat())

    def window(self, members: Mapping[str, str]) -> dict[str, Observation]:
        """What was last heard of these hosts, whose addresses they come with; a host's number is the median of its ranks'.
        What was measured once counts in one window, however long the next step takes.

        The usual time per sample of a host is that of its earlier windows, the later ones counting more.
        """
        found, links = {}, self._links.window(members)
        for host in members:
            beat = self._beats.pop(host, None)
            if beat is None:
                continue
            told = self._told.get(host, {})
            stepped = [each for each in beat.progress if told.get(each.worker, (0, 0.0))[0] != each.step]
            compared = [each for each in beat.progress if told.get(each.worker, (0, 0.0))[1] != each.compared]
            self._told[host] = {each.worker: (each.step, each.compared) for each in beat.progress}
            work = _middle(each.work for each in stepped)
            found[host] = Observation(
                busy=work,
                baseline=self._usual.get(host),
                cosine=_middle(each.cosine for each in compared),
                norm=_middle(each.norm for each in compared),
                loss=_middle(each.loss for each in stepped),
                throughput=_rounded(links[host].throughput, 0),
                net_loss=_rounded(links[host].loss, 6),
                temperature=_middle([beat.temperature]),
                memory=_sensed(beat, "memory"),
                disk=_sensed(beat, "disk"),
                load=_sensed(beat, "load"),
            )
            if work is not None:
                before = self._usual.get(host, work)
                self._usual[host] = before + FOLLOW * (work - before)
        return found


def _sensed(beat: pb.Beat, sensor: str) -> float | None:
    return _rounded(getattr(beat, sensor), 4) if beat.HasField(sensor) else None


def _rounded(value: float | None, digits: int) -> float | None:
    """As it is logged: more of it says nothing."""
    return None if value is None else round(value, digits)


def _middle(values: Iterable[float]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if math.isfinite(value)]
    return median(known) if known else None
