"""What a rank shows to the others of its host: one file on /dev/shm for each process, and its process alone writes to it.

The rank makes its file, because it alone knows its buckets (`workers.memory_file`). Peers map it for reading only, so
what a stopped, killed or forgotten process still writes lies in memory that no later generation reads, and a generation
with other members makes nothing anew: it maps the files of those who are new.

Order between processes. Data are written first and then a sequence word, and a reader looks at the word first. A word is
64 bits, aligned, and stored and loaded by one instruction: CPython copies the item of a memoryview cast to "Q" with a
memcpy of 8 bytes, which compilers make one `mov`. On x86-64 no store passes an earlier store and no load an earlier load
(total store order), so that is enough. For processors that reorder more there is `fence()`: to release a lock and take it
again is a release followed by an acquire, which ARMv8 keeps in order with everything before and after; nobody else knows
that lock, so nobody ever waits for it.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.collectives.exchange import ExchangeError
from workers.identity import Generation
from workers.memory_file import new_file

LINE_BYTES = 64
"""A cache line: words that different events write do not share one."""

_WORDS_PER_LINE = LINE_BYTES // 8
GIVEN, SUMMED, TAKEN = 0, _WORDS_PER_LINE, 2 * _WORDS_PER_LINE
"""The sequence words of a slot: our bucket lies there; our shard of the sum does; we have read everybody's shard."""

WHAT = GIVEN + 1
"""In the same line: a checksum of what the operation is."""

_LINES_PER_SLOT = 3
_OPERATION_BITS, _COUNTER_BITS, _INCARNATION_BITS = 32, 20, 12


@dataclass(frozen=True)
class Layout:
    """What a file holds: a line that names the layout, three lines of words for each slot, then the slots, float32.

    Operations take turns in `slots` slots of `elements` each, into which their buckets are copied; `staging` slots are
    lent to the rank, which puts its gradients there itself. Channels 1, 2, … are for operations whose order among those of
    other channels differs from rank to rank: `slots` slots each, of `thin[0]`, `thin[1]`, … elements.
    """

    elements: int
    slots: int
    staging: tuple[int, ...] = ()
    thin: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of every slot: those of channel 0, the lent ones, those of the other channels."""
        thin = tuple(size for size in self.thin for _ in range(self.slots))
        return (self.elements,) * self.slots + self.staging + thin

    @property
    def lent(self) -> range:
        """The slots that are lent."""
        return range(self.slots, self.slots + len(self.staging))

    def channel(self, number: int) -> range:
        """The slots of a channel."""
        start = 0 if number == 0 else self.slots * number + len(self.staging)
        return range(start, start + self.slots)

    def word(self, slot: int, kind: int) -> int:
        """Index of the 64-bit word of that kind."""
        return (1 + slot * _LINES_PER_SLOT) * _WORDS_PER_LINE + kind

    @property
    def starts(self) -> tuple[int, ...]:
        """The byte where each slot begins, a multiple of the page size; the last one is where the file ends."""
        starts = [_whole_pages((1 + len(self.sizes) * _LINES_PER_SLOT) * LINE_BYTES)]
        for size in self.sizes:
            starts.append(starts[-1] + _whole_pages(size * 4))
        return tuple(starts)

    @property
    def nbytes(self) -> int:
        return self.starts[-1]

    @property
    def name(self) -> int:
        """64 bits that another layout does not have."""
        return int.from_bytes(blake2b(repr(self.sizes).encode(), digest_size=8).digest(), "big")


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def sequence(generation: Generation, operation: int) -> int:
    """What the words of an operation hold: incarnation, counter, operation, so later ones are greater. 0: never used.

    Raises OverflowError beyond 12, 20 and 32 bits.
    """
    parts = (generation.incarnation, _INCARNATION_BITS), (generation.counter, _COUNTER_BITS), (operation, _OPERATION_BITS)
    word = 0
    for value, bits in parts:
        if not 0 <= value < 1 << bits:
            raise OverflowError(
                f"operation {operation} of generation {generation} has no sequence word: {value} ≥ 2^{bits}"
            )
        word = word << bits | value
    return word


def generation_of(word: int) -> int:
    """Of a sequence word, as a number that is greater in a later generation."""
    return word >> _OPERATION_BITS


class _Fence(threading.local):
    """A lock that its thread holds. Of one that all share, another thread would take what this one has just released."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()


_fence = _Fence()


def fence() -> None:
    """What this thread loaded and stored before comes before what it loads and stores after, for every process."""
    lock = _fence.lock
    lock.release()
    lock.acquire()


class Region:
    """One process's file, mapped: `words`, and `slots`, float32 [size] each. Writable only where it is made."""

    def __init__(self, path: Path, layout: Layout, *, create: bool = False) -> None:
        self.path, self.layout = path, layout
        fd = new_file(path, layout.nbytes) if create else os.open(path, os.O_RDONLY)
        try:
            if os.fstat(fd).st_size != layout.nbytes:
                raise ExchangeError(f"{path.name} has {os.fstat(fd).st_size} bytes, and this rank's layout {layout.nbytes}")
            access = mmap.PROT_READ | (mmap.PROT_WRITE if create else 0)
            mapped = mmap.mmap(fd, layout.nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=access)
        finally:
            os.close(fd)
        self.words = memoryview(mapped)[: layout.starts[0]].cast("Q")
        self.slots: list[NDArray[np.float32]] = [
            np.frombuffer(mapped, np.float32, size, start) for size, start in zip(layout.sizes, layout.starts, strict=False)
        ]
        if create:
            self.words[0] = layout.name
        elif self.words[0] != layout.name:
            raise ExchangeError(f"{path.name} is laid out for other buckets than those of this rank")


class HostMemory:
    """The region of this process and those of its peers. It serves one generation after the other."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Make the file at `path`, all its pages reserved. Raises MemoryShortage."""
        self.own = Region(path, layout, create=True)
        self._peers: dict[Path, Region] = {}

    @property
    def path(self) -> Path:
        return self.own.path

    def enter(self, paths: Sequence[Path], generation: Generation) -> list[Region]:
        """Begin a generation: the regions of its members on this host, in rank order, ours among them.

        Whoever still reads here for an earlier generation finds out by the words, which from now on are this one's.
        Raises ExchangeError where a peer's file is gone or is laid out for other buckets, ValueError where the memory has
        been in this generation or a later one.
        """
        layout, beginning = self.own.layout, sequence(generation, 0)
        words = [layout.word(slot, kind) for slot in range(len(layout.sizes)) for kind in (GIVEN, SUMMED, TAKEN)]
        if any(self.own.words[word] >= beginning for word in words):
            raise ValueError(f"{self.path.name} has been in generation {generation} or a later one")
        try:
            self._peers = {
                path: self._peers.get(path) or Region(path, layout) for path in dict.fromkeys(paths) if path != self.path
            }
        except OSError as error:
            raise ExchangeError(f"a rank of this host is gone: {error.strerror}: {error.filename}") from None
        for word in words:
            self.own.words[word] = beginning
        fence()
        return [self.own if path == self.path else self._peers[path] for path in paths]

    def forget_peers(self) -> None:
        """Be in no generation: what a dead peer had mapped takes memory until then."""
        self._peers = {}

    def remove(self) -> None:
        """Take the file's name away; who has it mapped keeps the memory until the process ends."""
        self.path.unlink(missing_ok=True)
