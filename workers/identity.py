"""Names of memberships and states: what two processes compare before they trust each other."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple, Self


class Generation(NamedTuple):
    """The number of a membership; orders and fences messages, store keys and files."""

    incarnation: int
    counter: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.counter}"


NO_GENERATION = Generation(0, 0)


class StateId(NamedTuple):
    """Two states hold the same bytes only if their ids are equal.

    `step` counts committed optimizer steps, `round` the collect() rounds committed since that step, `generation` is
    that of the last commit, `lineage` a running 64-bit hash over every commit (EP names).
    """

    step: int
    round: int
    generation: Generation
    lineage: int

    @property
    def values(self) -> list[int]:
        """For JSON; `of` makes the id of them."""
        return [self.step, self.round, *self.generation, self.lineage]

    @classmethod
    def of(cls, values: Sequence[int]) -> Self:
        step, round_, incarnation, counter, lineage = (int(value) for value in values)
        return cls(step, round_, Generation(incarnation, counter), lineage)

    @property
    def position(self) -> tuple[int, int]:
        """Where on its line a state stands; comparable within one lineage only."""
        return (self.step, self.round)


GENESIS = StateId(0, 0, NO_GENERATION, 0)

NOWHERE = StateId(0, 0, NO_GENERATION, 2**64 - 1)
"""The id of bytes that are no state: a fresh process, a broken apply, a half-copied snapshot. Equal to no authority."""


def next_lineage(previous: StateId, step: int, round_: int, generation: Generation, content: int) -> int:
    """Lineage after one more commit, whose reduced values hash to `content` (64 bit)."""
    text = f"{previous.lineage:016x}/{step}/{round_}/{generation}/{content:016x}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
