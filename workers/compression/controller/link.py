"""Latency and bandwidth of a link, from the transfers that crossed it (CC-17)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WINDOW = 50
"""Transfers that are looked at."""

ENOUGH = 4
RECENT = 8
"""So many bursts that all differ from those before by `JUMP` are another link."""

JUMP = 2.0

SUDDEN, SUDDEN_JUMP = 3, 8.0
"""So few are, where each of them takes so many times as long: on a link that has all but gone, a few steps take minutes."""
SUDDEN_SECONDS = 1.0
"""And one fewer, where a mean transfer of each adds up to as much."""

LONGEST_BURST = 8
WELL_APART = 0.05
"""Of the range of sizes: nearer ones tell of noise."""

SMALL = 1 << 14
ASSUMED_LATENCY = 1e-4
"""Seconds, where neither sizes that differ nor a small transfer tell it."""


class Line(NamedTuple):
    """A transfer of b bytes takes `latency` + b · `seconds_per_byte`, both at least 0."""

    latency: float
    seconds_per_byte: float

    def seconds(self, nbytes: float) -> float:
        return self.latency + nbytes * self.seconds_per_byte


class Burst(NamedTuple):
    """Transfers that were under way together: how many, their bytes, and when the link was busy with them, in seconds;
    `waited`: they were begun before the link was free."""

    transfers: int
    nbytes: int
    begin: float
    end: float
    waited: bool = False

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def joins(self, begin: float) -> bool:
        """Whether a later transfer that began at `begin` belongs to this burst: as long as that has fewer than
        `LONGEST_BURST`, or where all of it came and went in the meantime."""
        return self.end > begin and (self.begin >= begin or self.transfers < LONGEST_BURST)


class Point(NamedTuple):
    """Of a burst, the mean transfer."""

    nbytes: float
    seconds: float


class Link:
    """The last transfers over one level.

    A link is serial: a transfer's time begins when it was started or when the one before had ended, whichever is later. Of
    two that were under way together nobody can tell what share of the link each had. So they are one burst, with the bytes
    and the busy time of both, and their mean counts; on the line that is sought lies that mean too.
    """

    def __init__(self) -> None:
        self._bursts: deque[Burst] = deque()
        self._transfers = 0
        """In all bursts."""
        self._small: deque[float] = deque(maxlen=RECENT)
        """Seconds of those that were alone, and are not looked at any more."""
        self._fitted: Line | None = None
        self._is_fitted = False
        self._reference: Line | None = None

    def transfer(self, nbytes: int, begin: float, end: float, transfers: int = 1) -> None:
        """So many transfers for which this rank sent `nbytes`; `begin` and `end` in seconds. Called in the order of their
        ends."""
        self._is_fitted = False
        self._transfers += transfers
        burst = Burst(transfers, nbytes, begin, end)
        while self._bursts and self._bursts[-1].joins(begin):
            last = self._bursts.pop()  # several, where a long one ends after some that came and went in the meantime
            both = burst.transfers + last.transfers, burst.nbytes + last.nbytes
            burst = Burst(*both, min(burst.begin, last.begin), max(burst.end, last.end))
        free = self._bursts[-1].end if self._bursts else burst.begin
        if free > burst.begin:
            burst = burst._replace(begin=free, end=max(burst.end, free), waited=True)
        self._bursts.append(burst)
        while self._are_many and self._transfers - self._bursts[0].transfers >= WINDOW:
            oldest = self._bursts.popleft()
            self._transfers -= oldest.transfers
            self._small += _alone_and_small([oldest])

    @property
    def _are_many(self) -> bool:
        """Enough bursts to tell a change by, however many transfers each of them has."""
        return len(self._bursts) > 2 * RECENT

    def fit(self) -> Line | None:
        """None until there are enough transfers."""
        if not self._is_fitted:
            self._fitted, self._is_fitted = self._fit(), True
        return self._fitted

    def settle(self) -> Line | None:
        """`fit`; from now on `slowdown` is against it."""
        self._reference = self.fit()
        return self._reference

    def slowdown(self) -> float:
        """How many times longer the last transfers took than the line of the last `settle` says, in the median; 1 where
        there is none, or too few have come since the link began.
        """
        if self._reference is None or not self._has_enough:
            return 1.0
        telling = self._last_telling()
        if sudden := _sudden(telling, self._reference):
            return _ratio(telling[-sudden:], self._reference)
        return _ratio(telling[-RECENT:], self._reference)

    @property
    def _has_enough(self) -> bool:
        return sum(1 for burst in self._bursts if burst.seconds > 0) >= RECENT

    def _last_telling(self) -> list[Point]:
        """The last `RECENT` of `_telling`, without a look at all of them: they are asked for in each step."""
        found: list[Point] = []
        for burst in reversed(self._bursts):
            if burst.seconds > 0 and burst.nbytes > SMALL * burst.transfers:
                found.append(_point(burst))
                if len(found) == RECENT:
                    return found[::-1]
        points = self._points()
        return [points[i] for i in _telling(points)][-RECENT:]

    def _points(self) -> list[Point]:
        return [_point(burst) for burst in self._bursts if burst.seconds > 0]

    def _fit(self) -> Line | None:
        points = self._points()
        if sum(burst.transfers for burst in self._bursts) < ENOUGH or not points:
            return None
        small = [*self._small, *_alone_and_small(self._bursts)][-RECENT:]
        floor = median(small) if small else ASSUMED_LATENCY
        return fit_line(points[_change(points, floor) :], floor)


def _point(burst: Burst) -> Point:
    return Point(burst.nbytes / burst.transfers, burst.seconds / burst.transfers)


def _alone_and_small(bursts: Iterable[Burst]) -> list[float]:
    """Their seconds."""
    return [each.seconds for each in bursts if each.transfers == 1 and each.nbytes <= SMALL and not each.waited]


def _telling(points: Sequence[Point]) -> list[int]:
    """Which of them tell how fast the link is: not the small ones, where there are enough others."""
    found = [i for i, point in enumerate(points) if point.nbytes > SMALL]
    return found if len(found) >= ENOUGH + SUDDEN else list(range(len(points)))


def _change(points: Sequence[Point], floor: float) -> int:
    """From which one on they are of another link; 0 where all are of one."""
    telling = _telling(points)
    if len(telling) >= ENOUGH + SUDDEN:
        before = fit_line(points[: telling[-SUDDEN]], floor)
        if sudden := _sudden([points[i] for i in telling], before):
            return telling[-sudden]
    if len(telling) >= 2 * RECENT:
        first = telling[-RECENT]
        if not 1 / JUMP < _ratio([points[i] for i in telling[-RECENT:]], fit_line(points[:first], floor)) < JUMP:
            return first
    return 0


def _sudden(points: Sequence[Point], line: Line) -> int:
    """How many of the last ones show that the link has all but gone; 0 where they do not."""
    few = points[1 - SUDDEN :]
    count = len(few) if sum(point.seconds for point in few) >= SUDDEN_SECONDS else SUDDEN
    slow = all(point.seconds > SUDDEN_JUMP * line.seconds(point.nbytes) for point in points[-count:])
    return count if slow else 0


def _ratio(points: Sequence[Point], line: Line) -> float:
    return median(point.seconds / max(line.seconds(point.nbytes), 1e-12) for point in points)


def fit_line(points: Sequence[Point], floor: float) -> Line:
    """The line through `points`, of which there is one or more and fewer than half are outliers.

    Its slope is the median, over the points, of the median slope to all points that are well apart (repeated medians;
    Siegel 1982). Sizes that differ by less than a factor of 2 give no slope; the latency is then `floor`, in seconds, but
    no more than half of the time.
    """
    sizes = [point.nbytes for point in points]
    typical = median(point.seconds for point in points)
    if max(sizes) < 2 * min(sizes) or max(sizes) == 0:
        latency = min(floor, typical / 2) if max(sizes) else typical
        return Line(latency, (typical - latency) / median(sizes) if max(sizes) else 0.0)
    apart = WELL_APART * (max(sizes) - min(sizes))
    each = [_slopes(point, [other for other in points if abs(other.nbytes - point.nbytes) >= apart]) for point in points]
    slope = max(0.0, median(median(slopes) for slopes in each if slopes))
    latency = median(point.seconds - slope * point.nbytes for point in points)
    if latency >= 0:
        return Line(latency, slope)
    through_zero = [point for point in points if point.nbytes > 0]
    return Line(0.0, weighted_median([p.seconds / p.nbytes for p in through_zero], [p.nbytes for p in through_zero]))


def _slopes(point: Point, others: Sequence[Point]) -> list[float]:
    return [(other.seconds - point.seconds) / (other.nbytes - point.nbytes) for other in others]


def median(values: Iterable[float]) -> float:
    """Of an even number, the lower of the two in the middle."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The first value, in rising order, at which half of the weight is reached; weights are above 0."""
    half, reached = sum(weights) / 2, 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        reached += weight
        if reached >= half:
            return value
    raise ValueError("no values")
