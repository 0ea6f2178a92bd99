"""Stands in for the collectives of simulated ranks, over the processes that simulate them.

A step can be committed while all members of a generation train: when one has died or closed, nobody gets on. The step is
the same for all, in a file that all processes map: one of them advances it.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from workers.identity import Generation

_WORDS = 3
_INCARNATION, _COUNTER, _VALUE = range(_WORDS)
_WORD_BYTES = 8


class Exchange:
    """A head with the step, and for each generator a row with how many of its ranks train; each is of one generation.

    Every word has one writer. A counter of 0 marks what is being written.
    """

    def __init__(self, path: Path, generators: int) -> None:
        self._generators = generators
        size = (1 + generators) * _WORDS * _WORD_BYTES
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, size)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("q")

    def train(self, generator: int, generation: Generation, ranks: int) -> None:
        """So many ranks of this generator do, in this generation."""
        self._write(1 + generator, generation, ranks)

    def training(self, generation: Generation) -> int:
        """Ranks of all generators that do."""
        return sum(self._read(1 + row, generation) or 0 for row in range(self._generators))

    def commit(self, generation: Generation, step: int) -> None:
        self._write(0, generation, step)

    def step(self, generation: Generation) -> int | None:
        """The last one committed in this generation; None where none is."""
        return self._read(0, generation)

    def _write(self, row: int, generation: Generation, value: int) -> None:
        place, words = row * _WORDS, self._words
        words[place + _COUNTER] = 0
        words[place + _VALUE] = value
        words[place + _INCARNATION] = generation.incarnation
        words[place + _COUNTER] = generation.counter

    def _read(self, row: int, generation: Generation) -> int | None:
        place, words = row * _WORDS, self._words
        if words[place + _COUNTER] != generation.counter or words[place + _INCARNATION] != generation.incarnation:
            return None
        return words[place + _VALUE]

    def close(self) -> None:
        self._words.release()
        self._map.close()
