"""What hosts that are well measure of themselves, drawn from normal distributions as wide as a window leaves them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workers.page import Signals

COMPARED_EVERY = 10
"""Steps from one comparison of gradients to the next (GM-15)."""

SECONDS_PER_SAMPLE = 0.01


class Measured(NamedTuple):
    """`temperature` in degrees Celsius."""

    signals: Signals
    temperature: float


class Measures:
    """Of the hosts of one generator, from a seed."""

    def __init__(self, seed: int, generator: int) -> None:
        self._chance = np.random.default_rng([seed, generator])

    def draw(self, hosts: int, step: int) -> list[Measured]:
        """One of each of so many hosts, after so many steps."""
        compared = float(step - step % COMPARED_EVERY)
        normal = self._chance.standard_normal((hosts, 5)).tolist()
        return [
            Measured(
                Signals(
                    work=SECONDS_PER_SAMPLE * (1 + 0.01 * work),
                    loss=1.2 + 0.05 * loss,
                    cosine=0.6 + 0.03 * cosine,
                    norm=2.0 + 0.1 * norm,
                    compared=compared,
                ),
                60 + 3 * temperature,
            )
            for work, loss, cosine, norm, temperature in normal
        ]
