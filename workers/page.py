"""The page of memory that a rank shares with its agent: progress one way, one bell the other way.

The agent reads it without asking the rank, so a held interpreter lock or a stopped process cannot hide how far the rank
got; the rank sees the bell in the time of a memory read, so it can look after every gradient (EP-7, GM-18).
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from workers.identity import Generation
from workers.protocol import RankState

_STATES = list(RankState)
_WORDS = 32
_BELL, _STEP, _INCARNATION, _COUNTER, _MICRO, _EXCHANGES, _STATE, _LONGEST, _BUSY, _OWED = range(10)
_POLLS, _COLLECTIVES, _THREAD, _SIGNALS = range(10, 14)
_WORD = struct.Struct("Q")
_DOUBLE = struct.Struct("d")


class Signals(NamedTuple):
    """What a rank has measured of itself for the governor (GM-14, GM-15); NaN where it has not.

    Attributes:
        work: seconds per sample in which it waited for nobody.
        loss: mean over its samples of the last step.
        cosine: of its gradient to the mean of the others', -1 to 1.
        norm: L2, of the mean gradient of its samples.
        compared: the step that cosine and norm are of.
    """

    work: float = math.nan
    loss: float = math.nan
    cosine: float = math.nan
    norm: float = math.nan
    compared: float = math.nan


@dataclass(frozen=True)
class Progress:
    """What a rank has reached; `longest_step` in seconds.

    `collectives` are those of its generation that it has finished: of two members with the same number the last one was the
    same. `polls` counts how often it has looked for directives: who waits for others does so all the time (GM-19).
    """

    step: int
    generation: Generation
    micro_batch: int
    exchanges: int
    state: RankState
    longest_step: float
    polls: int
    collectives: int


class Page:
    """32 aligned 64-bit words in a mapped file. Each has one writer; a word is read and written whole."""

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
        if create:
            self.set_signals(Signals())

    # the agent's side

    def ring(self) -> None:
        """A directive lies in the socket."""
        self.words[_BELL] += 1

    def progress(self) -> Progress:
        words = self.words
        longest = self._double(_LONGEST)
        generation = Generation(words[_INCARNATION], words[_COUNTER])
        state = _STATES[words[_STATE] % len(_STATES)]
        counts = words[_POLLS], words[_COLLECTIVES]
        return Progress(words[_STEP], generation, words[_MICRO], words[_EXCHANGES], state, longest, *counts)

    @property
    def thread(self) -> int:
        """Native id of the rank's own thread; 0 where it does not show its stack."""
        return self.words[_THREAD]

    @property
    def busy(self) -> bool:
        """The rank is in code of the task whose length nobody knows: an evaluation, a first step, the end of the script."""
        return bool(self.words[_BUSY])

    @property
    def owed(self) -> float:
        """L2 norm of what error feedback owes, relative to that of the reduced gradient, when it was last looked at."""
        return self._double(_OWED)

    @property
    def signals(self) -> Signals:
        return Signals(*(self._double(_SIGNALS + place) for place in range(len(Signals._fields))))

    # the rank's side

    def set_owed(self, owed: float) -> None:
        self._put(_OWED, owed)

    def set_signals(self, signals: Signals) -> None:
        for place, value in enumerate(signals):
            self._put(_SIGNALS + place, value)

    def set_thread(self, thread: int) -> None:
        self.words[_THREAD] = thread

    def set_busy(self, busy: bool) -> None:
        self.words[_BUSY] = int(busy)

    @property
    def bell(self) -> int:
        return self.words[_BELL]

    def set_step(self, step: int, longest: float) -> None:
        self.words[_STEP] = step
        self._put(_LONGEST, longest)

    def set_state(self, state: RankState, generation: Generation) -> None:
        self.words[_STATE] = _STATES.index(state)
        self.words[_INCARNATION], self.words[_COUNTER] = generation

    def count_micro_batch(self) -> None:
        self.words[_MICRO] += 1

    def count_exchange(self) -> None:
        self.words[_EXCHANGES] += 1

    def count_poll(self) -> None:
        self.words[_POLLS] += 1

    def count_collective(self) -> None:
        self.words[_COLLECTIVES] += 1

    def forget_collectives(self) -> None:
        """A generation begins."""
        self.words[_COLLECTIVES] = 0

    def _put(self, place: int, value: float) -> None:
        self.words[place] = _WORD.unpack(_DOUBLE.pack(value))[0]

    def _double(self, place: int) -> float:
        return float(_DOUBLE.unpack(_WORD.pack(self.words[place]))[0])

    def close(self) -> None:
        self.words.release()
        self._map.close()
