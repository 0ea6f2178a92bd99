"""A model of two or more buckets, and what ranks might have measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import hypothesis.strategies as st

from workers.compression.choice import NONE, Choice
from workers.compression.controller.candidates import CANDIDATES
from workers.compression.controller.layout import Measured
from workers.compression.controller.link import Line
from workers.compression.controller.wire import BucketFacts

MLP = (
    (("2.weight", (10, 500)), ("2.bias", (10,))),
    (("1.weight", (500, 1000)), ("1.bias", (500,)), ("0.weight", (1000, 784)), ("0.bias", (1000,))),
)

ERRORS = {
    "none": 0.0,
    "fp16": 1e-6,
    "bf16-ring": 1e-5,
    "int8": 1e-4,
    "int4": 0.015,
    "topk 0.1": 0.25,
    "topk 0.05": 0.4,
    "topk 0.01": 0.7,
    "powersgd-int8 16": 0.02,
    "powersgd-int8 8": 0.07,
    "powersgd-int8 4": 0.2,
    "powersgd-int8 2": 0.3,
    "powersgd-int8 1": 0.4,
    "sign": 0.6,
}
"""1 − gain, about what an MLP's gradients have."""

RATES = {"none": 0.0, "fp16": 2e-10, "bf16-ring": 2e-10, "int8": 8e-10, "int4": 1e-9, "sign": 8e-10}
"""Seconds per element; of the others 3e-9."""

FAST, MEDIUM, SLOW = (Line(2e-4, 8 / rate) for rate in (4e10, 1e8, 1e7))


def mlp(hosts: int = 4, sensitive: Sequence[float] = (0.0, 0.0)) -> tuple[BucketFacts, ...]:
    """784-1000-500-10."""
    return tuple(BucketFacts(shapes, hosts, sensitive=share) for shapes, share in zip(MLP, sensitive, strict=True))


def measured(
    line: Line | None,
    *,
    buckets: int = 2,
    errors: Mapping[str, float] | None = ERRORS,
    rates: Mapping[str, float] = RATES,
    hidden: Sequence[float] | None = None,
    energy: Sequence[float] | None = None,
    gradient_norm: float | None = None,
    coherence: float | None = None,
    round_trip: float | None = None,
    step_seconds: float | None = None,
    latest_seconds: float | None = None,
    probe: float | None = None,
    took: Sequence[float] | None = None,
    overrides: Mapping[tuple[int, str], float] | None = None,
) -> Measured:
    """`errors` None: no gain was measured. `overrides`: of a bucket and a candidate."""
    rate = tuple(rates.get(choice.codec, 3e-9) for choice in CANDIDATES)
    found = [
        tuple((overrides or {}).get((i, str(each)), None if errors is None else errors[str(each)]) for each in CANDIDATES)
        for i in range(buckets)
    ]
    nothing = (None,) * buckets
    return Measured(
        lines={"hosts": line},
        round_trip=round_trip,
        step_seconds=step_seconds,
        latest_seconds=latest_seconds,
        probe=probe,
        gradient_norm=gradient_norm,
        coherence=coherence,
        encode=rate,
        decode=rate,
        hidden=nothing if hidden is None else tuple(hidden),
        took=nothing if took is None else tuple(took),
        energy=nothing if energy is None else tuple(energy),
        errors=tuple(found),
    )


@st.composite
def any_measures(draw: st.DrawFn, buckets: int = 2) -> Measured:
    """Whatever ranks can come to, gaps among it."""
    lines = st.builds(Line, st.floats(0, 0.1), st.floats(1e-10, 1e-5))
    rate = st.none() | st.floats(0, 1e-7)
    error = st.none() | st.floats(0, 1)
    per_bucket = [draw(st.lists(st.none() | st.floats(0, 3), min_size=buckets, max_size=buckets)) for _ in range(3)]
    return Measured(
        lines={"hosts": draw(st.none() | lines)},
        round_trip=draw(st.none() | st.floats(0, 0.1)),
        step_seconds=draw(st.none() | st.floats(0, 3)),
        latest_seconds=draw(st.none() | st.floats(0, 3)),
        probe=draw(st.none() | st.floats(1e-10, 1e-5)),
        gradient_norm=draw(st.none() | st.floats(0, 10)),
        coherence=draw(st.none() | st.floats(-1, 1)),
        encode=tuple(draw(rate) for _ in CANDIDATES),
        decode=tuple(draw(rate) for _ in CANDIDATES),
        hidden=tuple(per_bucket[0]),
        took=tuple(per_bucket[1]),
        energy=tuple(per_bucket[2]),
        errors=tuple(tuple(draw(error) for _ in CANDIDATES) for _ in range(buckets)),
    )


def all_are(plan: Sequence[Choice], choice: Choice = NONE) -> bool:
    return all(each == choice for each in plan)
