"""GM-15, GM-16: what a sketch keeps of a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.coherence.sketch import BUCKETS, Sketch, cosine

NOISE = 1 / math.sqrt(BUCKETS)


def sketch(values: Tensor, *seed: object) -> Tensor:
    found = Sketch(*(seed or ("job", 1, 2)))
    found.add("weight", values)
    return found.buckets


def plain_sketch(values: Tensor, *seed: object) -> Tensor:
    """Bucket by bucket, from what the parts of a sketch are said to be."""
    buckets = torch.zeros(BUCKETS, dtype=torch.float64)
    for i in range(len(values)):
        one = torch.zeros(len(values))
        one[i] = 1.0
        alone = Sketch(*seed)
        alone.add("weight", one)
        hit = alone.buckets
        assert int((hit != 0).sum()) == 1
        assert float(hit.abs().max()) == 1.0
        buckets += hit.double() * float(values[i])
    return buckets


def test_gm15_each_coordinate_goes_into_one_bucket_with_a_sign() -> None:
    values = torch.randn(2100, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(sketch(values).double(), plain_sketch(values, "job", 1, 2), atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5000), st.floats(-3, 3), st.integers(0, 1 << 30))
def test_gm16_the_sketch_of_a_sum_is_the_sum_of_the_sketches(n: int, factor: float, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    one, other = torch.randn(n, generator=chance), torch.randn(n, generator=chance)
    together = sketch(one + factor * other)
    assert torch.allclose(together, sketch(one) + factor * sketch(other), atol=1e-4 * (1 + abs(factor)) * math.sqrt(n))


def vectors() -> list[tuple[str, Tensor, Tensor]]:
    chance = torch.Generator().manual_seed(3)
    n = 200_000
    base = torch.randn(n, generator=chance)
    ramp = torch.arange(n) / n
    return [
        ("noise", base, torch.randn(n, generator=chance)),
        ("alike", base, base + torch.randn(n, generator=chance)),
        ("ones", torch.ones(n), torch.ones(n)),
        ("ones and a ramp", torch.ones(n), ramp - 0.2),
        ("rows that repeat", base[:BUCKETS].repeat(n // BUCKETS), base[: n // BUCKETS * BUCKETS]),
        ("columns that repeat", base[:200].repeat_interleave(1000), torch.ones(n)),
        ("opposite", base, -base),
    ]


@pytest.mark.parametrize(("one", "other"), [v[1:] for v in vectors()], ids=[v[0] for v in vectors()])
def test_gm15_cosines_are_kept_to_about_a_thirtieth(one: Tensor, other: Tensor) -> None:
    """Whatever pattern the vectors have; the error is that of the spec, over seeds."""
    true = float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0))
    errors = []
    for seed in range(40):
        found = cosine(sketch(one, seed), sketch(other, seed))
        assert found is not None
        errors.append(found - true)
    spread = torch.tensor(errors)
    assert float(spread.square().mean().sqrt()) <= 1.3 * NOISE
    assert abs(float(spread.mean())) <= 4 * NOISE / math.sqrt(40)


def test_gm15_all_ranks_have_the_same_and_other_steps_another() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(4))
    assert torch.equal(sketch(values, "job", (1, 2), 3), sketch(values, "job", (1, 2), 3))
    assert not torch.equal(sketch(values, "job", (1, 2), 3), sketch(values, "job", (1, 2), 4))


def test_gm15_parts_are_told_apart_by_name() -> None:
    """A parameter's coordinates go elsewhere than another's, and it does not matter which comes first."""
    one, other = (torch.randn(3000, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6))
    forth, back = Sketch(1), Sketch(1)
    forth.add("a", one)
    forth.add("b", other)
    back.add("b", other)
    back.add("a", one)
    assert torch.allclose(forth.buckets, back.buckets, atol=1e-4)
    swapped = Sketch(1)
    swapped.add("b", one)
    swapped.add("a", other)
    assert not torch.allclose(forth.buckets, swapped.buckets, atol=1e-1)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_gm20_of_what_is_zero_or_not_finite_there_is_no_cosine(bad: float) -> None:
    assert cosine(torch.full((BUCKETS,), bad), torch.ones(BUCKETS)) is None
