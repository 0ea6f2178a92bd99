"""Decisions as plain values, for `events.jsonl` (CC-23).

`compression`: a bucket changes. `compression_plan`: what was decided at the end of a window, changes or not. Times are in
seconds, `bandwidth` in bytes per second; what was not measured is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workers.compression.choice import Choice, Plan, plan_hash
from workers.compression.controller.layout import Value
from workers.compression.controller.link import Line

Record = dict[str, Any]

CHANGE = "compression"
PLAN = "compression_plan"


def change(step: int, bucket: int, old: Choice, new: Choice, reason: str, **measures: Value) -> Record:
    """That `bucket` has another choice after `step`."""
    return {
        "kind": CHANGE,
        "step": step,
        "bucket": bucket,
        "from": str(old),
        "to": str(new),
        "reason": reason,
        **measures,
    }


def plan(step: int, chosen: Plan, predicted: Sequence[Value], measured: Sequence[Value], **measures: Value) -> Record:
    """The plan after `step`, and for each bucket the predicted and measured seconds from when its exchange could begin to
    its end."""
    return {
        "kind": PLAN,
        "step": step,
        "plan": [str(choice) for choice in chosen],
        "hash": f"{plan_hash(chosen):016x}",
        "predicted": list(predicted),
        "measured": list(measured),
        **measures,
    }


def of_line(line: Line) -> dict[str, Value]:
    """`latency` and `bandwidth`."""
    return {"latency": line.latency, "bandwidth": bandwidth(line.seconds_per_byte)}


def bandwidth(seconds_per_byte: Value) -> Value:
    return 1 / seconds_per_byte if seconds_per_byte else None
