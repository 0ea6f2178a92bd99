"""Section 5: comparison with peers."""

from __future__ import annotations

import math
import random
from statistics import median
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.governor.peers import LEAST_HOSTS, POOL, Pool, median_of_others
from orchestrator.governor.peers import compare as compare_arrays
from orchestrator.governor.signals import Array

positive = st.floats(0.1, 10.0)


class Found(NamedTuple):
    ratio: float
    z: float


def compare(values: dict[str, float], groups: dict[str, str], pool: Pool) -> tuple[dict[str, Found], Pool]:
    """By host; those that were not compared are left out."""
    hosts = list(values)
    found, pool = compare_arrays(np.array(list(values.values())), [groups[host] for host in hosts], hosts, pool)
    each = zip(hosts, found.ratios.tolist(), found.z.tolist(), strict=True)
    return {host: Found(ratio, z) for host, ratio, z in each if not math.isnan(z)}, pool


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_gm14_the_median_leaves_the_judged_one_out(values: list[float]) -> None:
    expected = [median(values[:i] + values[i + 1 :]) for i in range(len(values))]
    assert median_of_others(np.array(values)).tolist() == pytest.approx(expected)


def fleet(hosts: int, chance: random.Random, spread: float = 0.03) -> dict[str, float]:
    return {f"h{i}": 2.0 * chance.gauss(1.0, spread) for i in range(hosts)}


def one_group(values: dict[str, float]) -> dict[str, str]:
    return dict.fromkeys(values, "a")


def test_gm22_nothing_is_said_while_the_pool_is_not_full_or_there_are_too_few() -> None:
    chance, pool = random.Random(1), Pool()
    for evaluation in range(1, 10):
        found, pool = compare(values := fleet(16, chance), one_group(values), pool)
        assert bool(found) == (16 * evaluation >= POOL)
    few = fleet(LEAST_HOSTS - 1, chance)
    assert compare(few, one_group(few), pool)[0] == {}


def test_gm22_the_pool_keeps_no_more_than_it_needs() -> None:
    chance, pool = random.Random(1), Pool()
    for _ in range(50):
        _, pool = compare(values := fleet(20, chance), one_group(values), pool)
    assert POOL <= pool.size < POOL + 20


@pytest.mark.parametrize("hosts", [16, 200])
def test_gm22_a_straggler_stands_out_and_the_others_do_not(hosts: int) -> None:
    """In a small fleet its own residuals are in the pool that the others are judged by, and not in its own."""
    chance, pool = random.Random(2), Pool()
    for _ in range(20):
        values = fleet(hosts, chance)
        values["h3"] *= 1.5
        found, pool = compare(values, one_group(values), pool)
    assert found["h3"].ratio == pytest.approx(1.5, rel=0.1)
    assert found["h3"].z > 6
    assert all(abs(each.z) < 6 for host, each in found.items() if host != "h3")


def test_gm22_a_scale_below_one_percent_of_the_median_counts_as_one_percent() -> None:
    pool = Pool()
    for _ in range(10):
        values = {f"h{i}": 1.0 for i in range(16)} | {"h0": 1.05}
        found, pool = compare(values, one_group(values), pool)
    assert found["h0"].z == pytest.approx(5.0)


def test_gm22_all_slower_together_are_no_outliers() -> None:
    chance, pool = random.Random(3), Pool()
    for evaluation in range(20):
        values = {host: value * (1.5 if evaluation > 12 else 1.0) for host, value in fleet(16, chance).items()}
        found, pool = compare(values, one_group(values), pool)
        assert all(abs(each.z) < 6 for each in found.values())


def test_gm1_a_host_is_compared_within_its_group() -> None:
    values = {f"a{i}": 1.0 for i in range(70)} | {f"b{i}": 3.0 for i in range(70)} | {"alone": 9.0}
    found, _ = compare(values, {host: host[0] if host != "alone" else host for host in values}, Pool())
    assert "alone" not in found
    assert {each.ratio for each in found.values()} == {1.0}


@given(st.dictionaries(st.sampled_from([f"h{i}" for i in range(200)]), positive, min_size=130), st.randoms())
def test_gm10_the_order_of_observations_does_not_matter(values: dict[str, float], chance: random.Random) -> None:
    hosts = list(values)
    chance.shuffle(hosts)
    shuffled = {host: values[host] for host in hosts}
    groups = {host: host[-1] for host in values}
    assert compare(values, groups, Pool()) == compare(shuffled, groups, Pool())


def test_gm22_a_median_that_is_not_positive_compares_nobody() -> None:
    values = {f"h{i}": -1.0 for i in range(200)}
    assert compare(values, one_group(values), Pool())[0] == {}


def test_gm22_who_is_not_known_is_not_compared() -> None:
    values = {f"h{i}": 1.0 for i in range(200)} | {"h3": math.nan}
    found, pool = compare(values, one_group(values), Pool())
    assert "h3" not in found
    assert pool.size == 199


def columns(hosts: int, chance: random.Random, spread: float, steps: int = 4) -> list[Array]:
    """Values of single steps."""
    return [np.array([2.0 * chance.gauss(1.0, spread) for _ in range(hosts)]) for _ in range(steps)]


def test_gm40_with_single_steps_the_pool_is_full_sooner_and_made_of_them_alone() -> None:
    chance, pool, hosts = random.Random(1), Pool(), [f"h{i}" for i in range(4)]
    values, groups = np.full(4, 2.0), [""] * 4
    for evaluation in range(1, 12):
        found, pool = compare_arrays(values, groups, hosts, pool, columns(4, chance, 0.1))
        assert bool(np.isnan(found.ratios).any()) == (16 * evaluation < POOL)
    assert POOL <= pool.size < POOL + 4 and 0.0 not in {each for step in pool.evaluations for each in step.values()}
    values[1] = 2.6
    found, _ = compare_arrays(values, groups, hosts, pool, columns(4, chance, 0.1))
    assert 1.5 < found.z[1] < 6  # as wide as single steps vary, 30 % are little
    narrow = Pool()
    for _ in range(8):
        _, narrow = compare_arrays(np.full(4, 2.0), groups, hosts, narrow, columns(4, chance, 0.01))
    assert compare_arrays(values, groups, hosts, narrow, columns(4, chance, 0.01))[0].z[1] > 6


def test_gm40_a_single_step_of_too_few_hosts_is_left_out() -> None:
    hosts, few = [f"h{i}" for i in range(4)], np.array([1.0, math.nan, 1.0, 1.0])
    _, pool = compare_arrays(np.ones(4), [""] * 4, hosts, Pool(), [few])
    assert pool.size == 0 and pool.evaluations == ()


def test_gm22_evaluations_in_which_nobody_was_compared_leave_nothing_behind() -> None:
    few, pool = fleet(LEAST_HOSTS - 1, random.Random(1)), Pool()
    for _ in range(3):
        _, pool = compare(few, one_group(few), pool)
    assert pool == Pool()
