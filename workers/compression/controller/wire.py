"""What a bucket is to the controller, and what a choice makes a rank send and compute for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from torch import Size

from workers.compression.choice import Choice
from workers.compression.powersgd import PowerSGD
from workers.compression.registry import make_codec
from workers.compression.shards import cut

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
    `powersgd`: P, then Q, each as float32 and each in two transfers, out and back, by the same way: 1/L for each rank.
    """
    if choice.codec == "powersgd":
        low_rank = PowerSGD({name: Size(shape) for name, shape in facts.shapes}, int(choice.value or 0))
        sizes = low_rank.sizes([name for name, _ in facts.shapes])
        pieces = [-(-size // (facts.hosts * facts.local_ranks)) for size in sizes]
        return tuple(4 * piece * (facts.hosts - 1) for piece in pieces for _ in ("out", "back"))
    codec = make_codec(choice.codec, **choice.parameters)
    pieces = [codec.nbytes(p.stop - p.start) for p in cut(facts.share, facts.hosts, codec.granularity)]
    return sum(pieces) - min(pieces), (facts.hosts - 1) * max(pieces)


def work(facts: BucketFacts, choice: Choice) -> Work:
    """Sharded: encoded are the others' pieces and the sum of the own one. Decoded are everybody's parts of the own piece
    and the others' sums; and, but for `none`, for the residuals, all that was encoded. `powersgd` works on the whole
    bucket, which counts once: `encoded` is the time of P, Q and what of it is the rank's own, `decoded` that of the rest.
    """
    if choice.codec == "powersgd":
        return Work(facts.elements, facts.elements)
    others = 1 - 1 / facts.hosts
    return Work(facts.share, facts.share * (2 * others + (choice.codec != "none")))
