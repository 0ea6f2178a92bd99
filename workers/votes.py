"""What the ranks tell each other about checkpoints with each step (CK-4)."""

from __future__ import annotations

from typing import NamedTuple


class Votes(NamedTuple):
    """Of one rank, or their sums over all ranks. They are committed with the step, so that every rank knows the same, and
    all save the same states."""

    busy: float = 0.0
    """Its writer has not finished the last one."""
    failed: float = 0.0
    """It could not write its part of the last one: nobody needs to wait for it."""
    exact: float = 0.0
    """The first of the ring wants the state saved after this step, bit for bit."""
    qins: float = 0.0
    """The same in the qins tier."""
    alone: float = 0.0
    """The first of the ring saves without the others until the next generation."""


NO_VOTES = Votes()
