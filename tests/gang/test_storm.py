"""EP-19: many faults at random moments, of every kind that leaves enough to go on with, on real processes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.gang.harness import STEPS_PER_EPOCH, Gang

STORMS = int(os.environ.get("QUANTARION_STORMS", "5"))
FAULTS = 12
EPOCHS = 40


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(STORMS))
def test_ep19_a_storm(seed: int, gang: Callable[..., Gang]) -> None:
    """Nobody waits for the gang to be whole before the next fault."""
    chance = random.Random(seed)
    g = gang(epochs=EPOCHS)
    moments = sorted(chance.sample(range(5, EPOCHS * STEPS_PER_EPOCH - 80), FAULTS))
    for step in moments:
        g.wait_for_step(step)
        break_something(g, chance)
    g.check()


def break_something(g: Gang, chance: random.Random) -> None:
    living = [rank for rank in g.members() if g.lives(rank)]
    choice = chance.random()
    if choice < 0.6 and living:
        g.kill(*chance.sample(living, chance.choice([1, 1, 2]) if len(living) > 1 else 1))
    elif choice < 0.8:
        g.kill_agent(chance.choice(["host-1", "host-2"]))
    else:
        g.kill_coordinator()
