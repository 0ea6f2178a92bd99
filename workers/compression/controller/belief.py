"""What a link is taken for, where what crosses it tells little: as it was, or as a probe has found it (CC-17, CC-18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.layout import Measured, Value
from workers.compression.controller.link import Line
from workers.compression.controller.state import ControllerState
from workers.compression.controller.wire import BucketFacts, transfers

SHOWS = 4.0
"""Times as long as the latency, which is the noise too, the largest transfer has to take for its time to tell the speed."""

PASSES_BYTES = 1 << 20
"""Of a step, that a shaper may let pass at once, however fast the link behind it is."""

PROBE_STEPS = 100
"""Between two probes of a link that may only seem faster; twice as many after each that finds it as it was."""

MOST_PROBE_STEPS = 1600
IMMEDIATE = 1e-12
"""Seconds per byte of a link at most, of which measures say that it takes no time at all."""

LEAST_PROBE_BYTES, MOST_PROBE_BYTES = 1 << 16, 1 << 20

FASTER = 2.0
"""Times, by which a link has to seem faster for a probe, and a probe to be faster for a change."""

SLOW_PROBES = 2
"""One after the other, after which a link is as slow as they say: the first may have waited for a core."""


class Belief(NamedTuple):
    """What a decision goes by.

    Attributes:
        line: of the link.
        seems_faster: than it was, and what is sent tells nothing of it.
        bears: what is sent, or a probe, has told what a link bears; where it has not, small transfers seem to cross a link
            that has become slow as they always did, and what sends far more might take steps of seconds.
    """

    line: Line
    seems_faster: bool
    bears: bool


def believe(
    line: Line,
    state: ControllerState,
    measured: Measured,
    step: int,
    facts: Sequence[BucketFacts],
    config: ControllerConfig,
) -> tuple[ControllerState, Belief]:
    """The link that a decision goes by, of which `line` was measured; and the state with what probes have found, and with
    the next one, if it is time for it."""
    state, belief = _probed(state, measured, _believed(line, state, facts, measured.step_seconds, config), config)
    is_due = belief.seems_faster and step >= state.probe_after and measured.step_seconds is not None
    return _next_probe(state, measured.step_seconds, step) if is_due else state, belief


def _believed(
    line: Line, state: ControllerState, facts: Sequence[BucketFacts], took: Value, config: ControllerConfig
) -> Belief:
    """The link as it was, where what is sent is so little that it would not show whether the link is faster now.

    Either it takes no longer than noise may make it take; or shapers and queues let it pass at once, because the link
    had time for it while ranks computed.

    Args:
        took: seconds of a step.
    """
    before = state.seconds_per_byte
    if before is None:
        return Belief(line, seems_faster=False, bears=True)
    sent = [transfers(each, bucket.choice) for each, bucket in zip(facts, state.buckets, strict=True)]
    largest, total = max(map(max, sent)), sum(map(sum, sent))
    expected, seems_faster = line._replace(seconds_per_byte=before), line.seconds_per_byte * FASTER < before
    passes = total <= PASSES_BYTES and took is not None and total * before < took
    if passes and seems_faster:
        return Belief(expected, seems_faster=True, bears=False)
    shows = largest * before > SHOWS * line.latency
    if shows or line.seconds(largest) > config.collapse * expected.seconds(largest):
        return Belief(line, seems_faster=False, bears=not passes)
    return Belief(expected, seems_faster, bears=False)


def _probed(
    state: ControllerState, measured: Measured, belief: Belief, config: ControllerConfig
) -> tuple[ControllerState, Belief]:
    """What a probe has found, where nothing else tells: the link is as it was; or faster, which is then known at once; or
    slower, after two of them."""
    before, now = state.seconds_per_byte, measured.probe
    if now is None or before is None:
        return state, belief
    latency = belief.line.latency / max(state.probed, LEAST_PROBE_BYTES)  # per byte: it is in a probe's time too
    if not belief.bears and now > config.collapse * (before + latency):
        if state.slow_probes + 1 < SLOW_PROBES:
            return replace(state, slow_probes=state.slow_probes + 1), belief
        slower = replace(state, seconds_per_byte=now, slow_probes=0)
        return slower, Belief(belief.line._replace(seconds_per_byte=now), seems_faster=False, bears=True)
    state, belief = replace(state, slow_probes=0), belief._replace(bears=True)
    if not belief.seems_faster:
        return state, belief
    if now * FASTER > before:
        return replace(state, probes=state.probes + 1), belief
    faster = replace(state, seconds_per_byte=now, probes=0, probe_after=0)  # how much faster the next one tells
    return faster, belief._replace(line=belief.line._replace(seconds_per_byte=now))


def _next_probe(state: ControllerState, took: Value, step: int) -> ControllerState:
    rest = min(PROBE_STEPS * 2**state.probes, MOST_PROBE_STEPS)
    return replace(probed_next(state, took), probe_after=step + rest)


def probed_next(state: ControllerState, took: Value) -> ControllerState:
    """A probe goes with the next step, of what the link, as it is taken for, carries in a step.

    Args:
        took: seconds of a step.
    """
    carries = (took or 0.0) / max(state.seconds_per_byte or 0.0, IMMEDIATE)
    return replace(state, probing=round(min(max(carries, LEAST_PROBE_BYTES), MOST_PROBE_BYTES)))
