"""What a link is taken for, where what crosses it tells little: as it was, or as a probe has found it (CC-17, CC-18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
LEAST_PROBE_BYTES, MOST_PROBE_BYTES = 1 << 16, 1 << 20

FASTER = 2.0
"""Times, by which a link has to seem faster for a probe, and a probe to be faster for a change."""


def believe(
    line: Line,
    state: ControllerState,
    measured: Measured,
    step: int,
    facts: Sequence[BucketFacts],
    config: ControllerConfig,
) -> tuple[ControllerState, Line]:
    """The link that a decision goes by, of which `line` was measured; and the state with what probes have found, and with
    the next one, if it is time for it."""
    believed, unclear = _believed(line, state, facts, measured.step_seconds, config)
    state, believed = _probed(state, measured, believed, unclear=unclear)
    return _next_probe(state, measured.step_seconds, step, unclear=unclear), believed


def _believed(
    line: Line, state: ControllerState, facts: Sequence[BucketFacts], took: Value, config: ControllerConfig
) -> tuple[Line, bool]:
    """The link as it was, where what is sent is so little that it would not show whether the link is faster now; and
    whether it seems to be.

    Either it takes no longer than noise may make it take; or shapers and queues let it pass at once, because the link
    had time for it while ranks computed.

    Args:
        took: seconds of a step.
    """
    before = state.seconds_per_byte
    if before is None:
        return line, False
    sent = [transfers(each, bucket.choice) for each, bucket in zip(facts, state.buckets, strict=True)]
    largest, total = max(map(max, sent)), sum(map(sum, sent))
    expected, seems_faster = line._replace(seconds_per_byte=before), line.seconds_per_byte * FASTER < before
    passes = total <= PASSES_BYTES and took is not None and total * before < took
    if passes and seems_faster:
        return expected, True
    shows = largest * before > SHOWS * line.latency
    if shows or line.seconds(largest) > config.collapse * expected.seconds(largest):
        return line, False
    return expected, seems_faster


def _probed(state: ControllerState, measured: Measured, line: Line, *, unclear: bool) -> tuple[ControllerState, Line]:
    """What a probe has found, where nothing else tells: the link is as it was, or faster, which is then known at once."""
    before, now = state.seconds_per_byte, measured.probe
    if now is None or before is None or not unclear:
        return state, line
    if now * FASTER > before:
        return replace(state, probes=state.probes + 1), line
    faster = replace(state, seconds_per_byte=now, probes=0, probe_after=0)  # how much faster the next one tells
    return faster, line._replace(seconds_per_byte=now)


def _next_probe(state: ControllerState, took: Value, step: int, *, unclear: bool) -> ControllerState:
    """It goes with the measures of the next decision, and sends what the link, as it is taken for, carries in a step."""
    before = state.seconds_per_byte
    if not unclear or not before or took is None or step < state.probe_after:
        return state
    nbytes = min(max(round(took / before), LEAST_PROBE_BYTES), MOST_PROBE_BYTES)
    rest = min(PROBE_STEPS * 2**state.probes, MOST_PROBE_STEPS)
    return replace(state, probing=nbytes, probe_after=step + rest)
