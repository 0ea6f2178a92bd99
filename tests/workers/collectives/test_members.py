"""CC-2: who shares memory in a generation, when some of a host have none."""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantarion.v1 import control_pb2 as pb

from workers.collectives.exchange import ExchangeError
from workers.collectives.shared import HostMemory, Layout, enter, sharing_hosts
from workers.identity import Generation
from workers.memory_file import memory_path

LAYOUT = Layout(100, 1)
SEATS = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=8)


def members(*seats: tuple[str, bool]) -> list[pb.Member]:
    return [pb.Member(worker=f"w{n}", rank=n, host=host, shared_memory=has) for n, (host, has) in enumerate(seats)]


@given(SEATS)
def test_cc2_a_host_shares_whole_or_not_at_all(seats: list[tuple[str, bool]]) -> None:
    found = sharing_hosts(members(*seats))
    whole = {host for host, _ in seats} - {host for host, has in seats if not has}
    assert found == (whole if any(Counter(host for host, _ in seats)[host] > 1 for host in whole) else set())


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path("/dev/shm", f"quantarion-test-{os.getpid()}-{os.urandom(4).hex()}")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def make(folder: Path, *numbers: int) -> list[HostMemory]:
    return [HostMemory(memory_path(folder, f"w{number}"), LAYOUT) for number in numbers]


def test_cc2_members_of_a_host_meet_in_rank_order(folder: Path) -> None:
    seats = members(("a", True), ("b", True), ("a", True), ("c", False), ("b", True))
    one, two = (enter(memory, "b", seats, Generation(1, 1)) for memory in make(folder, 1, 4))
    assert one is not None and two is not None
    assert (one.index, two.index) == (0, 1)
    assert [region.path.stem for region in one.regions] == [region.path.stem for region in two.regions] == ["w1", "w4"]


def test_cc2_one_alone_on_its_host_is_in_an_exchange_of_one_where_another_host_has_two(folder: Path) -> None:
    (memory,) = make(folder, 0)
    assert enter(memory, "a", members(("a", True), ("b", True)), Generation(1, 1)) is None
    exchange = enter(memory, "a", members(("a", True), ("b", True), ("b", True)), Generation(1, 2))
    assert exchange is not None and exchange.world == 1
    assert enter(memory, "a", members(("a", True), ("b", False), ("b", True)), Generation(1, 3)) is None


def test_cc2_generations_that_came_to_nothing_are_followed_by_others(folder: Path) -> None:
    """Each member has been in some of them."""
    one, two = make(folder, 0, 1)
    both = members(("a", True), ("a", True))
    enter(one, "a", both, Generation(1, 1))
    enter(two, "a", both, Generation(1, 2))
    enter(one, "a", both, Generation(1, 3))
    exchanges = [enter(memory, "a", both, Generation(1, 4)) for memory in (one, two)]
    assert [exchange.world for exchange in exchanges if exchange is not None] == [2, 2]


def test_cc2_a_member_that_is_gone_is_an_error_of_the_exchange(folder: Path) -> None:
    one, two = make(folder, 0, 1)
    two.remove()
    with pytest.raises(ExchangeError, match="a rank of this host is gone"):
        enter(one, "a", members(("a", True), ("a", True)), Generation(1, 1))


@pytest.mark.parametrize(
    "left", [members(("a", True)), members(("a", True), ("b", True), ("b", True))], ids=["none", "one"]
)
def test_cc2_the_memory_of_a_dead_member_is_let_go(folder: Path, left: list[pb.Member]) -> None:
    """Else it would be missing where its successor makes its own."""
    one, two = make(folder, 0, 1)
    enter(one, "a", members(("a", True), ("a", True)), Generation(1, 1))
    two.remove()
    mapped = f"{two.path} (deleted)"
    assert Path("/proc/self/maps").read_text().count(mapped) == 2
    enter(one, "a", left, Generation(1, 2))
    gc.collect()
    assert Path("/proc/self/maps").read_text().count(mapped) == 1
