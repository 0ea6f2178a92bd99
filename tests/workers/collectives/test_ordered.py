"""EP-4: a sum along the tree of leaves is the same bits however the leaves are shared out, on real sockets too."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, Tensor

from tests.workers.collectives.conftest import connect
from workers.collectives.buckets import BucketPlan, Row, plan_buckets
from workers.collectives.exchange import FlatExchange
from workers.collectives.ordered import LeafSums, Node, SumOrder, fold
from workers.identity import GENESIS

PLAN = plan_buckets([("a", Size([7])), ("b", Size([3, 5])), ("c", Size([4]))], tail=2, first_bytes=16, bucket_bytes=64)


def leaf(number: int, plan: BucketPlan = PLAN) -> list[Tensor]:
    """What micro-batch `number` gives: magnitudes so unlike that almost every order of a sum has bits of its own."""
    noise = torch.Generator().manual_seed(number)
    return [torch.randn(size, generator=noise) * 10.0 ** (number % 7 - 3) for size in plan.sizes]


def along_the_tree(first: int, size: int, leaves: int) -> list[Tensor]:
    """The definition: left half plus right half, what lies beyond the last leaf left out."""
    if size == 1:
        return leaf(first)
    left = along_the_tree(first, size // 2, leaves)
    if first + size // 2 >= leaves:
        return left
    right = along_the_tree(first + size // 2, size // 2, leaves)
    return [a + b for a, b in zip(left, right, strict=True)]


def expected(leaves: int) -> list[Tensor]:
    return along_the_tree(0, 1 << (leaves - 1).bit_length(), leaves)


def cut(leaves: int, cuts: Sequence[int]) -> tuple[range, ...]:
    """Contiguous shares, some of them empty."""
    ends = [0, *sorted(each % (leaves + 1) for each in cuts), leaves]
    return tuple(range(first, last) for first, last in pairwise(ends))


def added_up(leaves: range, sums: LeafSums | None = None) -> LeafSums:
    sums = sums or LeafSums(PLAN)
    sums.begin(leaves)
    for number in leaves:
        row = sums.row()
        for bucket, values in zip(row.buckets, leaf(number), strict=True):
            bucket.copy_(values)
        sums.add(row)
    return sums


@given(st.integers(1, 21), st.lists(st.integers(0, 100), max_size=7))
def test_ep4_any_shares_give_the_bits_of_the_tree(leaves: int, cuts: list[int]) -> None:
    order = SumOrder(cut(leaves, cuts), 0)
    nodes: list[tuple[Node, Row]] = []
    for member, share in enumerate(order.leaves):
        mine = added_up(share).nodes
        assert [node for node, _ in mine] == order.nodes(member)
        nodes += mine
    nodes.reverse()  # their order is that of their numbers
    for index, wanted in enumerate(expected(leaves)):
        assert torch.equal(fold((node, row.buckets[index]) for node, row in nodes), wanted)


def test_ep4_orders_do_differ() -> None:
    """Else the tests above would prove nothing."""
    one_after_the_other = leaf(0)
    for number in range(1, 8):
        one_after_the_other = [a + b for a, b in zip(one_after_the_other, leaf(number), strict=True)]
    assert not all(map(torch.equal, one_after_the_other, expected(8)))


def test_leaves_that_are_added_up_use_memory_again() -> None:
    sums = added_up(range(8))
    memory = {id(row) for row in [sums.nodes[0][1], *sums._free]}
    assert len(memory) <= 4  # one for each level of the tree, and one
    again = added_up(range(8), sums)
    assert {id(row) for row in [again.nodes[0][1], *again._free]} == memory


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("leaves", [1, 4, 6])
def test_ep4_every_member_has_the_bits_of_the_tree(store: str, world: int, leaves: int) -> None:
    """Also where there are fewer leaves than members, and where the pieces are turned round the members."""
    shares = [range(i * leaves // world, (i + 1) * leaves // world) for i in range(world)]
    turned = tuple(shares[1:] + shares[:1])
    exchanges = connect(store, f"{world}-{leaves}", [GENESIS] * world)

    def one(index: int) -> list[Tensor]:
        exchange = exchanges[index]
        assert isinstance(exchange, FlatExchange)
        out = Row(PLAN)
        order = SumOrder(turned, index)
        for bucket in exchange.sum_in_order(added_up(order.mine).nodes, order, out):
            bucket.wait(lambda: False)
        return out.buckets

    with ThreadPoolExecutor(world) as threads:
        for buckets in threads.map(one, range(world)):
            assert all(map(torch.equal, buckets, expected(leaves)))
