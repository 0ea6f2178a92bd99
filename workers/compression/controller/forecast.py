"""What a step's exchange will take under a plan (CC-18)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from workers.compression.choice import NONE, Choice
from workers.compression.controller.layout import Measured
from workers.compression.controller.link import Line
from workers.compression.controller.wire import BucketFacts, transfers, work


class Option(NamedTuple):
    """A choice for a bucket.

    Attributes:
        seconds: latencies + bytes/bandwidth + encode + decode.
        nbytes: that a rank puts on links.
        coding: seconds of encode and decode.
        error: |1 − gain|.
    """

    choice: Choice
    seconds: float
    nbytes: int
    coding: float
    error: float


def seconds(line: Line, facts: BucketFacts, choice: Choice, encode: float, decode: float) -> Option:
    """With rates in seconds per element. The error is left at 0."""
    sent, counts = transfers(facts, choice), work(facts, choice)
    coding = counts.encoded * encode + counts.decoded * decode
    return Option(choice, sum(line.seconds(nbytes) for nbytes in sent) + coding, sum(sent), coding, 0.0)


def known_option(line: Line, facts: BucketFacts, bucket: int, choice: Choice, measured: Measured) -> Option | None:
    """None where its rates or its gain were not measured. `none` needs neither."""
    encode, decode = measured.rate(choice)
    error = 0.0 if choice == NONE else measured.error(bucket, choice)
    if choice != NONE and (encode is None or decode is None or error is None):
        return None
    return seconds(line, facts, choice, encode or 0.0, decode or 0.0)._replace(error=error or 0.0)


def ends(durations: Sequence[float], hidden: Sequence[float]) -> list[float]:
    """When the exchange of each bucket ends, in seconds after the end of backward.

    Bucket i can begin `hidden[i]` seconds before that end, and begins when the one before it has ended: so what of backward
    is left when its turn comes hides it, and no second of backward is counted twice.
    """
    at, found = float("-inf"), []
    for duration, spare in zip(durations, hidden, strict=True):
        at = max(at, -spare) + duration
        found.append(at)
    return found


def exposed(durations: Sequence[float], hidden: Sequence[float]) -> float:
    """Seconds from the end of backward to the end of the last exchange. Of one bucket: max(0, duration − hidden)."""
    return max(0.0, ends(durations, hidden)[-1])


def own_exposed(durations: Sequence[float], hidden: Sequence[float], bucket: int, duration: float) -> float:
    """Exposed seconds that `bucket` causes if it takes `duration`, the others as they are."""
    before, after = durations[:bucket], durations[bucket + 1 :]
    return exposed([*before, duration, *after], hidden) - exposed([*before, 0.0, *after], hidden)
