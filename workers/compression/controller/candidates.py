"""What the controller chooses from."""

from __future__ import annotations

from workers.compression.choice import FACTOR_CODECS, NONE, Choice

LATE = frozenset({"topk", "threshold", "sign", *FACTOR_CODECS})
"""Codecs that need a dense start (CC-14)."""

INT8 = Choice("int8")

RIVAL = Choice("bf16-ring")
"""Loses next to nothing, and rounds within the ring that `none` goes by: it waits for cores no more than that does."""

CANDIDATES = (
    NONE,
    Choice("fp16"),
    RIVAL,
    INT8,
    Choice("int4"),
    Choice("topk", 0.1),
    Choice("topk", 0.05),
    Choice("topk", 0.01),
    Choice("powersgd-int8", 16),
    Choice("powersgd-int8", 8),
    Choice("powersgd-int8", 4),
    Choice("powersgd-int8", 2),
    Choice("powersgd-int8", 1),
    Choice("sign"),
)
"""Of equals the first is taken. What is measured of each has a place in the vector that ranks reduce."""


def is_late(choice: Choice) -> bool:
    """Not before the dense start is over."""
    return choice.codec in LATE
