"""GM-21: what is done for hosts that are short of disk or of processors."""

from __future__ import annotations

import io

import pytest
from quantarion.v1 import control_pb2 as pb

from orchestrator.governing import Governing
from orchestrator.governor.codes import Code
from orchestrator.governor.config import GovernorConfig, Mode
from orchestrator.governor.events import Joined
from orchestrator.governor.log import Governor, Outset
from orchestrator.governor.readings import Observation
from orchestrator.relief import LONGEST_WAIT, Relief
from tests.protocol.simulation import Simulation
from tests.protocol.test_interleavings import settle
from tests.protocol.test_membership import machine_of, members, ring


class Job:
    """Two hosts of two ranks that train, whose disks and processors are as the test says."""

    def __init__(self, config: GovernorConfig | None = None) -> None:
        config = config or GovernorConfig()
        self.world = Simulation(0, hosts=0, ranks=2)
        for _ in range(2):
            self.world.add_host("")
        settle(self.world)
        self.first, self.second = self.world.hosts
        self.said: list[tuple[str, dict[str, object]]] = []
        self.posted: list[tuple[str, pb.CoordinatorMessage]] = []
        governor = Governor(Outset(config, 2), io.StringIO())
        self.governing = Governing(governor, lambda kind, fields: self.said.append((kind, fields)))
        for host in self.world.hosts:
            self.governing.tell(Joined(0.0, host, "", first=True))
        machine = machine_of(self.world)
        self.relief = Relief(config, self.governing, machine, lambda worker, message: self.posted.append((worker, message)))
        self.windows = 0

    def window(self, **seen: Observation) -> None:
        """Of `first` and `second`."""
        self.windows += 1
        hosts = {"first": self.first, "second": self.second}
        self.governing.observed({hosts[name]: each for name, each in seen.items()}, 1, 10.0 * self.windows)
        self.posted.clear()
        self.relief.give()

    @property
    def writer(self) -> str:
        """The host of the first of the ring."""
        return ring(self.world)[0][1]


@pytest.fixture
def job() -> Job:
    return Job()


def test_gm21_the_host_of_a_full_disk_writes_no_more_from_the_next_generation_on(job: Job) -> None:
    assert job.writer == job.first
    ranks = {worker.worker: worker.rank for worker in members(job.world)}
    job.window(first=Observation(disk=0.95))
    settle(job.world)
    assert job.writer == job.first  # nothing is begun for it
    job.world.kill_worker(next(each.worker for each in members(job.world) if each.host == job.second))
    settle(job.world)
    assert job.writer == job.second
    kept = {worker.worker: worker.rank for worker in members(job.world) if worker.worker in ranks}
    assert len(kept) == 3 and all(rank == ranks[worker] for worker, rank in kept.items())
    job.window(first=Observation(disk=0.5))
    job.world.kill_worker(members(job.world)[0].worker)
    settle(job.world)
    assert job.writer == job.first


def test_gm21_where_all_disks_are_full_the_order_is_what_it_was(job: Job) -> None:
    job.window(first=Observation(disk=0.95), second=Observation(disk=0.95))
    job.world.kill_worker(members(job.world)[0].worker)
    settle(job.world)
    assert job.writer == job.first


def test_cc9_a_full_disk_does_not_change_the_order_of_groups() -> None:
    world = Simulation(0, hosts=0, ranks=1)
    for group in ("a", "b", "b"):
        world.add_host(group)
    settle(world)
    alone, third, fourth = world.hosts
    machine_of(world).short_of_disk({alone, third})
    world.kill_worker(members(world)[0].worker)
    settle(world)
    assert [place[:2] for place in ring(world)] == [("a", alone), ("b", fourth), ("b", third)]


def test_gm21_ranks_there_are_told_to_keep_fewer_checkpoints_for_as_long_as_it_lasts(job: Job) -> None:
    job.window(first=Observation(disk=0.95), second=Observation(disk=0.5))
    mine = {each.worker for each in members(job.world) if each.host == job.first}
    for _ in range(2):
        assert {worker for worker, _ in job.posted} == mine and len(mine) == 2
        for worker, message in job.posted:
            directive = message.directive
            assert list(directive.workers) == [worker] and directive.WhichOneof("body") == "relieve"
            assert (directive.relieve.seconds, directive.relieve.above) == (30.0, 0.8)
        job.window(first=Observation(disk=0.85))
    job.window(first=Observation(disk=0.8))
    assert job.posted == []


def test_gm21_a_shortage_is_an_event_when_it_begins_and_when_it_ends(job: Job) -> None:
    for disk in (0.95, 0.85, 0.95, 0.79, 0.79):
        job.window(first=Observation(disk=disk))
    told = [fields for kind, fields in job.said if kind == "resource_pressure"]
    common = {"host": job.first, "code": "RESOURCE_DISK"}
    begins, ends = {"value": 0.95, "limit": 0.9, "begins": True}, {"value": 0.79, "limit": 0.8, "begins": False}
    assert told == [common | begins, common | ends]


def test_gm21_shortages_outlive_the_coordinator(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "governor.jsonl"
    outset = Outset(GovernorConfig(), 2)
    before = Governing(Governor.open(path, outset), lambda kind, fields: None)
    before.tell(Joined(0.0, "a", "", first=True))
    before.observed({"a": Observation(disk=0.95)}, 1, 10.0)
    after = Governing(Governor.open(path, outset), lambda kind, fields: None)
    assert after.short_of(Code.RESOURCE_DISK) == {"a"} and after.shortages("a") == [Code.RESOURCE_DISK]


def test_gm21_a_host_that_is_too_hot_has_half_the_work_until_it_is_cooler(job: Job) -> None:
    """From the end of a step on: nothing is discarded, and nobody leaves."""
    machine = machine_of(job.world)
    before = members(job.world)
    generation = machine.generation
    job.window(first=Observation(temperature=84.5), second=Observation(temperature=60.0))
    settle(job.world)
    assert machine.light_hosts == {job.first} and machine.generation > generation
    assert {member.host for member in machine.plan.members if member.light} == {job.first} if machine.plan else False
    assert [worker.worker for worker in members(job.world)] == [worker.worker for worker in before]
    generation = machine.generation
    job.window(first=Observation(temperature=80.0))  # not cool enough yet
    settle(job.world)
    assert machine.generation == generation and machine.light_hosts == {job.first}
    job.window(first=Observation(temperature=75.0))
    settle(job.world)
    assert machine.light_hosts == set() and machine.generation > generation and machine.discarded == 0
    told = [(fields["value"], fields["begins"]) for kind, fields in job.said if kind == "resource_pressure"]
    assert told == [(84.5, True), (75.0, False)]


def test_gm21_where_all_are_too_hot_nobody_could_do_more(job: Job) -> None:
    machine = machine_of(job.world)
    generation = machine.generation
    job.window(first=Observation(temperature=90.0), second=Observation(temperature=90.0))
    settle(job.world)
    assert machine.light_hosts == set() and machine.generation == generation


def test_gm21_the_limits_of_heat_are_those_of_the_signal() -> None:
    job = Job(GovernorConfig.model_validate({"signals": {"THERMAL": {"good": 50, "alert": 60, "bad": 70}}}))
    job.window(first=Observation(temperature=61.0))
    assert job.governing.short_of(Code.THERMAL) == {job.first}


def test_gm41_in_shadow_mode_nothing_is_done() -> None:
    job = Job(GovernorConfig(relief=Mode.SHADOW))
    job.window(first=Observation(temperature=90.0), second=Observation(temperature=50.0))
    settle(job.world)
    assert machine_of(job.world).light_hosts == set()
    job.window(first=Observation(disk=0.95, load=9.0, temperature=70.0))
    assert job.posted == [] and job.relief.testable({job.first}, 0.0) == {job.first}
    assert not any(view.short_of_disk for view in machine_of(job.world).hosts.values())
    assert job.governing.shortages(job.first) == [Code.RESOURCE_DISK, Code.RESOURCE_LOAD]  # it is shown


def test_gm21_a_host_test_waits_while_processors_have_too_much_to_do_but_not_for_ever(job: Job) -> None:
    both = {job.first, job.second}
    job.window(first=Observation(load=2.0))
    assert job.relief.testable(both, 100.0) == {job.second}
    assert job.relief.testable({job.first}, 99.0 + LONGEST_WAIT) == set()
    assert job.relief.testable({job.first}, 100.0 + LONGEST_WAIT) == {job.first}
    assert job.relief.testable(set(), 500.0) == set()
    assert job.relief.testable({job.first}, 501.0) == set()  # to be tested again: it waits anew
    job.window(first=Observation(load=0.9))
    assert job.relief.testable(both, 502.0) == both
