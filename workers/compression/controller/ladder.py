"""A policy to compare with: a fixed rule over the round-trip time (CC-22)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workers.compression.choice import Choice
from workers.compression.controller import records
from workers.compression.controller.candidates import INT8, is_late
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.layout import Measured
from workers.compression.controller.records import Record
from workers.compression.controller.state import BucketState, ControllerState
from workers.compression.controller.wire import BucketFacts

RUNGS = ((0.050, Choice("topk", 0.05)), (0.020, INT8))
"""Above so many seconds of the mean round trip."""

LOW_RANK = Choice("powersgd", 4)


def rung(round_trip: float) -> Choice:
    """Of the mean of the last 10 round-trip times, in seconds."""
    return next((choice for above, choice in RUNGS if round_trip > above), LOW_RANK)


def latency_ladder(
    state: ControllerState, measured: Measured, step: int, buckets: Sequence[BucketFacts], config: ControllerConfig
) -> tuple[ControllerState, list[Record]]:
    """All buckets go by the round-trip time; where none was measured, nothing changes."""
    if measured.round_trip is None:
        return replace(state, step=step), []
    return _all_to(state, rung(measured.round_trip), "round_trip", step, measured)


def _all_to(
    state: ControllerState, choice: Choice, reason: str, step: int, measured: Measured
) -> tuple[ControllerState, list[Record]]:
    """Before the end of the dense start `int8` stands for what needs it."""
    wanted = INT8 if is_late(choice) and step < state.dense_until else choice
    if wanted == choice and is_late(choice) and state.step < state.dense_until:
        reason = "dense_start_over"
    changes = [i for i, bucket in enumerate(state.buckets) if bucket.choice != wanted]
    decisions = [
        records.change(step, i, state.buckets[i].choice, wanted, reason, round_trip=measured.round_trip) for i in changes
    ]
    after = replace(
        state,
        step=step,
        chosen=True,
        buckets=tuple(BucketState(wanted, step) if i in changes else bucket for i, bucket in enumerate(state.buckets)),
    )
    return after, [*decisions, _plan(after, measured)]


def _plan(state: ControllerState, measured: Measured) -> Record:
    unknown = [None] * len(state.buckets)
    return records.plan(state.step, state.plan, unknown, measured.took, round_trip=measured.round_trip)
