"""The controller's decisions for a person: `quantarion explain compression JOB` (CC-23)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workers.compression.controller.records import CHANGE, PLAN

REASONS = {
    "start": "chosen anew",
    "saves": "predicted to save time",
    "no_gain": "no longer beats none",
    "disappoints": "took no less than others had",
    "compares": "to see what steps with none take",
    "tries": "to see what steps with it take",
    "wins": "the fastest of those compared",
    "collapse": "the link has collapsed",
    "budget": "the error budget was exceeded",
    "dense_start_over": "the dense start is over",
    "round_trip": "by the round-trip time",
}

Row = Sequence[str]


def explain(events: Iterable[Mapping[str, Any]]) -> str:
    """One line per change of a bucket; then the present plan, its predicted times beside the measured ones.

    Args:
        events: of `events.jsonl`, in their order; other kinds are passed over.
    """
    kept = [event for event in events if event.get("kind") in (CHANGE, PLAN)]
    plans = [event for event in kept if event["kind"] == PLAN]
    changes = [event for event in kept if event["kind"] == CHANGE]
    if not plans:
        return "No codec was chosen yet: the first decision comes at the end of the first window of steps."
    parts = [_changes(changes) if changes else f"{len(plans)} decisions, and no bucket changed."]
    return "\n\n".join([*parts, _present(plans[-1], changes)])


def _changes(changes: Sequence[Mapping[str, Any]]) -> str:
    head = ("step", "bucket", "from", "to", "kB", "predicted ms", "error", "link", "why")
    rows = [
        (
            str(event["step"]),
            str(event["bucket"]),
            event["from"],
            event["to"],
            _pair(event.get("from_bytes"), event.get("to_bytes"), 1e-3),
            _pair(event.get("from_seconds"), event.get("to_seconds"), 1e3),
            _number(event.get("to_error"), 1.0, 4),
            _link(event),
            REASONS.get(event["reason"], event["reason"]),
        )
        for event in changes
    ]
    return _table(head, rows)


def _present(plan: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> str:
    last = {event["bucket"]: event["step"] for event in changes}
    head = ("bucket", "codec", "since step", "predicted ms", "measured ms")
    columns = zip(plan["plan"], plan["predicted"], plan["measured"], strict=True)
    rows = [
        (str(bucket), codec, str(last.get(bucket, 0)), _number(predicted, 1e3), _number(measured, 1e3))
        for bucket, (codec, predicted, measured) in enumerate(columns)
    ]
    lines = [f"The plan after step {plan['step']} ({plan['hash']}):", _table(head, rows)]
    if plan.get("exposed") is not None:
        lines.append(
            f"Exposed: {_number(plan['exposed'], 1e3)} ms predicted, {_number(plan['exposed_none'], 1e3)} ms with none. "
            f"Error: {plan['error']:.4f} of {plan['budget']:.4f}"
            + (", tight while gradients change fast." if plan["critical"] else ".")
            + f" Link: {_link(plan)}."
        )
    return "\n".join(lines)


def _link(event: Mapping[str, Any]) -> str:
    if event.get("round_trip") is not None:
        return f"{event['round_trip'] * 1e3:.1f} ms round trip"
    if event.get("latency") is None:
        return "-"
    rate = event.get("bandwidth")
    return f"{'unlimited' if rate is None else f'{rate * 8e-6:.4g} Mbit/s'}, {event['latency'] * 1e3:.2f} ms"


def _pair(before: float | None, after: float | None, scale: float) -> str:
    return "-" if before is None or after is None else f"{_number(before, scale)} → {_number(after, scale)}"


def _number(value: float | None, scale: float, digits: int = 1) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _table(head: Row, rows: Sequence[Row]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    )
