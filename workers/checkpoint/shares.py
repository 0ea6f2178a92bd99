"""How the ranks that write a checkpoint together divide it (CK-4): the same on each of them, without a word."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush


def num_writers(raw_bytes: int, world: int, share_bytes: int) -> int:
    """How many of `world` ranks write a state of so many bytes, so that each has at least `share_bytes` of them; one does
    where there is not enough for two."""
    return max(1, min(world, raw_bytes // share_bytes))


def writer_at(index: int, world: int, writers: int) -> int | None:
    """Which of the writers, from 0, the rank at this place of the ring is; None where it is none.

    They stand evenly around the ring, and so on as many hosts as there are, since ranks of one host are neighbours.
    """
    places = [writer * world // writers for writer in range(writers)]
    return places.index(index) if index in places else None


def divide(sizes: Mapping[str, int], writers: int) -> list[list[str]]:
    """Whose tensors these are, by writer, from their bytes by name: the largest first, each to the writer that has least
    (Graham, 1969: the fullest has at most 4/3 of what is possible, tensors being whole). Does not depend on the order of
    `sizes`; a share is in the order of names."""
    loads = [(0, writer) for writer in range(writers)]
    heapify(loads)
    shares: list[list[str]] = [[] for _ in range(writers)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, writer = heappop(loads)
        shares[writer].append(name)
        heappush(loads, (load + sizes[name], writer))
    return [sorted(share) for share in shares]
