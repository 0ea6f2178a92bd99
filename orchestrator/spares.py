"""How many warm spare hosts a job needs (GM-37)."""

from __future__ import annotations

import math

HOURS_TO_FAILURE = 1000.0
"""Of one host, in the mean."""

HOURS_TO_REPLACE = 2.0

ENOUGH = 0.99
"""How probable it is that no more hosts are out at once than there are spares."""


def spares_for(hosts: int, failure: float = HOURS_TO_FAILURE, replacement: float = HOURS_TO_REPLACE) -> int:
    """The fewest spares S of N `hosts` with P(Binomial(N, q) <= S) >= 0.99, where q = 1 - exp(-replacement / failure) is
    the probability that a host fails while another is being replaced.

    Args:
        failure, replacement: hours, above zero.
    """
    odds = math.expm1(replacement / failure)  # q / (1 - q)
    term = total = math.exp(-hosts * replacement / failure)  # that k hosts fail, k = 0
    spares = 0
    while total < ENOUGH and spares < hosts:
        term *= odds * (hosts - spares) / (spares + 1)
        total += term
        spares += 1
    return spares
