"""GM-17: how often a rank tells the digest of its state."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.coherence.digests import INTERVALS, RAREST_SECONDS, SHARE, DigestRhythm


@pytest.mark.parametrize(
    ("digest", "step", "interval"),
    [
        (0.01, 0.05, 100),  # the usual one
        (0.0, 0.001, 100),
        (0.01, 1.0, 25),  # within a minute
        (0.01, 30.0, 1),
        (1.0, 0.05, 2500),  # no more than one percent
        (10.0, 0.05, 2500),  # but every ten minutes, whatever it costs
    ],
)
def test_gm17_every_hundred_steps_every_minute_and_for_no_more_than_a_percent(
    digest: float, step: float, interval: int
) -> None:
    rhythm = DigestRhythm()
    assert rhythm.interval == 100
    rhythm.took(digest, step)
    assert rhythm.interval == interval
    assert rhythm.is_due(interval) and rhythm.is_due(3 * interval) and (interval == 1 or not rhythm.is_due(interval + 1))


@given(st.floats(0, 100), st.floats(1e-4, 100))
def test_gm17_intervals_are_multiples_of_one_another(digest: float, step: float) -> None:
    assert all(after % before == 0 for before, after in pairwise(INTERVALS))
    rhythm = DigestRhythm()
    rhythm.took(digest, step)
    assert rhythm.interval in INTERVALS
    rarer = next((each for each in INTERVALS if each > rhythm.interval), None)
    dear = digest > SHARE * rhythm.interval * step
    assert not dear or rarer is None or rarer * step > RAREST_SECONDS
