"""Groups, guards, returns: the numbers of the spec."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.governor.codes import Code
from orchestrator.governor.groups import Candidate, are_to_be_cut_anew, leader, sizes
from orchestrator.governor.guards import (
    Quorum,
    is_group_cause,
    is_mass_failure,
    min_hosts,
    noisy_cap,
    quorum,
    removal_gains,
)
from orchestrator.governor.returning import Eviction, may_return, warm_spares


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (0, ()),
        (2, (2,)),
        (64, (64,)),
        (65, (33, 32)),
        (100, (50, 50)),
        (888, (64,) * 6 + (63,) * 8),
        (10_000, (64,) * 109 + (63,) * 48),
    ],
)
def test_gm1_sizes_of_groups(hosts: int, expected: tuple[int, ...]) -> None:
    assert sizes(hosts) == expected


@given(st.integers(1, 20_000))
def test_gm1_every_host_is_in_a_group_and_groups_are_even(hosts: int) -> None:
    found = sizes(hosts)
    assert sum(found) == hosts
    assert max(found) <= 64
    assert max(found) - min(found) <= 1


@pytest.mark.parametrize(
    ("present", "since", "asked", "expected"),
    [
        ((64, 56), 60, False, False),
        ((64, 55), 60, False, True),
        ((64, 55), 59, False, False),
        ((4, 1), 60, False, True),
        ((2, 1), 60, False, False),
        ((65,), 60, False, True),
        ((8, 8), 60, True, True),
        ((8, 8), 30, True, False),
        ((), 60, True, False),
    ],
)
def test_gm7_groups_are_cut_anew_when_they_are_uneven(
    present: tuple[int, ...], since: float, asked: bool, expected: bool
) -> None:
    assert are_to_be_cut_anew(present, since_last=since, asked=asked) == expected


def test_gm4_who_leads_a_group() -> None:
    probation = Candidate("p", 0, healthy=False, probation=True, trust=0.99)
    suspect = Candidate("s", 1, healthy=False, probation=False, trust=0.99)
    doubtful = Candidate("d", 2, healthy=True, probation=False, trust=0.89)
    good, better = (Candidate(name, rank, True, False, 0.95) for name, rank in (("g", 4), ("b", 3)))
    everybody = [probation, suspect, doubtful, good, better]
    for expected in ("b", "g", "d", "s", "p"):
        assert leader(everybody) == expected
        everybody = [each for each in everybody if each.host != expected]
    assert leader([]) is None


@pytest.mark.parametrize(("live", "cap"), [(1, 1), (16, 1), (888, 17), (10_000, 200)])
def test_gm31_how_many_may_be_removed(live: int, cap: int) -> None:
    assert noisy_cap(live) == cap


@pytest.mark.parametrize(("live", "enough"), [(4, 3), (30, 3), (31, 4), (888, 89)])
def test_gm32_how_many_at_once_have_a_common_cause(live: int, enough: int) -> None:
    assert is_mass_failure(enough, live)
    assert not is_mass_failure(enough - 1, live)


@pytest.mark.parametrize(("members", "enough"), [(4, 3), (12, 3), (13, 4), (64, 16)])
def test_gm29_how_many_of_a_group_have_it_from_the_group(members: int, enough: int) -> None:
    assert is_group_cause(enough, members)
    assert not is_group_cause(enough - 1, members)


@pytest.mark.parametrize(("target", "least"), [(0, 1), (1, 1), (2, 1), (3, 2), (16, 8)])
def test_gm33_the_minimum_is_half_of_the_target(target: int, least: int) -> None:
    assert min_hosts(target) == least


@pytest.mark.parametrize(("live", "limit"), [(2, 2.2), (4, 1.4667), (16, 1.1734)])
def test_gm34_a_straggler_is_removed_only_where_that_is_faster(live: int, limit: float) -> None:
    assert removal_gains(limit + 0.01, live, cost=1.0)
    assert not removal_gains(limit - 0.01, live, cost=1.0)
    assert not removal_gains(limit + 0.01, live, cost=600.0)
    assert not removal_gains(9.0, 1, cost=1.0)


def hosts_of(*groups: int) -> dict[str, str]:
    return {f"{group}-{i}": str(group) for group, count in enumerate(groups) for i in range(count)}


def test_gm30_a_generation_needs_more_than_half_of_the_hosts() -> None:
    healed = hosts_of(5)
    assert quorum(healed, set(list(healed)[:3])) is Quorum.YES
    assert quorum(healed, set(list(healed)[:2])) is Quorum.NO
    assert quorum({}, set()) is Quorum.NO


def test_gm30_with_exactly_half_the_coordinator_decides() -> None:
    healed = hosts_of(2)
    assert quorum(healed, {"0-0"}) is Quorum.TIE


def test_gm30_the_dead_do_not_count_and_the_unreachable_do() -> None:
    healed = hosts_of(4)
    assert quorum(healed, {"0-0", "0-1"}) is Quorum.TIE
    assert quorum(healed, {"0-0", "0-1"}, dead={"0-3"}) is Quorum.YES


def test_gm30_agreement_is_spread_over_three_groups() -> None:
    healed = hosts_of(8, 2, 2, 2)
    two_groups = {host for host, group in healed.items() if group in "01"}
    assert quorum(healed, two_groups) is Quorum.NO
    assert quorum(healed, two_groups | {"2-0", "2-1"}) is Quorum.YES
    assert quorum(healed, two_groups | {"2-0", "3-0"}) is Quorum.NO  # half of a group is not more than half of it


@pytest.mark.parametrize(
    ("earlier", "least", "most"), [(0, 60, 120), (1, 120, 180), (2, 240, 300), (3, 480, 540), (7, 3600, 3600)]
)
def test_gm36_cooldown_doubles(earlier: int, least: float, most: float) -> None:
    evictions = tuple(Eviction(1000.0 * i, Code.STRAGGLER) for i in range(earlier + 1))
    last = evictions[-1].time
    assert may_return(evictions, 0.0).at - last == pytest.approx(least)
    assert may_return(evictions, 0.999999).at - last == pytest.approx(most, abs=1e-3)
    assert may_return(evictions, 0.5).excluded == (earlier >= 4)


def test_gm36_what_was_a_day_ago_is_forgotten() -> None:
    old = tuple(Eviction(float(i), Code.STRAGGLER) for i in range(4))
    found = may_return((*old, Eviction(86_500.0, Code.STRAGGLER)), 0.0)
    assert found == (86_560.0, False)


def test_gm36_corruption_burns_in_and_the_second_one_excludes() -> None:
    once = may_return((Eviction(0.0, Code.SDC_DIGEST),), 0.5)
    assert once == (1800.0, False)
    assert may_return((Eviction(0.0, Code.SDC_DIGEST), Eviction(1e6, Code.SDC_DIGEST)), 0.5).excluded


def test_gm36a_who_was_lost_may_return_at_once() -> None:
    evictions = tuple(Eviction(float(i), Code.PROC_EXIT) for i in range(20))
    assert may_return(evictions, 0.5) == (19.0, False)
    assert may_return((*evictions, Eviction(20.0, Code.NET_SLOW)), 0.0) == (80.0, False)
    assert may_return((Eviction(20.0, Code.OPERATOR_EVICT),), 0.0).excluded


@pytest.mark.parametrize(("hosts", "spares"), [(0, 0), (16, 1), (128, 2), (888, 5), (10_000, 31)])
def test_gm37_warm_spares(hosts: int, spares: int) -> None:
    assert warm_spares(hosts, replacement=2 * 3600.0, mttf=1000 * 3600.0) == spares


@given(st.integers(0, 2000), st.floats(1.0, 1e5), st.floats(1e4, 1e7))
def test_gm37_never_more_spares_than_hosts(hosts: int, replacement: float, mttf: float) -> None:
    assert 0 <= warm_spares(hosts, replacement, mttf) <= hosts


@pytest.mark.parametrize(("hosts", "replacement", "mttf"), [(-1, 1.0, 1.0), (1, 0.0, 1.0), (1, 1.0, -1.0)])
def test_gm37_times_are_positive(hosts: int, replacement: float, mttf: float) -> None:
    with pytest.raises(ValueError, match="write positive numbers"):
        warm_spares(hosts, replacement, mttf)
