"""The gauges of a job (GM-24, GM-25): the graph is that of the exchange, and they are where people look."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from orchestrator.gauging import Gauges, links, phi_of_groups
from workers.collectives.levels import levels
from workers.identity import Generation


def exchanged(sizes: tuple[int, ...], ranks: int) -> set[tuple[int, int]]:
    """Pairs of hosts with a lane of a large bucket in common, as the levels of all members say."""
    hosts = tuple(tuple(range(host * ranks, (host + 1) * ranks)) for host in range(sum(sizes)))
    begins = [sum(sizes[:index]) for index in range(len(sizes))]
    groups = tuple(tuple(range(begin * ranks, (begin + size) * ranks)) for begin, size in zip(begins, sizes, strict=True))
    found = set()
    for member in range(sum(sizes) * ranks):
        each = levels(1 << 16, hosts, groups, member)
        for lanes in (each.inside, each.between):
            for lane in lanes.lanes if lanes is not None else ():
                together = sorted({at // ranks for at in lane.members})
                found |= set(itertools.combinations(together, 2))
    return found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("sizes", [(2,), (5,), (2, 2), (1, 1, 1), (3, 2), (4, 4, 4), (1, 4)])
def test_gm25_links_are_those_that_gradients_go_over(sizes: tuple[int, ...], ranks: int) -> None:
    assert set(links(sizes)) == exchanged(sizes, ranks)


def test_gm25_of_groups() -> None:
    assert phi_of_groups([1]) is None and phi_of_groups([]) is None
    assert phi_of_groups([2]) == phi_of_groups([888]) == 2.0
    several = [phi_of_groups([4] * groups) for groups in (2, 4, 8)]
    assert all(phi is not None and 1.0 < phi < 2.0 for phi in several)
    assert phi_of_groups([1, 1, 1, 1]) == pytest.approx(2.0)  # each with each


def test_gm24_gm25_gauges_are_on_record_and_begin_anew_with_a_generation() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    gauges = Gauges(lambda kind, fields: told.append((kind, fields)))
    gauges.generation(Generation(1, 2), {"h1": "a", "h2": "a", "h3": "b", "h4": "b"})
    gauges.window([0.01, 0.01, None, 0.0101], 100, 2.0)
    assert gauges.lockstep is not None and gauges.lockstep.r == pytest.approx(1.0, abs=1e-3)
    gauges._thread.shutdown(wait=True)
    ((kind, fields),) = told
    assert (kind, fields["generation"], fields["phi"]) == ("links", [1, 2], gauges.phi)
    assert gauges.phi == phi_of_groups([2, 2]) and "code" not in fields
    again = Gauges(lambda kind, fields: None)
    again.phi, again.lockstep = gauges.phi, gauges.lockstep
    again.generation(Generation(1, 3), {"h1": ""})
    again._thread.shutdown(wait=True)
    assert again.phi is None and again.lockstep is None


def test_gm25_a_graph_in_two_parts_is_on_record_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the links were not those that the exchange needs: each host is linked within its group alone."""
    monkeypatch.setattr("orchestrator.gauging.links", lambda sizes: [(0, 1), (2, 3)])
    told: list[tuple[str, dict[str, Any]]] = []
    gauges = Gauges(lambda kind, fields: told.append((kind, fields)))
    gauges.generation(Generation(1, 2), {"h1": "a", "h2": "a", "h3": "b", "h4": "b"})
    gauges._thread.shutdown(wait=True)
    assert [(kind, fields["phi"], fields["code"]) for kind, fields in told] == [("links", 1.0, "TOPOLOGY_SPLIT")]
