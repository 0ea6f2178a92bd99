"""CC-29: a whole training ends where one with exact sums does, and not only its first steps."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tests.codecs import CODECS
from tests.workers.comm import scenarios
from tests.workers.comm.ranks import run

SEEDS = (1, 2, 3)
STEPS = 400
TYPICAL = ("int8", "topk 0.05", "powersgd-int8 2")
"""Of the codecs one of each kind; the others are long tests."""


def losses(folder: Path, options: dict[str, Any] | None, forgets: float = 0.0) -> list[float]:
    """By seed; the same on all ranks."""
    first, *others = run(folder, (1, 1), scenarios.final_losses, options, SEEDS, STEPS, forgets)
    assert all(other == first for other in others)
    return first


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(tmp_path_factory.mktemp("exact"), None)


def spread(found: list[float]) -> float:
    return max(found) - min(found)


@pytest.mark.parametrize(
    "codec", [pytest.param(codec, marks=() if codec in TYPICAL else pytest.mark.long) for codec in CODECS]
)
def test_cc29_with_any_codec_the_final_loss_is_that_of_exact_sums_within_the_spread_of_seeds(
    tmp_path: Path, exact: list[float], codec: str
) -> None:
    found = losses(tmp_path, {"policy": "fixed", "codec": codec})
    assert abs(fmean(found) - fmean(exact)) <= spread(exact)


def test_cc29_what_adaptive_chooses_loses_nothing_either(tmp_path: Path, exact: list[float]) -> None:
    assert abs(fmean(losses(tmp_path, {})) - fmean(exact)) <= spread(exact)


def test_cc29_the_spread_of_seeds_is_so_narrow_that_sums_which_owe_nothing_are_outside_of_it(
    tmp_path: Path, exact: list[float]
) -> None:
    found = losses(tmp_path, None, forgets=0.05)
    assert fmean(found) - fmean(exact) > 2 * spread(exact)
