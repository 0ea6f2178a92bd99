"""GM-40: which hosts the gate takes, and which of them it disturbs."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.jobspec import JobSpec
from orchestrator.preflight.hosts import MOST, Host, chosen, hosts_of_machine, linked, roles


def ring(hosts: int, groups: int = 1) -> list[Host]:
    return [Host(f"10.0.{n // 200}.{n % 200:03}", f"n{n}", f"g{n % groups}" if groups > 1 else "") for n in range(hosts)]


def test_gm40_all_hosts_up_to_64_in_the_order_of_their_ranks() -> None:
    hosts = [Host("10.0.0.2", "", "b"), Host("10.0.0.3"), Host("10.0.0.1", "", "b"), Host("10.0.0.4", "", "a")]
    assert chosen(hosts) == [hosts[3], hosts[2], hosts[0], hosts[1]]  # groups first, and those without one last
    assert chosen([]) == [] and len(chosen(ring(MOST))) == MOST


@given(st.integers(1, 300), st.integers(1, 12))
def test_gm40_of_more_hosts_64_of_all_groups_as_evenly_as_they_go(hosts: int, groups: int) -> None:
    found = chosen(ring(hosts, groups))
    assert len(found) == len(set(found)) == min(hosts, MOST)
    counts = Counter(host.group for host in found)
    assert len(counts) == min(groups, hosts)  # of which three would do
    if hosts >= MOST and hosts >= groups * MOST:
        assert max(counts.values()) - min(counts.values()) <= 1


@given(st.integers(2, 64), st.integers(0, 3))
def test_gm40_faults_hit_other_hosts_than_the_one_that_writes(hosts: int, turn: int) -> None:
    who = roles(ring(hosts), turn)
    assert 0 not in {*who.lost, who.noisy, who.slow, who.flipped}
    assert len(set(who.lost)) == len(who.lost) == -(-hosts // 10)
    assert all(0 < rank < hosts for rank in (*who.lost, who.noisy, who.slow, who.flipped))
    if hosts >= 4:
        assert len({who.noisy, who.slow, who.flipped}) == 3


def test_gm40_a_second_try_hits_others() -> None:
    first, second = roles(ring(8)), roles(ring(8), turn=1)
    assert (first.noisy, first.slow, first.flipped, first.lost) == (7, 6, 5, (7,))
    assert (second.noisy, second.slow, second.flipped, second.lost) == (6, 5, 4, (6,))
    assert roles(ring(1)).lost == (0,)


def test_pf3_links_are_those_between_the_first_hosts_of_groups_or_all() -> None:
    assert linked(ring(5)) == (0, 1, 2, 3, 4)
    assert linked(chosen(ring(7, groups=3))) == (0, 3, 5)
    mixed = chosen([Host("1", "", "a"), Host("2", "", "a"), Host("3"), Host("4")])
    assert linked(mixed) == (0, 2)


def test_gm40_embedded_hosts_and_their_groups_are_known_before_ray_starts() -> None:
    values = {"name": "a", "hosts": {"max": 3}, "topology": {"groups": {"site": ["127.0.0.3"]}}}
    spec = JobSpec.model_validate(values)
    assert hosts_of_machine(spec) == [Host("127.0.0.2"), Host("127.0.0.3", "", "site"), Host("127.0.0.4")]


@pytest.mark.parametrize("only", [["127.0.0.3"], ["127.0.0.3", "10.0.0.1"]])
def test_gm40_only_hosts_that_the_job_may_have_are_tested(only: list[str]) -> None:
    spec = JobSpec.model_validate({"name": "a", "hosts": {"max": 3, "only": only}})
    assert hosts_of_machine(spec) == [Host("127.0.0.3")]
