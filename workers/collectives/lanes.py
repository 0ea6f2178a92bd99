"""Who owns which elements of a bucket, and who sends which to whom (CC-1).

A unit, a host or a group of hosts, has a sum of the bucket that is spread over its members: each element is with one of
them. Where the parts of members of two units overlap they have a lane in common: elements that one member of each unit
exchanges with its like. Between hosts with equally many ranks the lanes are the shards; with unequal ones there are more
lanes, and a rank is in several. A lane is cut once more, into one piece for each of its members, the piece's owner, who
adds it up. So the owners of the pieces of a group's hosts are who has the sum of the group.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from workers.collectives.shared import cut as cut_shards
from workers.compression.shards import cut as cut_pieces


class Part(NamedTuple):
    """Elements `start` to `stop` of a bucket, not none, whose sum over a unit is with `member` of it."""

    start: int
    stop: int
    member: int


ShardMap = tuple[Part, ...]
"""Of one unit: all elements of the bucket, in order."""


@dataclass(frozen=True)
class Lane:
    """Elements `start` to `stop` of a bucket, exchanged among `members`, one of each unit; piece i is of member i."""

    start: int
    stop: int
    members: tuple[int, ...]
    pieces: tuple[slice, ...]


@dataclass(frozen=True)
class Piece:
    """Elements of a bucket that one member adds up, out of what all `members` of its lane have."""

    part: slice
    members: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(self.part.stop - self.part.start)


def host_map(n: int, members: Sequence[int]) -> ShardMap:
    """Of a bucket of n elements, when the members of a host have added it up in the memory that they share."""
    edges = pairwise(cut_shards(n, len(members)))
    return tuple(Part(start, stop, m) for m, (start, stop) in zip(members, edges, strict=True) if start < stop)


def group_map(lanes: Sequence[Lane]) -> ShardMap:
    """When the owners of the pieces have added them up."""
    owned = ((piece, member) for lane in lanes for piece, member in zip(lane.pieces, lane.members, strict=True))
    return tuple(Part(piece.start, piece.stop, member) for piece, member in owned if piece.start < piece.stop)


def lanes_between(units: Sequence[ShardMap], granularity: int = 1) -> tuple[Lane, ...]:
    """All lanes, in order; pieces are multiples of `granularity` but for the last of a lane."""
    found = []
    for start, stop in pairwise(sorted({edge for unit in units for part in unit for edge in (part.start, part.stop)})):
        members = tuple(sorted(_holder(unit, start) for unit in units))
        pieces = cut_pieces(stop - start, len(members), granularity)
        moved = tuple(slice(piece.start + start, piece.stop + start) for piece in pieces)
        found.append(Lane(start, stop, members, moved))
    return tuple(found)


def _holder(unit: ShardMap, element: int) -> int:
    """Who has it."""
    return unit[bisect_right(unit, element, key=lambda part: part.start) - 1].member


@dataclass(frozen=True)
class Lanes:
    """All lanes of a bucket between some units, as member `index` of one of them sees them."""

    lanes: tuple[Lane, ...]
    world: int
    index: int
    shard: slice
    """What of the bucket this member has in its hands, empty where it has nothing: its shard of its host."""

    @cached_property
    def mine(self) -> tuple[Lane, ...]:
        """The lanes that this member is in."""
        return tuple(lane for lane in self.lanes if self.index in lane.members)

    @cached_property
    def held(self) -> tuple[slice, ...]:
        """What it has of its unit's sum, not none, in order: between hosts all of `shard`; between groups parts of it."""
        found: list[slice] = []
        for lane in self.mine:
            begins = found.pop().start if found and found[-1].stop == lane.start else lane.start
            found.append(slice(begins, lane.stop))
        return tuple(found)

    @cached_property
    def owned(self) -> tuple[Piece, ...]:
        """What this member adds up."""
        return tuple(Piece(lane.pieces[lane.members.index(self.index)], lane.members) for lane in self.mine)

    @cached_property
    def others(self) -> tuple[tuple[slice, ...], ...]:
        """For each member of the world: the pieces it owns in lanes that this member is in too; of itself none."""
        found: list[list[slice]] = [[] for _ in range(self.world)]
        for lane in self.mine:
            for member, piece in zip(lane.members, lane.pieces, strict=True):
                if member != self.index:
                    found[member].append(piece)
        return tuple(tuple(pieces) for pieces in found)

    @cached_property
    def longest(self) -> int:
        """Elements of the longest lane."""
        return max((lane.stop - lane.start for lane in self.lanes), default=0)

    @cached_property
    def alone(self) -> bool:
        """There is one unit only, or nothing to be exchanged."""
        return all(len(lane.members) == 1 for lane in self.lanes)
