"""Who leads, who follows and who is heard by whom, as the real coordinator orders it (GM-1, GM-4, GM-7, GM-18)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from quantarion.v1 import control_pb2 as pb

from orchestrator.governing import DEAD_SECONDS
from orchestrator.leaders import AGAIN_SECONDS, ANSWER_SECONDS, REST_SECONDS
from orchestrator.records import Record
from orchestrator.streams import HostStream
from tests.orchestrator.real_coordinator import RealCoordinator
from workers.identity import NO_GENERATION


class Fleet:
    """Of a coordinator with hosts that train: their streams, and what came by them."""

    def __init__(self, job: RealCoordinator) -> None:
        self.job, self.clock = job, job.now()
        job.now = lambda: self.clock  # type: ignore[method-assign]
        job.train()
        self.streams = {host: job.streams._attached[host].stream for host in job.names}

    def tick(self, seconds: float = 0.1) -> None:
        self.clock += seconds
        self.job.leaders.tick()

    def said(self, host: str, to: str = "") -> list[pb.CoordinatorMessage]:
        """All that has come by the stream of `host`, for that host or for another."""
        found, box = list[pb.CoordinatorMessage](), self.streams[host].outbox
        while not box.empty():
            message = box.get_nowait()
            if message is not None and message.host == to:
                found.append(message)
        return found

    def lead(self, host: str) -> pb.Lead | None:
        return next((m.lead for m in reversed(self.said(host)) if m.HasField("lead")), None)

    def ways(self, host: str) -> tuple[str, str] | None:
        """Addresses of the leader to follow and of the observer, as it was told last since it was asked for; "": none."""
        orders = [message.follow for message in self.said(host) if message.HasField("follow")]
        return (orders[-1].leader.address, orders[-1].observer.address) if orders else None

    def listen(self, host: str, port: int) -> pb.Lead:
        """It does what it is told."""
        order = self.lead(host)
        assert order is not None
        self.job.hear(host, pb.AgentMessage(leads=pb.Leads(term=order.term, port=port)))
        return order

    def lose(self, host: str) -> None:
        self.job.detach(host, self.streams[host])

    def attach(self, host: str, through: str = "") -> None:
        stream = self.streams[through] if through else HostStream(host)
        if not through:
            self.streams[host] = stream
        assert self.job.attach(self.job.hello(host), stream) is None

    def events(self, kind: str) -> list[Record]:
        return self.job.events(kind)


def with_fleet(folder: Path, hosts: int, scenario: Callable[[Fleet], None], **groups: int) -> None:
    async def main() -> None:
        with RealCoordinator.opened(folder, hosts, **groups) as job:
            scenario(Fleet(job))

    asyncio.run(main())


def test_gm4_where_all_fit_into_one_group_nobody_leads(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        fleet.tick()
        assert fleet.job.leaders.groups == [] and fleet.events("leader") == []

    with_fleet(tmp_path, 2, scenario, group=2)


def test_gm1_gm4_groups_are_led_by_their_lowest_rank_and_heard_by_it(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        fleet.tick()
        assert [group.hosts for group in fleet.job.leaders.groups] == [["host-1", "host-2", "host-3"], ["host-4", "host-5"]]
        assert [event["host"] for event in fleet.events("leader")] == ["host-1", "host-4"]
        assert fleet.ways("host-2") == ("", "")  # nobody lets it in yet
        order = fleet.listen("host-1", 1001)
        assert list(order.hosts) == ["host-2", "host-3"]
        assert sorted(order.observed) == ["host-2", "host-3", "host-4"]
        fleet.listen("host-4", 1004)
        fleet.tick()
        assert fleet.ways("host-2") == ("", "10.0.0.1:1001")
        assert fleet.ways("host-5") == ("", "10.0.0.4:1004")
        assert fleet.ways("host-4") == ("", "10.0.0.1:1001")  # who leads is heard by the next
        for host in fleet.job.names:
            fleet.said(host)
        fleet.tick()
        assert [fleet.said(host) for host in fleet.job.names] == [[]] * 5  # said once

    with_fleet(tmp_path, 5, scenario, group=3)


def test_gm4_a_lost_leader_is_replaced_at_the_next_tick(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        fleet.tick()
        fleet.listen("host-1", 1001)
        fleet.tick()
        fleet.lose("host-1")
        fleet.tick()
        assert [event["code"] for event in fleet.events("leader_lost")] == ["GROUP_LEADER_LOST"]
        assert fleet.events("leader")[-1]["host"] == "host-2"
        fleet.attach("host-1")
        fleet.tick()
        assert fleet.events("leader")[-1]["host"] == "host-2"  # who has it keeps it
        fleet.listen("host-2", 1002)
        fleet.tick()
        assert fleet.ways("host-1") == ("", "10.0.0.2:1002")

    with_fleet(tmp_path, 4, scenario, group=2)


def test_gm4_an_answer_to_an_earlier_appointment_is_none(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        fleet.tick()
        first = fleet.lead("host-1")
        assert first is not None
        fleet.lose("host-1")
        fleet.attach("host-1")
        fleet.tick()
        fleet.job.hear("host-1", pb.AgentMessage(leads=pb.Leads(term=first.term, port=1001)))
        fleet.tick()
        assert fleet.ways("host-2") == ("", "")

    with_fleet(tmp_path, 4, scenario, group=2)


def test_gm18_a_host_that_its_leader_hears_is_not_silent(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        job = fleet.job
        fleet.tick()
        fleet.listen("host-1", 1001)
        fleet.tick()
        assert job.leaders.observes("host-1", "host-2") and not job.leaders.observes("host-3", "host-2")
        for host in job.names:
            job.hear(host, job.beat(host, step=1))
        for _ in range(int(2 * DEAD_SECONDS)):
            fleet.clock += 1.0
            job.hear("host-3", job.beat("host-3", step=1))
            job.heard_of("host-2")
        assert not job.governing.is_silent("host-2", fleet.clock)
        assert job.governing.is_silent("host-4", fleet.clock)

    with_fleet(tmp_path, 4, scenario, group=2)


def test_gm18_a_host_without_a_stream_is_told_by_who_hears_it_to_come_that_way(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        fleet.tick()
        fleet.listen("host-1", 1001)
        fleet.tick()
        fleet.said("host-1")
        fleet.lose("host-2")
        fleet.tick()
        (message,) = fleet.said("host-1", to="host-2")
        assert message.follow.leader.address == "10.0.0.1:1001"
        fleet.tick(AGAIN_SECONDS)
        assert len(fleet.said("host-1", to="host-2")) == 1  # again: nobody knows whether it has heard it
        fleet.listen("host-3", 1003)
        fleet.attach("host-2", through="host-1")
        fleet.tick(100.0)
        last = fleet.said("host-1", to="host-2")[-1].follow  # it stays there, and the next leader hears it
        assert (last.leader.address, last.observer.address) == ("10.0.0.1:1001", "10.0.0.3:1003")

    with_fleet(tmp_path, 4, scenario, group=2)


def test_gm4_from_so_many_hosts_on_all_attach_through_their_leaders(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        fleet.tick()
        fleet.listen("host-1", 1001)
        fleet.listen("host-3", 1003)
        fleet.tick()
        assert fleet.ways("host-2") == ("10.0.0.1:1001", "10.0.0.3:1003")
        assert fleet.ways("host-1") == ("", "10.0.0.3:1003")
        fleet.attach("host-2", through="host-1")
        fleet.lose("host-1")
        fleet.job.detach("host-2", fleet.streams["host-1"])
        fleet.attach("host-2")
        fleet.attach("host-1")
        fleet.tick()
        assert fleet.events("leader")[-1]["host"] == "host-1"
        fleet.listen("host-1", 1011)
        fleet.tick()
        assert fleet.ways("host-2") == ("", "10.0.0.3:1003")
        fleet.tick(REST_SECONDS)
        assert fleet.ways("host-2") == ("10.0.0.1:1011", "10.0.0.3:1003")

    with_fleet(tmp_path, 4, scenario, group=2, streams=4)


def test_gm4_only_who_is_appointed_may_attach_a_host_of_its_group(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        leaders = fleet.job.leaders
        assert not leaders.may_attach("host-1", "host-2")
        fleet.tick()
        assert leaders.may_attach("host-1", "host-2") and leaders.may_attach("host-3", "host-4")
        assert not leaders.may_attach("host-1", "host-4") and not leaders.may_attach("host-2", "host-1")

    with_fleet(tmp_path, 4, scenario, group=2)


def test_gm4_who_lets_nobody_in_is_passed_over(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        fleet.tick()
        fleet.listen("host-3", 1003)
        fleet.tick(ANSWER_SECONDS + 1)
        assert [event["host"] for event in fleet.events("leader")] == ["host-1", "host-3", "host-2"]
        assert [event["reason"] for event in fleet.events("leader_lost")] == ["it lets nobody in"]

    with_fleet(tmp_path, 4, scenario, group=2)


def test_gm4_who_leaves_stops_leading_first(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        fleet.tick()
        fleet.listen("host-1", 1001)
        fleet.tick()
        fleet.job.machine.hosts["host-1"].leaving = "an operator wants it"
        fleet.job.leaders.detached("host-4")  # anything that makes it look
        fleet.tick()
        assert fleet.events("leader")[-1]["host"] == "host-2"
        order = fleet.lead("host-1")
        assert order is not None and list(order.hosts) == []

    with_fleet(tmp_path, 4, scenario, group=2)


def test_gm18_a_host_that_is_heard_but_not_by_its_own_way_has_lost_it(tmp_path: Path) -> None:
    """A link that is dead without a word: no end of the stream comes."""

    def scenario(fleet: Fleet) -> None:
        job = fleet.job
        fleet.tick()
        fleet.listen("host-1", 1001)
        fleet.tick()
        for host in job.names:
            job.hear(host, job.beat(host, step=1))
        attached = []
        for _ in range(int(2 * DEAD_SECONDS) + 2):
            fleet.clock += 0.5
            job.heard_of("host-2")
            attached.append(job.streams.is_attached("host-2"))
        assert attached == [True] * int(2 * DEAD_SECONDS) + [False, False]
        fleet.said("host-1")
        fleet.tick(AGAIN_SECONDS)
        assert [message.follow.leader.address for message in fleet.said("host-1", to="host-2")] == ["10.0.0.1:1001"]

    with_fleet(tmp_path, 4, scenario, group=2)


def test_gm7_groups_are_cut_anew_only_where_that_makes_them_more_even(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        fleet.tick()
        for group in fleet.job.leaders.groups:
            fleet.listen(group.leader, 1000)
        before = [list(group.hosts) for group in fleet.job.leaders.groups]
        assert [len(hosts) for hosts in before] == [2, 2, 1]  # a group with one host, as there is nobody else
        fleet.job.leaders._cut_for = NO_GENERATION  # another generation
        fleet.tick(1000.0)
        assert [group.hosts for group in fleet.job.leaders.groups] == before and fleet.events("leader_lost") == []

    with_fleet(tmp_path, 5, scenario, group=2)


def test_gm4_a_host_that_comes_back_is_told_its_ways_anew(tmp_path: Path) -> None:
    def scenario(fleet: Fleet) -> None:
        fleet.tick()
        fleet.listen("host-1", 1001)
        fleet.tick()
        assert fleet.ways("host-2") == ("", "10.0.0.1:1001")
        fleet.job.drop("host-2")
        fleet.attach("host-2")
        fleet.tick()
        assert fleet.ways("host-2") == ("", "10.0.0.1:1001")

    with_fleet(tmp_path, 4, scenario, group=2)
