"""CC-9: from measured links to groups of hosts, and who measures when."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.link_groups import GAP, Pair, clusters, found_groups, rounds

HOSTS = [f"host-{number}" for number in range(1, 13)]


@given(st.integers(0, 30))
def test_cc9_every_pair_of_hosts_meets_once_and_nobody_is_in_two_pairs_at_once(num_hosts: int) -> None:
    hosts = list(range(num_hosts))
    played = rounds([str(host) for host in hosts])
    assert len(played) == (num_hosts - 1 + num_hosts % 2 if num_hosts > 1 else 0)
    for pairs in played:
        busy = [host for pair in pairs for host in pair]
        assert len(busy) == len(set(busy))
    met = [tuple(sorted(map(int, pair))) for pairs in played for pair in pairs]
    assert sorted(met) == list(combinations(hosts, 2))


@given(st.integers(3, 30), st.integers(2, 29))
def test_cc9_few_rounds_are_enough_to_connect_all_hosts(num_hosts: int, num_played: int) -> None:
    """So that groups can be found where there is no time for all pairs."""
    hosts = [str(host) for host in range(num_hosts)]
    at_least = 2 + num_hosts % 2  # where the number is odd, somebody sits out in each
    played = rounds(hosts)[: max(at_least, num_played)]
    rates = dict.fromkeys((pair for pairs in played for pair in pairs), 1.0)
    rates[played[0][0]] = GAP
    assert sorted(host for cluster in clusters(hosts, rates) for host in cluster) == sorted(hosts)


@st.composite
def sites(draw: st.DrawFn) -> tuple[list[list[str]], dict[Pair, float]]:
    """Two to four sites of hosts; links inside are at least `GAP` times as fast as any between."""
    hosts = draw(st.permutations(HOSTS[: draw(st.integers(3, 12))]))
    number = draw(st.integers(2, min(4, len(hosts) - 1)))
    site = {host: n if n < number else draw(st.integers(0, number - 1)) for n, host in enumerate(hosts)}
    slow, fast = st.floats(0.9, 1.0), st.floats(GAP, GAP * 1.1)
    rates = {(a, b): draw(fast if site[a] == site[b] else slow) for a, b in combinations(hosts, 2)}
    return [[host for host in HOSTS if site.get(host) == n] for n in range(number)], rates


@given(sites())
def test_cc9_sites_with_fast_links_inside_are_found(made: tuple[list[list[str]], dict[Pair, float]]) -> None:
    expected, rates = made
    hosts = sorted((host for site in expected for host in site), key=HOSTS.index)
    assert clusters(hosts, rates) == sorted(expected, key=lambda site: HOSTS.index(site[0]))


@given(st.lists(st.floats(1.0, GAP * 0.99), min_size=66, max_size=66))
def test_cc9_links_that_differ_less_make_no_groups(values: list[float]) -> None:
    rates = dict(zip(combinations(HOSTS, 2), values, strict=True))
    assert clusters(HOSTS, rates) == []
    assert found_groups(HOSTS, rates, {}) == {}


RATES = st.dictionaries(
    st.sampled_from(list(combinations(HOSTS, 2))), st.sampled_from([1.0, 3.0, 5.0, 40.0, 1e3, 1e6]), max_size=30
)


@given(RATES, st.dictionaries(st.sampled_from(HOSTS), st.sampled_from(["a", "b", "probe-1"])), st.randoms())
def test_cc9_groups_are_the_same_whoever_measured_and_in_whichever_order(
    rates: Mapping[Pair, float], told: dict[str, str], random: Any
) -> None:
    """What was told stays; each host is in one cluster; a cut has links inside `GAP` times as fast as those between."""
    mixed = [((a, b) if random.random() < 0.5 else (b, a), rate) for (a, b), rate in rates.items()]
    random.shuffle(mixed)
    groups = found_groups(HOSTS, rates, told)
    assert found_groups(HOSTS, dict(mixed), told) == groups
    assert not groups.keys() & told.keys()
    found = clusters(HOSTS, rates)
    placed = [host for cluster in found for host in cluster]
    assert len(placed) == len(set(placed)) and len(found) != 1
    place = {host: number for number, cluster in enumerate(found) for host in cluster}
    between = [rate for (a, b), rate in rates.items() if a in place and b in place and place[a] != place[b]]
    for number, cluster in enumerate(found):
        inside = {pair: rate for pair, rate in rates.items() if place.get(pair[0]) == place.get(pair[1]) == number}
        fast = [pair for pair, rate in inside.items() if rate >= GAP * max(between)]
        reached = {cluster[0]}
        for _ in cluster:
            reached |= {host for pair in fast if reached & set(pair) for host in pair}
        assert reached == set(cluster)


def test_cc9_a_cluster_takes_the_group_that_its_hosts_were_told() -> None:
    rates: dict[Pair, float] = dict.fromkeys(combinations(HOSTS[:6], 2), 1.0)
    rates |= {("host-1", "host-2"): 9.0, ("host-3", "host-4"): 9.0, ("host-5", "host-6"): 9.0}
    assert found_groups(HOSTS[:6], rates, {"host-1": "site-a", "host-4": "probe-1"}) == {
        "host-2": "site-a",
        "host-3": "probe-1",
        "host-5": "probe-2",
        "host-6": "probe-2",
    }


def test_cc9_a_host_whose_links_were_not_measured_stays_without_a_group() -> None:
    rates = {("host-1", "host-2"): 9.0, ("host-2", "host-3"): 1.0}
    assert found_groups(HOSTS[:4], rates, {}) == {"host-1": "probe-1", "host-2": "probe-1", "host-3": "probe-2"}


@pytest.mark.parametrize("rates", [{}, {("host-1", "host-2"): 5.0}])
def test_cc9_less_than_two_links_make_no_groups(rates: dict[Pair, float]) -> None:
    assert found_groups(HOSTS[:2], rates, {}) == {}
