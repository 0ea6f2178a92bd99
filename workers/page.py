"""The page of memory that a rank shares with its agent: progress one way, one bell the other way.

The agent reads it without asking the rank, so a held interpreter lock or a stopped process cannot hide how far the rank
got; the rank sees the bell in the time of a memory read, so it can look after every gradient (EP-7, GM-18).
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from workers.identity import Generation
from workers.protocol import RankState

_STATES = list(RankState)
_WORDS = 16
_BELL, _STEP, _INCARNATION, _COUNTER, _MICRO, _EXCHANGES, _STATE, _LONGEST, _BUSY, _OWED = range(10)


@dataclass(frozen=True)
class Progress:
    """What a rank has reached; `longest_step` in seconds."""

    step: int
    generation: Generation
    micro_batch: int
    exchanges: int
    state: RankState
    longest_step: float


class Page:
    """16 aligned 64-bit words in a mapped file. Each has one writer; a word is read and written whole."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if create else 0)
        fd = os.open(path, flags, 0o600)
        try:
            if create:
                os.ftruncate(fd, mmap.PAGESIZE)
            self._map = mmap.mmap(fd, mmap.PAGESIZE)
        finally:
            os.close(fd)
        self.words = memoryview(self._map)[: _WORDS * 8].cast("Q")

    # the agent's side

    def ring(self) -> None:
        """A directive lies in the socket."""
        self.words[_BELL] += 1

    def progress(self) -> Progress:
        words = self.words
        longest = struct.unpack("d", struct.pack("Q", words[_LONGEST]))[0]
        generation = Generation(words[_INCARNATION], words[_COUNTER])
        state = _STATES[words[_STATE] % len(_STATES)]
        return Progress(words[_STEP], generation, words[_MICRO], words[_EXCHANGES], state, longest)

    @property
    def busy(self) -> bool:
        """The rank is in code of the task whose length nobody knows: an evaluation, a first step, the end of the script."""
        return bool(self.words[_BUSY])

    @property
    def owed(self) -> float:
        """L2 norm of what error feedback owes, relative to that of the reduced gradient, when it was last looked at."""
        return float(struct.unpack("d", struct.pack("Q", self.words[_OWED]))[0])

    # the rank's side

    def set_owed(self, owed: float) -> None:
        self.words[_OWED] = struct.unpack("Q", struct.pack("d", owed))[0]

    def set_busy(self, busy: bool) -> None:
        self.words[_BUSY] = int(busy)

    @property
    def bell(self) -> int:
        return self.words[_BELL]

    def set_step(self, step: int, longest: float) -> None:
        self.words[_STEP] = step
        self.words[_LONGEST] = struct.unpack("Q", struct.pack("d", longest))[0]

    def set_state(self, state: RankState, generation: Generation) -> None:
        self.words[_STATE] = _STATES.index(state)
        self.words[_INCARNATION], self.words[_COUNTER] = generation

    def count_micro_batch(self) -> None:
        self.words[_MICRO] += 1

    def count_exchange(self) -> None:
        self.words[_EXCHANGES] += 1

    def close(self) -> None:
        self.words.release()
        self._map.close()
