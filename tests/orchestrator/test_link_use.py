"""GM-30, section 5: whose links are slow or lose, by what senders have measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantarion.v1 import control_pb2 as pb

from orchestrator.governor.readings import Observation
from orchestrator.link_use import LEAST_BYTES, LEAST_SEGMENTS, Links, LinkWatch, seen_by_most
from orchestrator.observing import Observing

FAST = 1e9
MANY = 64 * LEAST_BYTES


class Net:
    """Hosts `0`, `1`, … whose links carry FAST bytes per second and lose nothing, unless the test says otherwise."""

    def __init__(self, hosts: int, ring: bool = False) -> None:
        self.addresses = {str(number): f"10.0.0.{number}" for number in range(hosts)}
        self.rates: dict[tuple[str, str], float] = {}
        self.losses: dict[tuple[str, str], float] = {}
        self.pairs = [
            (a, b)
            for a in self.addresses
            for b in self.addresses
            if a != b and (not ring or (int(a) + 1) % hosts == int(b))
        ]
        self.sums: dict[str, dict[str, pb.LinkUse]] = {host: {} for host in self.addresses}
        self.watch = LinkWatch()

    def slow(self, *pairs: tuple[str, str]) -> None:
        self.rates.update(dict.fromkeys(pairs, FAST / 10))

    def of(self, host: str) -> list[tuple[str, str]]:
        return [pair for pair in self.pairs if host in pair]

    def send(self, nbytes: int = MANY) -> None:
        for a, b in self.pairs:
            use = self.sums[a].setdefault(b, pb.LinkUse(address=self.addresses[b]))
            use.bytes += nbytes
            use.seconds += nbytes / self.rates.get((a, b), FAST)
            use.segments += 100 * LEAST_SEGMENTS
            use.retransmitted += round(100 * LEAST_SEGMENTS * self.losses.get((a, b), 0.0))
        for host, links in self.sums.items():
            self.watch.heard(host, links.values())

    def window(self) -> dict[str, Links]:
        return self.watch.window(self.addresses)

    def seen(self) -> dict[str, Links]:
        """In a window in which all have sent."""
        self.send()
        self.window()
        self.send()
        return self.window()

    def slow_hosts(self) -> list[str]:
        found = self.seen()
        assert all(links.throughput is not None for links in found.values())
        return [host for host, links in found.items() if (links.throughput or 0.0) < FAST / 2]


def test_hosts_whose_links_are_well_are_fast_and_lose_nothing() -> None:
    seen = Net(5).seen()
    assert sorted(seen) == list("01234")
    assert all(links.throughput == pytest.approx(FAST) and links.loss == 0.0 for links in seen.values())


@pytest.mark.parametrize("hosts", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("ring", [False, True])
def test_gm30_who_is_slow_with_everybody_is_found_and_nobody_else(hosts: int, ring: bool) -> None:
    net = Net(hosts, ring)
    net.slow(*net.of("1"))
    assert net.slow_hosts() == (["0", "1"] if hosts == 2 else ["1"])  # of two hosts nobody can tell which it is


@pytest.mark.parametrize("direction", [0, 1])
def test_gm30_one_direction_is_enough(direction: int) -> None:
    net = Net(6)
    net.slow(*(pair for pair in net.pairs if pair[direction] == "1"))
    assert net.slow_hosts() == ["1"]


@pytest.mark.parametrize("ring", [False, True])
def test_gm30_one_slow_link_accuses_neither_of_its_ends(ring: bool) -> None:
    net = Net(6, ring)
    net.slow(("2", "3"), ("3", "2"))
    assert net.slow_hosts() == []


def test_gm30_two_reporters_are_not_enough_where_there_are_three() -> None:
    net = Net(4)
    net.slow(("1", "2"), ("1", "3"))
    assert net.slow_hosts() == []
    net.slow(("1", "0"))
    assert net.slow_hosts() == ["1"]


def test_gm30_three_bad_hosts_of_many_do_not_make_the_others_look_like_them() -> None:
    net = Net(12)
    for host in ("1", "2", "3"):
        net.slow(*net.of(host))
    assert net.slow_hosts() == ["1", "2", "3"]


def test_gm30_losses_are_of_who_has_them_with_everybody() -> None:
    net = Net(5)
    net.losses.update(dict.fromkeys([("1", "0"), ("2", "1"), ("1", "3"), ("1", "4")], 0.02) | {("0", "4"): 0.5})
    assert {host: links.loss for host, links in net.seen().items()} == {**dict.fromkeys("0234", 0.0), "1": 0.02}


def test_what_was_sent_before_a_window_is_not_in_it() -> None:
    net = Net(4)
    net.slow(*net.of("1"))
    net.send()
    assert net.window() == dict.fromkeys("0123", Links())  # nothing to compare with
    net.send()
    assert (net.window()["1"].throughput or 0.0) < FAST / 2
    net.rates.clear()
    net.send()
    assert net.window()["1"].throughput == pytest.approx(FAST)
    assert net.window() == dict.fromkeys("0123", Links())  # nothing was told since


def test_too_little_says_nothing() -> None:
    net = Net(4)
    net.send()
    net.window()
    net.send(LEAST_BYTES - 1)
    assert {links.throughput for links in net.window().values()} == {None}


def test_an_agent_that_has_begun_anew_is_believed_from_the_next_window_on() -> None:
    net = Net(4)
    net.send()
    net.send()
    net.window()
    net.sums["1"].clear()
    net.send()
    without = net.window()
    assert without["0"].throughput == pytest.approx(FAST)  # 1 and 2 others tell of it
    net.slow(*(pair for pair in net.pairs if pair[0] == "1"))
    net.send()
    assert (net.window()["1"].throughput or 0.0) < FAST / 2


def test_who_has_no_address_of_its_own_and_strangers_are_left_out() -> None:
    net = Net(5)
    net.slow(*net.of("3"))
    net.addresses["3"] = net.addresses["2"]
    assert net.slow_hosts() == ["3"]  # by what it sends itself
    watch = LinkWatch()
    for _ in range(2):
        watch.heard("0", [pb.LinkUse(address="192.168.0.1", bytes=MANY, seconds=1.0)])
        assert watch.window({"0": "10.0.0.0", "1": "10.0.0.1"}) == {"0": Links(), "1": Links()}


def test_the_governor_is_told_of_it() -> None:
    observing, net = Observing(), Net(3)
    for _ in range(2):
        net.send()
        for host, links in net.sums.items():
            observing.heard(host, pb.Beat(links=links.values(), temperature=float("nan")))
        found = observing.window(net.addresses)
    assert found == dict.fromkeys("012", Observation(throughput=FAST, net_loss=0.0))


@given(st.lists(st.floats(0, 1), max_size=40), st.integers(0, 40))
def test_gm30_so_many_peers_see_at_least_that(losses: list[float], others: int) -> None:
    worst_first = sorted(losses, reverse=True)
    found = seen_by_most(worst_first, max(others, len(losses)))
    if found is None:
        assert len(losses) < 2
        return
    agreeing = sum(loss >= found for loss in losses)
    assert agreeing >= min(3, len(losses)) and 2 * agreeing >= len(losses)
