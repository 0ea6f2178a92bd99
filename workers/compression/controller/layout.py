"""The vector in which ranks reduce what they have measured, element by element to the largest (CC-20)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.choice import Choice
from workers.compression.controller.candidates import CANDIDATES
from workers.compression.controller.link import Line

NEAR, FAR = 1 << 14, 1 << 22
"""Bytes: a line travels as its times at these two, since the errors of a slope and a latency are each other's reverse."""

Value = float | None
"""None: no rank has measured it."""


@dataclass(frozen=True)
class Measured:
    """What one rank has measured, or, read from the reduced vector, all of them.

    Attributes:
        lines: by level. Of all ranks that of the fastest: in a collective, each waits for those that begin it later, so the
            last of them has the time of the transfer itself.
        round_trip: mean of the last ones, seconds; the shortest, as the others have waited for somebody.
        step_seconds: of a whole step under the plan in force; the shortest.
        latest_seconds: of the last step, or of this one until now, whichever is more; the shortest.
        probe: seconds per byte of the last probe of the link; the fastest rank's, which waited for nobody.
        gradient_norm, coherence: of the window; equal on all ranks, or the largest norm and the least coherence.
        encode, decode: seconds per element of each candidate; the slowest rank's.
        hidden: seconds of backward that were left when the exchange of each bucket could begin; the fewest.
        took: seconds from then to the end of the exchange; the fastest rank's, which waited for nobody.
        energy: |g+e|² of each bucket; the largest.
        errors: for each bucket, of each candidate: |1 − gain|; the largest.
    """

    lines: dict[str, Line | None]
    round_trip: Value
    step_seconds: Value
    latest_seconds: Value
    probe: Value
    gradient_norm: Value
    coherence: Value
    encode: tuple[Value, ...]
    decode: tuple[Value, ...]
    hidden: tuple[Value, ...]
    took: tuple[Value, ...]
    energy: tuple[Value, ...]
    errors: tuple[tuple[Value, ...], ...]

    def rate(self, choice: Choice) -> tuple[Value, Value]:
        """Seconds per element to encode and to decode; None where it is no candidate, too."""
        if choice not in CANDIDATES:
            return None, None
        index = CANDIDATES.index(choice)
        return self.encode[index], self.decode[index]

    def error(self, bucket: int, choice: Choice) -> Value:
        return self.errors[bucket][CANDIDATES.index(choice)] if choice in CANDIDATES else None


class Layout:
    """Where each measure lies; its length depends on the model and the levels alone, not on the world."""

    def __init__(self, num_buckets: int, levels: Sequence[str]) -> None:
        self._num_buckets, self._levels = num_buckets, tuple(levels)

    @property
    def length(self) -> int:
        """K."""
        return 2 * len(self._levels) + 6 + 2 * len(CANDIDATES) + (3 + len(CANDIDATES)) * self._num_buckets

    def write(self, measured: Measured) -> Tensor:
        """float32 [K]; -inf where nothing was measured, and the negative of what is to be reduced to the smallest."""
        lines = [measured.lines.get(level) for level in self._levels]
        values = [None if line is None else -line.seconds(size) for line in lines for size in (NEAR, FAR)]
        times = (measured.round_trip, measured.step_seconds, measured.latest_seconds, measured.probe)
        values += map(_negative, times)
        values += [measured.gradient_norm, _negative(measured.coherence)]
        values += [*measured.encode, *measured.decode]
        values += [_negative(value) for value in (*measured.hidden, *measured.took)]
        values += measured.energy
        values += [error for errors in measured.errors for error in errors]
        finite = [value if value is not None and math.isfinite(value) else -math.inf for value in values]
        return torch.tensor(finite, dtype=torch.float32)

    def read(self, vector: Tensor) -> Measured:
        """Of the reduced vector, float32 [K]. Raises ValueError where it is of another length."""
        if vector.shape != (self.length,):
            raise ValueError(
                f"measures of {self._num_buckets} buckets have to be [{self.length}], not {list(vector.shape)}"
            )
        rest = iter([value if math.isfinite(value) else None for value in vector.tolist()])

        def take(count: int) -> tuple[Value, ...]:
            return tuple(next(rest) for _ in range(count))

        lines = {level: _line(*map(_negative, take(2))) for level in self._levels}
        round_trip, step_seconds, latest_seconds, probe = map(_negative, take(4))
        gradient_norm, coherence = take(2)
        encode, decode = take(len(CANDIDATES)), take(len(CANDIDATES))
        hidden, took = (tuple(map(_negative, take(self._num_buckets))) for _ in range(2))
        energy = take(self._num_buckets)
        errors = tuple(take(len(CANDIDATES)) for _ in range(self._num_buckets))
        times = (round_trip, step_seconds, latest_seconds, probe)
        return Measured(lines, *times, gradient_norm, _negative(coherence), encode, decode, hidden, took, energy, errors)


def _negative(value: Value) -> Value:
    return None if value is None else -value


def _line(near: Value, far: Value) -> Line | None:
    if near is None or far is None:
        return None
    slope = max(0.0, far - near) / (FAR - NEAR)
    return Line(max(0.0, near - NEAR * slope), slope)
