"""Sums whose order is decided by the data and not by who adds: the same bits on any number of ranks (EP-4).

A step's batch is cut into micro-batches, its leaves, in the same way on any number of ranks. What they give is added along
a binary tree over their numbers (pairwise summation; Higham, "The accuracy of floating point summation", 1993). A rank that
computes several leaves adds up those that are whole subtrees of it, and sends what is left over as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from torch import Tensor

from workers.collectives.buckets import BucketPlan, Row


class Node(NamedTuple):
    """A subtree: the leaves `first` to `first + size - 1`. `size` is a power of two and divides `first`."""

    first: int
    size: int

    def is_left_sibling(self, other: Node) -> bool:
        """Is this the left half of a node of which `other` is the right one."""
        return self.size == other.size and self.first % (2 * self.size) == 0 and other.first == self.first + self.size


Held = TypeVar("Held")


def _push(stack: list[tuple[Node, Held]], node: Node, held: Held, add: Callable[[Held, Held], object]) -> list[Held]:
    """Put a subtree on the right of those of `stack`, and add up siblings: `add(left, right)` changes `left`.

    Returns what it no longer needs.
    """
    free = []
    while stack and stack[-1][0].is_left_sibling(node):
        left, sum_ = stack.pop()
        add(sum_, held)
        free.append(held)
        node, held = Node(left.first, 2 * left.size), sum_
    stack.append((node, held))
    return free


@dataclass(frozen=True)
class SumOrder:
    """Which leaves each member of a topology computes: contiguous, together all of them, once. `index` is ours."""

    leaves: tuple[range, ...]
    index: int

    @property
    def mine(self) -> range:
        return self.leaves[self.index]

    def nodes(self, member: int) -> list[Node]:
        """What `member` has when it has added up all that it can."""
        stack: list[tuple[Node, None]] = []
        for leaf in self.leaves[member]:
            _push(stack, Node(leaf, 1), None, lambda left, right: None)
        return [node for node, _ in stack]


class LeafSums:
    """The subtrees that this rank has added up in a step, in memory that is used again in the next.

    An abandoned operation may still send what lies there. That leads to no commit of anybody: a peer commits with our shard
    of the sum, which we give out only once everything is sent.
    """

    def __init__(self, plan: BucketPlan) -> None:
        self._plan = plan
        self._free: list[Row] = []
        self._stack: list[tuple[Node, Row]] = []
        self._next = 0

    def begin(self, leaves: range) -> None:
        """A step in which this rank computes these."""
        self._free += [row for _, row in self._stack]
        self._stack, self._next = [], leaves.start

    def row(self) -> Row:
        """Memory for the next leaf; what it holds is old."""
        return self._free.pop() if self._free else Row(self._plan)

    def add(self, row: Row) -> None:
        """The next leaf."""
        self._free += _push(self._stack, Node(self._next, 1), row, Row.add)
        self._next += 1

    @property
    def nodes(self) -> Sequence[tuple[Node, Row]]:
        """From the first leaf to the last."""
        return self._stack


def fold(nodes: Iterable[tuple[Node, Tensor]]) -> Tensor:
    """The sum along the tree of subtrees that together have all leaves, once; it lies in the memory of one of them."""
    stack: list[tuple[Node, Tensor]] = []
    for node, tensor in sorted(nodes, key=lambda each: each[0].first):
        _push(stack, node, tensor, Tensor.add_)
    total = stack.pop()[1]
    while stack:  # the number of leaves is no power of two, and on the right of the tree some are missing
        total = stack.pop()[1].add_(total)
    return total
