"""CC-1: who has and who adds up which elements, over hosts and groups of any sizes."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given

from workers.collectives.exchange import Groups, Hosts, Place, Topology
from workers.collectives.lanes import Lanes, group_map, host_map, lanes_between
from workers.collectives.levels import Levels, levels

Shape = list[list[int]]
"""Ranks on each host of each group."""

shapes = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4)
lengths = st.one_of(st.integers(0, 300), st.integers(300, 20_000))
granularities = st.sampled_from([1, 16, 64, 256, 512])


@st.composite
def topologies(draw: st.DrawFn) -> tuple[Hosts, Groups]:
    """Ranks are in any order, as hosts may come and go in any."""
    shape = draw(shapes)
    numbers = iter(draw(st.permutations(range(sum(map(sum, shape))))))
    groups = [[tuple(sorted(next(numbers) for _ in range(ranks))) for ranks in group] for group in shape]
    hosts = tuple(sorted(host for group in groups for host in group))
    return hosts, tuple(tuple(sorted(member for host in group for member in host)) for group in groups)


def all_levels(n: int, hosts: Hosts, groups: Groups, granularity: int) -> list[Levels]:
    return [levels(n, hosts, groups, member, granularity) for member in range(sum(map(len, hosts)))]


def covers(parts: list[slice], n: int) -> bool:
    """All elements, each once."""
    found = sorted((part.start, part.stop) for part in parts if part.start < part.stop)
    return [0, *(stop for _, stop in found)] == [*(start for start, _ in found), n]


def of_all_members(each: list[Lanes], units: Hosts | Groups, n: int) -> None:
    """What must hold of lanes between units, as all members of them see them."""
    for unit in units:
        assert covers([part for member in unit for part in each[member].held], n)
    assert covers([piece.part for member in sum(units, ()) for piece in each[member].owned], n)
    for member in sum(units, ()):
        cut = each[member]
        assert cut.lanes == each[units[0][0]].lanes
        for lane in cut.lanes:
            assert [sum(m in unit for m in lane.members) for unit in units] == [1] * len(units)
            assert covers([slice(p.start - lane.start, p.stop - lane.start) for p in lane.pieces], lane.stop - lane.start)
        assert all(cut.shard.start <= part.start < part.stop <= cut.shard.stop for part in cut.held)
        assert all(before.stop < after.start for before, after in pairwise(cut.held))
        for other in sum(units, ()):
            mail = [piece.part for piece in each[other].owned if member in piece.members and member != other]
            assert list(cut.others[other]) == mail


@given(lengths, topologies(), granularities)
def test_cc1_on_each_level_every_element_has_one_holder_in_a_unit_and_one_owner(
    n: int, topology: tuple[Hosts, Groups], granularity: int
) -> None:
    hosts, groups = topology
    each = all_levels(n, hosts, groups, granularity)
    for host in hosts:
        assert len({each[member].cuts for member in host}) == 1
        assert covers([each[member].between.shard for member in host], n)
    if len(groups) == 1:
        assert all(found.inside is None for found in each)
        of_all_members([found.between for found in each], hosts, n)
        assert all(found.between.held in ((), (found.between.shard,)) for found in each)
        return
    of_all_members([found.between for found in each], groups, n)
    inside = [found.inside for found in each if found.inside is not None]
    assert len(inside) == len(each)
    for group in groups:
        within = tuple(host for host in hosts if host[0] in group)
        of_all_members(inside, within, n)
        assert all(inside[member].alone == (len(within) == 1 or n == 0) for member in group)


@given(lengths, topologies(), granularities)
def test_cc1_what_a_member_adds_up_of_its_group_is_what_it_has_between_groups(
    n: int, topology: tuple[Hosts, Groups], granularity: int
) -> None:
    hosts, groups = topology
    for found in all_levels(n, hosts, groups, granularity) if len(groups) > 1 else []:
        assert found.inside is not None
        owned = {element for piece in found.inside.owned for element in range(piece.part.start, piece.part.stop)}
        held = {element for part in found.between.held for element in range(part.start, part.stop)}
        assert owned == held


@given(lengths, topologies(), granularities)
def test_cc1_members_of_a_unit_all_have_a_share(n: int, topology: tuple[Hosts, Groups], granularity: int) -> None:
    """No rank is left out where there is enough to share."""
    hosts, groups = topology
    each = all_levels(n, hosts, groups, granularity)
    if n >= 64 * granularity * len(each):
        assert all(found.between.held for found in each)
        assert all(any(piece.size for piece in found.between.owned) for found in each)


@given(lengths, shapes, granularities)
def test_cc1_maps_are_sums_over_a_unit_without_gaps(n: int, shape: Shape, granularity: int) -> None:
    for ranks in shape:
        members = iter(range(sum(ranks)))
        maps = [host_map(n, [next(members) for _ in range(count)]) for count in ranks]
        for unit in (*maps, group_map(lanes_between(maps, granularity))):
            assert covers([slice(part.start, part.stop) for part in unit], n)
            assert all(part.start < part.stop for part in unit)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.data())
def test_cc1_groups_are_those_of_the_places(names: list[str], data: st.DataObject) -> None:
    places = tuple(Place(i, f"host-{i}", "", name) for i, name in enumerate(names))
    index = data.draw(st.integers(0, len(names) - 1))
    topology = Topology(places, index)
    expected = defaultdict(list)
    for member, name in enumerate(names):
        expected[name].append(member)
    assert sorted(topology.groups) == sorted(map(tuple, expected.values()))
    assert topology.group == tuple(expected[names[index]])
    hosts = tuple((member,) for member in range(len(names)))
    assert topology.units(hosts) == (hosts if len(set(names)) == 1 else topology.groups)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.booleans())
def test_cc1_a_lane_has_those_whose_shards_of_a_bucket_are_the_same(ranks: list[int], two_groups: bool) -> None:
    seats = [host for host, count in enumerate(ranks) for _ in range(count)]
    groups = ["b" if two_groups and host == len(ranks) - 1 else "a" for host in seats]
    places = tuple(Place(i, f"host-{host}", "", group) for i, (host, group) in enumerate(zip(seats, groups, strict=True)))
    even = len(set(ranks)) == 1 and len(set(groups)) == 1
    for index in range(len(places)):
        topology = Topology(places, index)
        assert [len(host) for host in topology.hosts] == ranks
        if not even:
            assert topology.lane == ()
            continue
        assert index in topology.lane
        shards = {levels(1000, topology.hosts, topology.groups, member).between.shard.start for member in topology.lane}
        assert len(topology.lane) == len(ranks)
        assert len(shards) == 1
