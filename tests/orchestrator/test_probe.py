"""CC-9: who measures which link when, with agents that answer by a script, in a time that passes at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any

import pytest
from quantarion.v1 import control_pb2 as pb

from orchestrator.link_groups import Pair
from orchestrator.probe import BUDGET_SECONDS, DIRECTION_SECONDS, Findings, LinkProbe
from workers.probe import Link


class Clock(selectors.DefaultSelector):
    """Nobody waits: where the loop would sleep, the time is later."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class Agents:
    """Hosts that answer, `deaf` ones that do not, pairs of them that are `cut`, and one that is `lost` in a round."""

    def __init__(self, number: int, deaf: tuple[str, ...] = (), cut: tuple[Pair, ...] = (), lost: str = "") -> None:
        self.hosts = [f"host-{n}" for n in range(number)]
        self.deaf, self.cut, self.lost = deaf, cut, lost
        self.closed: list[str] = []
        self.busy: set[str] = set()
        self.rates: Mapping[str, float] = dict.fromkeys(self.hosts, 1e9)

    def probe(self) -> Findings:
        clock = Clock()
        loop = asyncio.SelectorEventLoop(clock)
        loop.time = lambda: clock.now  # type: ignore[method-assign]
        self.loop = loop
        try:
            return loop.run_until_complete(self._probe())
        finally:
            loop.close()

    async def _probe(self) -> Findings:
        self.links = LinkProbe({host: f"10.0.0.{host[5:]}" for host in self.hosts}, self._hear)
        return await self.links.run()

    def _hear(self, host: str, message: pb.CoordinatorMessage) -> None:
        if message.HasField("probe_close"):
            self.closed.append(host)
        elif host in self.deaf:
            return
        elif message.HasField("probe_open"):
            self.loop.call_later(0.01, self.links.port, host, pb.ProbePort(port=1000 + int(host[5:])))
        elif host == self.lost:
            self.loop.call_soon(self.links.lost, host)
        else:
            self._measure(host, message.probe_link)

    def _measure(self, host: str, order: pb.ProbeLink) -> None:
        number = order.peer[5:]
        assert order.address == f"10.0.0.{number}:{1000 + int(number)}"
        assert DIRECTION_SECONDS[0] <= order.seconds <= DIRECTION_SECONDS[1]
        assert not self.busy & {host, order.peer}
        self.busy |= {host, order.peer}
        rate = min(self.rates[host], self.rates[order.peer])
        answer = pb.MeasuredLink(peer=order.peer, round_trip=0.001, sent=rate, received=2 * rate)
        seconds = 2 * order.seconds + 0.01
        if {host, order.peer} in map(set, self.cut):
            answer, seconds = pb.MeasuredLink(peer=order.peer, error="timed out"), order.limit
        self.loop.call_later(seconds, self._answer, host, answer)

    def _answer(self, host: str, answer: pb.MeasuredLink) -> None:
        self.busy -= {host, answer.peer}
        self.links.measured(host, answer)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 8])
def test_cc9_all_links_are_measured_in_time(number: int) -> None:
    agents = Agents(number)
    found = agents.probe()
    assert len(found.links) == number * (number - 1) // 2 and not found.failures
    assert found.seconds <= BUDGET_SECONDS and agents.closed == agents.hosts


@pytest.mark.parametrize("number", [60, 201])
def test_cc9_where_hosts_are_many_what_fits_is_measured_and_said(number: int) -> None:
    """It is enough to connect all hosts, and so to find groups."""
    agents = Agents(number)
    agents.rates = {host: 1e6 if n < 4 else 1e9 for n, host in enumerate(agents.hosts)}
    found = agents.probe()
    record = found.record({}, {})
    assert 4 * number <= len(found.links) < number * (number - 1) // 2
    assert (record["measured"], record["pairs"]) == (len(found.links), number * (number - 1) // 2)
    assert found.seconds <= BUDGET_SECONDS
    groups = found.groups({})
    assert len({groups[host] for host in agents.hosts[4:]}) == 1 and groups.keys() == set(agents.hosts)


def test_cc9_a_host_that_does_not_answer_costs_no_more_than_its_links() -> None:
    agents = Agents(4, deaf=("host-2",))
    found = agents.probe()
    assert found.failures == ["host-2 does not answer"]
    assert {host for pair in found.links for host in pair} == {"host-0", "host-1", "host-3"} and len(found.links) == 3
    assert found.seconds <= BUDGET_SECONDS


def test_cc9_a_cut_link_is_a_sentence() -> None:
    found = Agents(4, cut=(("host-1", "host-3"),)).probe()
    (failure,) = found.failures
    assert failure in ("host-1 to host-3: timed out", "host-3 to host-1: timed out")
    assert len(found.links) == 5
    matrix = found.record({}, {})["bytes_per_second"]
    assert [(i, j) for i in range(4) for j in range(4) if matrix[i][j] is None] == [  # type: ignore[index]
        *[(0, 0), (1, 1), (1, 3), (2, 2), (3, 1), (3, 3)]
    ]


def test_cc9_a_host_that_is_lost_is_asked_no_more() -> None:
    agents = Agents(5, lost="host-0")
    found = agents.probe()
    assert found.failures == ["host-0 has gone"]
    assert len(found.links) == 6 and found.seconds <= BUDGET_SECONDS


def test_cc9_the_record_has_both_directions_and_what_became_of_each_host() -> None:
    found = Findings({"b": "10.0.0.2", "a": "10.0.0.1"}, {("b", "a"): Link(0.01, 5e6, 7e6)}, seconds=1.5)
    assert found.record({"b": "site"}, {"a": "probe-1"}) == {
        "hosts": ["b", "a"],
        "addresses": ["10.0.0.2", "10.0.0.1"],
        "bytes_per_second": [[None, 5_000_000], [7_000_000, None]],
        "round_trip_seconds": [[None, 0.01], [0.01, None]],
        "measured": 1,
        "pairs": 1,
        "seconds": 1.5,
        "failures": [],
        "found": {"a": "probe-1"},
        "groups": {"b": "site", "a": "probe-1"},
    }
