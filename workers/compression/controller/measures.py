"""What one rank measures while it trains, from real transfers only (CC-17)."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Sequence

from torch import Tensor

from workers.compression.choice import NONE, Choice, Plan
from workers.compression.controller.candidates import CANDIDATES
from workers.compression.controller.forecast import seconds
from workers.compression.controller.layout import Layout, Measured, Value
from workers.compression.controller.link import Line, Link, median, weighted_median
from workers.compression.controller.shadows import Pair, Shadows
from workers.compression.controller.wire import BucketFacts

ROUND_TRIPS = 10
CODINGS = 16
GAINS = 10
STEPS = 20
ENOUGH_STEPS = 5
"""So many tell how long a step takes."""
NORMS = 10

UNKNOWN_LINK = Line(0.0, 1e-8)
"""Until one is measured: only to say what is tried first."""


class Measures:
    """Of one rank; it outlives generations. Called by one thread at a time.

    Nothing here is replicated: what decides is the reduced `vector`. What was not measured by any rank is None there. A
    copy within a host, or to a rank itself, is never a transfer.

    Args:
        buckets: facts of the generation.
        levels: the link levels that are measured.
    """

    def __init__(self, buckets: Sequence[BucketFacts], levels: Sequence[str] = ("hosts",)) -> None:
        self._links = {level: Link() for level in levels}
        self._layout = Layout(len(buckets), levels)
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIPS)
        self._encode: dict[Choice, deque[tuple[float, int]]] = defaultdict(lambda: deque(maxlen=CODINGS))
        self._decode: dict[Choice, deque[tuple[float, int]]] = defaultdict(lambda: deque(maxlen=CODINGS))
        self._hidden = [deque[float](maxlen=STEPS) for _ in buckets]
        self._took = [deque[float](maxlen=STEPS) for _ in buckets]
        self._energy = [deque[float](maxlen=GAINS) for _ in buckets]
        self._gains: dict[Pair, deque[float]] = defaultdict(lambda: deque(maxlen=GAINS))
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._probe: Value = None
        self._probe_bytes = 0
        self._norms: deque[float] = deque(maxlen=NORMS)
        self._coherence: deque[float] = deque(maxlen=STEPS)
        self._buckets = tuple(buckets)
        self._shadows = Shadows(buckets, self._saves)

    def begin_generation(self, buckets: Sequence[BucketFacts]) -> None:
        """There may be other hosts from now on; the buckets hold the same parameters. Links are measured anew."""
        self._buckets = tuple(buckets)
        self._steps.clear()
        self._probe, self._probe_bytes = None, 0
        for level in self._links:
            self._links[level] = Link()
        self._shadows.begin_generation(buckets)

    # ------------------------------------------------------------------ from the exchange

    def transfer(self, level: str, nbytes: int, begin: float, end: float, transfers: int = 1) -> None:
        """A transfer, or several one after the other, that crossed a link of `level`, for which this rank sent `nbytes`.

        Args:
            begin: when it was issued, seconds of any clock that only rises.
            end: when it was first seen to be done. Polled often enough: what a rank computes between the end and the look
                counts as the link's. Transfers of several buckets may be under way together and are called for in the
                order in which they ended; `Link` sorts out who had it.

        Small ones, such as the sums of the tail and of this vector, are welcome: they tell the latency, as nothing else
        does while all buckets are of one size.
        """
        if 0 < self._probe_bytes <= nbytes:
            self._probe, self._probe_bytes = (end - begin) / nbytes, 0
        else:
            self._links[level].transfer(nbytes, begin, end, transfers)

    def expect_probe(self, nbytes: int) -> None:
        """The next transfer of as many bytes was made to see what the link carries."""
        self._probe_bytes = nbytes

    def round_trip(self, seconds: float) -> None:
        """From sending something small to a peer to having its answer; only `latency_ladder` asks for it."""
        self._round_trips.append(seconds)

    def encoded(self, choice: Choice, elements: int, seconds: float) -> None:
        """Counted as in `wire.work`."""
        if elements:
            self._encode[choice].append((seconds / elements, elements))

    def decoded(self, choice: Choice, elements: int, seconds: float) -> None:
        """Counted as in `wire.work`."""
        if elements:
            self._decode[choice].append((seconds / elements, elements))

    def hidden(self, bucket: int, seconds: float) -> None:
        """From when the exchange of `bucket` could begin, its gradients being there, to the end of backward."""
        self._hidden[bucket].append(seconds)

    def took(self, bucket: int, seconds: float) -> None:
        """From when the exchange of `bucket` could begin to its end: to be compared with what was predicted."""
        self._took[bucket].append(seconds)

    def stepped(self, seconds: float) -> None:
        """From the beginning of a step to that of the next one, in which nothing was tried beside the exchange."""
        self._steps.append(seconds)

    def begin_steps(self) -> None:
        """The plan or the link has changed: steps before say nothing of those to come."""
        self._steps.clear()

    def gain(self, bucket: int, choice: Choice, gain: float, energy: float | None = None) -> None:
        """|decoded|²/|g+e|² of `choice` on `bucket`, and `energy` = |g+e|².

        To be taken of a shadow that begins with e = 0, for what is in force too. In a running exchange e grows until as
        much leaves as comes; |decoded|²/|g+e|² then tells how long a codec takes to send a gradient, not how much of a
        step it keeps, and no low rank or density ever has 0.9. For `powersgd` Q has to be that of the shadow before.

        |1 − gain| is what counts as error: rounding to nearest often gives a little more energy than there was. A gain that
        is not finite, as of a bucket of zeros, says nothing.
        """
        pair = Pair(bucket, choice)
        self._shadows.tried(pair)
        if not math.isfinite(gain):
            return
        self._gains[pair].append(gain)
        if energy is not None:
            self._energy[bucket].append(energy)

    def gradient_norm(self, value: float) -> None:
        """L2 norm of a step's reduced gradient."""
        self._norms.append(value)

    def coherence(self, value: float) -> None:
        """Median over the ranks of the agreement of their gradients; where nobody measures it, it does not count."""
        self._coherence.append(value)

    def next_shadow(self, step: int, plan: Plan = ()) -> Pair | None:
        """A bucket and a candidate to be encoded and decoded beside the exchange of `step`, and told to `encoded`,
        `decoded` and `gain`; to be asked until it is None. Each rank tries what it is asked to; no two need agree.

        In the first steps all candidates, then, now and then, those that might save time and those of the `plan` in force.
        """
        return self._shadows.next(step, plan)

    # ------------------------------------------------------------------ for the decision

    def vector(self, latest: Value = None, *, is_whole: bool = True) -> Tensor:
        """float32 [K], to be reduced to the largest of each element over all ranks, in the steps of a decision.

        Args:
            latest: seconds of the last step, or of the one under way until now, whichever is more.
            is_whole: a window ends here. Others do not go by what a probe has found: it is kept for the next that does.
        """
        probe = self._probe if is_whole else None
        if is_whole:
            self._probe = None
        return self._layout.write(self._measured(latest, probe))

    def alarm(self, factor: float) -> bool:
        """Whether a link is `factor` times slower than the last `vector` said. Cheap: for every step.

        Where one rank says so, and all hear it, this step or the next is a decision's (`ControllerState.alarmed`).
        """
        return any(link.slowdown() > factor for link in self._links.values())

    def read(self, reduced: Tensor) -> Measured:
        """The reduced `vector`, the same on all ranks."""
        return self._layout.read(reduced)

    def _measured(self, latest: Value, probe: Value) -> Measured:
        return Measured(
            lines={level: link.settle() for level, link in self._links.items()},
            round_trip=_mean(self._round_trips),
            step_seconds=_midmean(self._steps) if len(self._steps) >= ENOUGH_STEPS else None,
            latest_seconds=latest,
            probe=probe,
            gradient_norm=_mean(self._norms),
            coherence=_mean(self._coherence),
            encode=tuple(_rate(self._encode.get(choice)) for choice in CANDIDATES),
            decode=tuple(_rate(self._decode.get(choice)) for choice in CANDIDATES),
            hidden=tuple(map(_median, self._hidden)),
            took=tuple(map(_median, self._took)),
            energy=tuple(map(_median, self._energy)),
            errors=tuple(tuple(self._error(i, choice) for choice in CANDIDATES) for i in range(len(self._buckets))),
        )

    def _error(self, bucket: int, choice: Choice) -> Value:
        gains = self._gains.get(Pair(bucket, choice))
        return _median([abs(1 - gain) for gain in gains]) if gains else None

    def _saves(self, pair: Pair) -> float:
        """Seconds, as far as they are known: a rate that is not counts as 0."""
        line = self._links[self._buckets[pair.bucket].level].fit() or UNKNOWN_LINK
        facts = self._buckets[pair.bucket]
        none, other = (
            seconds(line, facts, choice, _rate(self._encode.get(choice)) or 0.0, _rate(self._decode.get(choice)) or 0.0)
            for choice in (NONE, pair.choice)
        )
        return none.seconds - other.seconds


def _mean(values: Sequence[float] | deque[float]) -> Value:
    return sum(values) / len(values) if values else None


def _median(values: Sequence[float] | deque[float]) -> Value:
    return median(values) if values else None


def _midmean(values: Sequence[float] | deque[float]) -> float:
    """Of the middle half. A rank that begins a step late has a long one and then a short one, and where ranks wait for each
    other more, both are more extreme: the least steps of a plan tell less of it than those in the middle."""
    cut = len(values) // 4
    return sum(sorted(values)[cut : len(values) - cut]) / (len(values) - 2 * cut)


def _rate(samples: deque[tuple[float, int]] | None) -> Value:
    """Seconds per element: of half of all elements it was no more."""
    return weighted_median([rate for rate, _ in samples], [count for _, count in samples]) if samples else None
