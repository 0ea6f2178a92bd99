"""CC-25: names of parameters outlive DDP's layouts of buckets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, Tensor, nn, zeros

from workers.comm.layout import Layout, Names, plan_of

shapes = st.lists(st.integers(1, 9), max_size=3).map(Size)


@given(st.lists(st.lists(shapes, min_size=1, max_size=4), min_size=1, max_size=5))
def test_cc25_slots_fill_their_buckets_without_gaps(buckets: list[list[Size]]) -> None:
    named = [[(f"{i}.{j}", shape) for j, shape in enumerate(bucket)] for i, bucket in enumerate(buckets)]
    plan = plan_of(named)
    assert [slot.name for slot in plan.slots] == [name for bucket in named for name, _ in bucket]
    assert plan.gradient_sizes == tuple(sum(shape.numel() for shape in bucket) for bucket in buckets)
    for index, size in enumerate(plan.sizes):
        slots = [slot for slot in plan.slots if slot.bucket == index]
        edges = [slot.start for slot in slots] + [size]
        assert edges[0] == 0
        assert [stop - start for start, stop in pairwise(edges)] == [slot.shape.numel() for slot in slots]


def first_layout(parameters: list[Tensor], cuts: list[int]) -> Layout:
    """As DDP makes it before the first iteration: parameters in their order, the last bucket first."""
    edges = [0, *sorted(cuts), len(parameters)]
    return tuple(tuple(parameters[a:b]) for a, b in pairwise(edges) if a < b)[::-1]


@given(st.integers(1, 8), st.data())
def test_cc25_names_without_a_model_do_not_depend_on_the_sizes_of_buckets(count: int, data: st.DataObject) -> None:
    parameters: list[Tensor] = [zeros(i + 1) for i in range(count)]
    cuts = data.draw(st.lists(st.integers(0, count), max_size=4))
    names = Names(None)
    plan = names.plan(first_layout(parameters, cuts))
    assert {slot.name: slot.numel for slot in plan.slots} == {str(i): i + 1 for i in range(count)}
    arrived = data.draw(st.permutations(parameters))
    after = names.plan((tuple(arrived),))
    assert {slot.name: slot.numel for slot in after.slots} == {str(i): i + 1 for i in range(count)}


def test_cc25_names_of_a_model_are_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False))
    plan = Names(model).plan((tuple(model.parameters())[::-1],))
    assert [slot.name for slot in plan.slots] == ["1.weight", "0.bias", "0.weight"]


def test_cc25_a_second_model_is_refused() -> None:
    names = Names(None)
    names.plan(((zeros(3),),))
    with pytest.raises(ValueError, match="make one CommState for each DDP model"):
        names.plan(((zeros(3),),))
    with pytest.raises(ValueError, match="give CommState the model that DDP wraps"):
        Names(nn.Linear(2, 2)).plan(((zeros(3),),))
