"""How a bucket is cut for the sharded route, and what that route sends."""

from __future__ import annotations

from itertools import pairwise

from workers.compression.codec import Codec

DIRECT_BYTES = 1 << 15
"""Below this a second transfer costs more than what it saves."""


def cut(n: int, members: int, granularity: int = 1) -> list[slice]:
    """n elements as one contiguous shard for each member, in order: multiples of `granularity`, as even as that allows.

    The last shard that is not empty has what is left of the last multiple; members beyond the data have empty ones.
    """
    units = -(-n // granularity)
    ends = [min(n, units * member // members * granularity) for member in range(members + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def sent_bytes(codec: Codec, n: int, members: int, index: int) -> int:
    """Bytes that member `index` sends for a bucket of n: everybody else's shard to its owner, its own sum to everybody."""
    sizes = [codec.nbytes(shard.stop - shard.start) for shard in cut(n, members, codec.granularity)]
    return sum(sizes) - sizes[index] + (members - 1) * sizes[index]


def goes_directly(nbytes: int, members: int) -> bool:
    """Whether each of so many members sends its payload of so many bytes to all others, and not to the owners of pieces
    first: that is H/2 times as much, in one transfer and not two."""
    return (members - 1) * nbytes <= DIRECT_BYTES
