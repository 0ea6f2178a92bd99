"""GM-24 and GM-25 against the spec's numbers, and against plain linear algebra."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.governor.gauges import lockstep, phi_topology
from orchestrator.governor.groups import sizes

Links = list[tuple[int, int]]


@pytest.mark.parametrize(("spread", "r"), [(0.01, 0.998), (0.05, 0.952), (0.10, 0.821)])
def test_gm24_lockstep_of_normal_arrivals(spread: float, r: float) -> None:
    chance = random.Random(5)
    found = lockstep([chance.gauss(7.0, spread * 2.0) for _ in range(20_000)], 2.0)
    assert found is not None
    assert found.r == pytest.approx(r, abs=0.005)
    assert found.out_of_phase == 0


@pytest.mark.parametrize(("hosts", "r"), [(14, 0.237), (64, 0.111), (888, 0.030)])
def test_gm24_lockstep_of_random_arrivals(hosts: int, r: float) -> None:
    chance = random.Random(6)
    found = [lockstep([chance.random() for _ in range(hosts)], 1.0) for _ in range(2000)]
    assert np.mean([each.r for each in found if each is not None]) == pytest.approx(r, rel=0.05)


def test_gm24_one_host_fully_off_phase_hardly_shows() -> None:
    found = lockstep([0.0] * 63 + [1.0], 2.0)
    assert found is not None
    assert found.r == pytest.approx(0.969, abs=5e-4)
    assert found.out_of_phase == 1


def test_gm24_without_arrivals_or_period_there_is_no_lockstep() -> None:
    assert lockstep([], 1.0) is None
    assert lockstep([1.0], 0.0) is None


def clique(first: int, size: int) -> Links:
    return list(itertools.combinations(range(first, first + size), 2))


def cliques(of: Iterable[int]) -> tuple[int, Links, list[int]]:
    """How many vertices, their links, and the first of each clique."""
    links: Links = []
    leaders: list[int] = []
    vertices = 0
    for size in of:
        leaders.append(vertices)
        links += clique(vertices, size)
        vertices += size
    return vertices, links, leaders


def ring(vertices: list[int]) -> Links:
    return [*itertools.pairwise(vertices), (vertices[-1], vertices[0])]


@pytest.mark.parametrize(
    ("links", "vertices", "phi", "within"),
    [
        (clique(0, 30), 30, 2.0, 1e-9),
        ([(0, leaf) for leaf in range(1, 888)], 888, 1.0011, 1e-4),
        (ring(list(range(888))), 888, 1.00001, 1e-5),
        (clique(0, 5) + clique(5, 5), 10, 1.0, 0.0),
        ([], 4, 1.0, 0.0),
    ],
)
def test_gm25_phi_of_known_graphs(links: Links, vertices: int, phi: float, within: float) -> None:
    assert phi_topology(vertices, links) == pytest.approx(phi, abs=within)


@pytest.mark.parametrize(
    ("of", "in_ring", "phi", "within"),
    [(sizes(888), False, 1.0023, 1e-4), (sizes(888), True, 1.00005, 1e-5), ([4] * 4, False, 1.0718, 1e-4)],
)
def test_gm25_phi_of_cliques_with_linked_leaders(of: list[int], in_ring: bool, phi: float, within: float) -> None:
    vertices, links, leaders = cliques(of)
    links += ring(leaders) if in_ring else list(itertools.combinations(leaders, 2))
    assert phi_topology(vertices, links) == pytest.approx(phi, abs=within)


def test_gm25_of_one_host_there_is_none() -> None:
    assert phi_topology(1, []) is None


def test_gm25_a_graph_of_too_many_kinds_of_vertices_is_refused() -> None:
    with pytest.raises(ValueError, match="5000 vertices differ"):
        phi_topology(5000, ring(list(range(5000))))


@given(st.integers(2, 12), st.data())
def test_gm25_classes_of_alike_vertices_change_nothing(vertices: int, data: st.DataObject) -> None:
    pairs = list(itertools.combinations(range(vertices), 2))
    links = data.draw(st.lists(st.sampled_from(pairs), unique=True))
    laplacian = np.zeros((vertices, vertices))
    for one, other in links:
        laplacian[one, other] = laplacian[other, one] = -1
        laplacian[one, one] += 1
        laplacian[other, other] += 1
    eigenvalues = np.linalg.eigvalsh(laplacian)
    expected = 1.0 if eigenvalues[-1] < 1e-9 else 1 + max(0.0, eigenvalues[1]) / eigenvalues[-1]
    assert phi_topology(vertices, links) == pytest.approx(expected, abs=1e-8)
    assert math.isfinite(expected)
