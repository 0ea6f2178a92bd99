"""What a bucket is to the controller, and what a choice makes a rank send and compute for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from torch import Size

from workers.compression.choice import Choice
from workers.compression.powersgd import PowerSGD
from workers.compression.registry import codec_of
from workers.compression.shards import cut, goes_directly

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class BucketFacts:
    """A bucket on its way between hosts, or between groups of hosts, the same on all ranks.

    Attributes:
        shapes: of its parameters, by name, in the order of the bucket.
        hosts: H; where there are groups, how many.
        local_ranks: L, the fewest ranks that a host, or a group, has; a rank carries at most 1/L of the bucket between two.
        sensitive: elements in the first or the last layer of the model, of all of the bucket, 0 to 1.
        level: the link level that it crosses.
    """

    shapes: Shapes
    hosts: int
    local_ranks: int = 1
    sensitive: float = 0.0
    level: str = "hosts"

    @property
    def elements(self) -> int:
        """Of the whole bucket."""
        return sum(Size(shape).numel() for _, shape in self.shapes)

    @property
    def share(self) -> int:
        """Elements that a rank carries."""
        return -(-self.elements // self.local_ranks)


class Work(NamedTuple):
    """Elements that a rank encodes and decodes in a step."""

    encoded: float
    decoded: float


@lru_cache(maxsize=1 << 16)
def transfers(facts: BucketFacts, choice: Choice) -> tuple[int, ...]:
    """Bytes that a rank puts on links in each of a bucket's transfers, one after the other; of all ranks, the most.

    Sharded: the others' pieces to their owners; then the sum of the own piece to H − 1 others.
    Low rank: P, and then Q, the same way, or each in one transfer from everybody to everybody.
    """
    codec, sizes = codec_of(choice), [facts.elements]
    if choice.is_low_rank:
        low_rank = PowerSGD({name: Size(shape) for name, shape in facts.shapes}, choice.rank)
        sizes = list(low_rank.sizes([name for name, _ in facts.shapes]))
    found: list[int] = []
    for size in sizes:
        shard = -(-size // facts.local_ranks)
        if choice.is_low_rank and codec.name != "none" and goes_directly(codec.nbytes(shard), facts.hosts):
            found.append((facts.hosts - 1) * codec.nbytes(shard))
            continue
        pieces = [codec.nbytes(p.stop - p.start) for p in cut(shard, facts.hosts, codec.granularity)]
        found += [sum(pieces) - min(pieces), (facts.hosts - 1) * max(pieces)]
    return tuple(found)


@lru_cache(maxsize=1 << 16)
def work(facts: BucketFacts, choice: Choice) -> Work:
    """Sharded: encoded are the others' pieces and the sum of the own one. Decoded are everybody's parts of the own piece
    and the others' sums; and, but for `none`, for the residuals, all that was encoded. Low rank works on the whole
    bucket, which counts once: `encoded` is the time of P, Q and what of it is the rank's own, `decoded` that of the rest.
    In a ring a rank encodes what it carries, and decodes that and the sum.
    """
    if choice.is_low_rank:
        return Work(facts.elements, facts.elements)
    if codec_of(choice).sums_in is not None:
        return Work(facts.share, 2 * facts.share)
    others = 1 - 1 / facts.hosts
    return Work(facts.share, facts.share * (2 * others + (choice.codec != "none")))
