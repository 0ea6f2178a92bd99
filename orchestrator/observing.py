"""From the beats of agents to what the governor is told of each host at the end of a window (GM-14, section 4)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from statistics import median

from quantarion.v1 import control_pb2 as pb

from orchestrator.governor.readings import Observation
from orchestrator.link_use import LinkWatch

FOLLOW = 0.05
"""Weight of a window in what is usual for a host."""

BEATS = 64
"""Of a window that are remembered."""

Told = dict[str, tuple[int, float]]
"""Of a host's workers: the step that was heard of last, and that of the cosine."""


class Observing:
    """Of one job."""

    def __init__(self) -> None:
        self._told: dict[str, Told] = {}
        self._beats: dict[str, deque[pb.Beat]] = {}  # the last ones of this window
        self._last: dict[str, pb.Beat] = {}
        self._usual: dict[str, float] = {}
        self._links = LinkWatch()

    def heard(self, host: str, beat: pb.Beat) -> None:
        self._last[host] = beat
        self._links.heard(host, beat.links)
        self._beats.setdefault(host, deque(maxlen=BEATS)).append(beat)

    def singles(self, members: Iterable[str], light: Collection[str] = ()) -> tuple[dict[str, Observation], ...]:
        """What each beat of the window so far has said that is new: of these hosts' first beats, of their second ones, …"""
        found = list[dict[str, Observation]]()
        for host in members:
            told = self._told.get(host, {})
            for number, beat in enumerate(self._beats.get(host, ())):
                if number == len(found):
                    found.append({})
                found[number][host] = self._seen(host, beat, told, host in light)
                told = _told(beat)
        return tuple(found)

    def last(self, host: str) -> pb.Beat:
        """What was heard of it last; nothing where it was never heard."""
        return self._last.get(host, pb.Beat())

    def window(self, members: Mapping[str, str], light: Collection[str] = ()) -> dict[str, Observation]:
        """What was last heard of these hosts, whose addresses they come with; a host's number is the median of its ranks'.
        What was measured once counts in one window, however long the next step takes.

        The usual time per sample of a host is that of its earlier windows, the later ones counting more. That of `light`
        hosts, which have fewer samples than others, cannot be compared: what a step takes at least is a larger part of it.
        """
        found, links = {}, self._links.window(members)
        for host in members:
            beats = self._beats.get(host)
            if beats is None:
                continue
            seen = self._seen(host, beats[-1], self._told.get(host, {}), host in light)
            throughput, loss = _rounded(links[host].throughput, 0), _rounded(links[host].loss, 6)
            found[host] = replace(seen, throughput=throughput, net_loss=loss)
            self._told[host] = _told(beats[-1])
            work = found[host].busy
            if work is not None:
                before = self._usual.get(host, work)
                self._usual[host] = before + FOLLOW * (work - before)
        self._beats.clear()
        return found

    def _seen(self, host: str, beat: pb.Beat, told: Told, is_light: bool) -> Observation:
        """In a beat, after what was `told` before."""
        stepped = [each for each in beat.progress if told.get(each.worker, (0, 0.0))[0] != each.step]
        compared = [each for each in beat.progress if told.get(each.worker, (0, 0.0))[1] != each.compared]
        return Observation(
            busy=None if is_light else _middle(each.work for each in stepped),
            baseline=self._usual.get(host),
            cosine=_middle(each.cosine for each in compared),
            norm=_middle(each.norm for each in compared),
            loss=_middle(each.loss for each in stepped),
            temperature=_middle([beat.temperature]),
            memory=_sensed(beat, "memory"),
            disk=_sensed(beat, "disk"),
            load=_sensed(beat, "load"),
        )


def _told(beat: pb.Beat) -> Told:
    return {each.worker: (each.step, each.compared) for each in beat.progress}


def _sensed(beat: pb.Beat, sensor: str) -> float | None:
    return _rounded(getattr(beat, sensor), 4) if beat.HasField(sensor) else None


def _rounded(value: float | None, digits: int) -> float | None:
    """As it is logged: more of it says nothing."""
    return None if value is None else round(value, digits)


def _middle(values: Iterable[float]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if math.isfinite(value)]
    return median(known) if known else None
