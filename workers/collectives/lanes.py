"""Who owns which elements of a bucket, and who sends which to whom (CC-1).

Inside a host each rank has a shard. Where the shards of two hosts overlap they have a lane in common: elements that one
rank of each host exchanges with its like. With equally many ranks on each host the lanes are the shards; with unequal ones
there are more lanes, and a rank is in several. A lane is cut once more, into one piece for each of its members, the piece's
owner, who adds it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from workers.collectives.exchange import Hosts
from workers.collectives.shared import cut as cut_shards
from workers.compression.shards import cut as cut_pieces


@dataclass(frozen=True)
class Lane:
    """Elements `start` to `stop` of a bucket, exchanged among `members`, one of each host; piece i is of member i."""

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


@dataclass(frozen=True)
class Lanes:
    """All lanes of a bucket of one length in one topology, as member `index` sees them."""

    lanes: tuple[Lane, ...]
    world: int
    index: int
    cuts: tuple[int, ...]
    """Where the shards of this member's host begin, and where the last one ends."""

    @cached_property
    def mine(self) -> tuple[Lane, ...]:
        """The lanes that this member is in."""
        return tuple(lane for lane in self.lanes if self.index in lane.members)

    @cached_property
    def shard(self) -> slice:
        """What of the bucket this member has of its host's sum; empty where it has nothing."""
        return slice(self.mine[0].start, self.mine[-1].stop) if self.mine else slice(0, 0)

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
    def alone(self) -> bool:
        """There is one host only."""
        return all(len(lane.members) == 1 for lane in self.lanes)

    @cached_property
    def even(self) -> bool:
        """Every member is in one lane at most: all hosts have as many ranks."""
        return all(sum(member in lane.members for lane in self.lanes) <= 1 for member in range(self.world))


def lanes(n: int, hosts: Hosts, index: int, granularity: int = 1) -> Lanes:
    """Lanes of a bucket of n elements; pieces are multiples of `granularity` but for the last of a lane.

    Args:
        hosts: the members of each.
        index: of the member that asks.
    """
    cuts = [cut_shards(n, len(members)) for members in hosts]
    found = []
    for start, stop in pairwise(sorted({edge for each in cuts for edge in each})):
        members = tuple(sorted(host[_holder(each, start)] for host, each in zip(hosts, cuts, strict=True)))
        pieces = cut_pieces(stop - start, len(members), granularity)
        moved = tuple(slice(piece.start + start, piece.stop + start) for piece in pieces)
        found.append(Lane(start, stop, members, moved))
    at = next(i for i, members in enumerate(hosts) if index in members)
    return Lanes(tuple(found), sum(map(len, hosts)), index, cuts[at])


def _holder(cuts: Sequence[int], start: int) -> int:
    """Which shard holds element `start`."""
    return next(i for i, (first, last) in enumerate(pairwise(cuts)) if first <= start < last)
