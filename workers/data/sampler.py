"""The elastic plan of the data (EP-1, EP-2): pure functions from (seed, step, members, attempt) to sample ids.

Nothing here is stored or exchanged: every rank computes the plan for itself, and any two ranks that know the same
seed, step, world and attempt agree on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

_UINT64 = (1 << 64) - 1


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_samples: int) -> Ids:
    """The order of the samples in `epoch`: int64 [num_samples], read-only.

    The order sorts raw words of Philox4x64 with key (seed, epoch). Raw words are fixed by the algorithm, while
    `Generator.permutation` may change between numpy releases and so between hosts. Two orders are kept, 8 bytes a
    sample each: read-ahead draws from the next epoch while this one is computed.
    """
    words = np.random.Philox(key=np.array([seed & _UINT64, epoch], dtype=np.uint64)).random_raw(num_samples)
    order = stable_argsort(words)
    order.setflags(write=False)
    return order


def stable_argsort(words: NDArray[np.uint64]) -> Ids:
    """`np.argsort(words, kind="stable")`, ten times as fast for ten million random words: a rank that joins waits for it.

    What is sorted is not the numbers of the words but the words themselves, each with its number in its low bits. Words
    that differ in these bits only are put right afterwards; random ones are few.
    """
    bits = np.uint64(len(words).bit_length())
    low = (np.uint64(1) << bits) - np.uint64(1)
    packed = words & ~low
    packed |= np.arange(len(words), dtype=np.uint64)
    packed.sort()
    order = (packed & low).view(np.int64)
    packed >>= bits
    ties = np.flatnonzero(packed[1:] == packed[:-1])
    for run in np.split(ties, np.flatnonzero(np.diff(ties) > 1) + 1) if len(ties) else ():
        tied = order[run[0] : run[-1] + 2]
        tied[:] = tied[np.argsort(words[tied], kind="stable")]
    return order


def steps_per_epoch(num_samples: int, global_batch: int) -> int:
    """Steps that read each sample once; the last may be short (EP-1)."""
    return -(-num_samples // global_batch)


def position(step: int, per_epoch: int) -> tuple[int, int]:
    """(epoch, batch inside the epoch), both from 0, of the step that follows `step` committed steps."""
    return divmod(step, per_epoch)


def batch(seed: int, epoch: int, index: int, num_samples: int, global_batch: int) -> Ids:
    """The sample ids of batch `index` of `epoch`: int64 [n], n = `global_batch` except in the epoch's last batch.

    Raises:
        IndexError: the epoch has no such batch.
    """
    if not 0 <= index < steps_per_epoch(num_samples, global_batch):
        raise IndexError(f"batch {index} of an epoch of {steps_per_epoch(num_samples, global_batch)} batches")
    return permutation(seed, epoch, num_samples)[index * global_batch : (index + 1) * global_batch]


def share(ids: Ids, world: int, rank: int, attempt: int, shares: Sequence[int] = ()) -> Ids:
    """The part of the batch `ids` that `rank` of `world` computes; empty where there are fewer samples than ranks.

    The batch is cut into `world` contiguous pieces whose sizes differ by one at most, or are as `shares` to each other.
    `attempt` turns the pieces round the ranks, so that a batch that is computed again falls on other ranks.
    """
    mine = piece(len(ids), world, rank, attempt, shares)
    return ids[mine.start : mine.stop]


def piece(number: int, world: int, rank: int, attempt: int, shares: Sequence[int] = ()) -> range:
    """Which of `number` things `rank` of `world` takes: contiguous, in shares that differ by one at most, or are to each
    other as `shares`, one of each rank, within one. Those are of the ranks at attempt 0, and turn with the pieces."""
    index = (rank + attempt) % world
    if not shares:
        return _cut(number, world, index)
    total, before = sum(shares), sum(shares[:index])
    return range(before * number // total, (before + shares[index]) * number // total)


def whole_units(number: int, unit: int, parts: int, part: int) -> slice:
    """Which of `number` things piece `part` of `parts` has if units of `unit` stay together: the pieces together have all.

    What is computed unit by unit is so the same bits in any number of parts.
    """
    mine = piece(-(-number // unit), parts, part, 0)
    return slice(mine.start * unit, mine.stop * unit)


def micro_batches(ids: Ids, micro_batch: int) -> list[Ids]:
    """Cut a share into the fewest micro-batches of at most `micro_batch` samples, of sizes that differ by one at most.

    Near-equal sizes keep a tail of one sample, which BatchNorm cannot train on, as rare as can be.
    """
    count = -(-len(ids) // micro_batch)
    pieces = (_cut(len(ids), count, index) for index in range(count))
    return [ids[piece.start : piece.stop] for piece in pieces]


def _cut(number: int, pieces: int, index: int) -> range:
    return range(index * number // pieces, (index + 1) * number // pieces)
