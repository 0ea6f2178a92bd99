"""GM-30: no new generation without the hosts that may train on elsewhere, with the real state machines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator import membership as ms
from orchestrator.quorum import Quorum
from tests.protocol.simulation import NODE_DEATH_SECONDS, Simulation, Violation
from tests.protocol.test_interleavings import advance, break_something, serve, settle, tick
from tests.protocol.test_leaving import hosts_of, records
from tests.protocol.test_membership import ends, machine_of, members


class Told(Simulation):
    """Remembers what was decided."""

    def __init__(self, hosts: int, ranks: int = 1) -> None:
        self.taken: list[ms.Action] = []
        super().__init__(0, hosts=0, ranks=ranks)
        self.rules = replace(self.rules, hosts_max=hosts)
        for _ in range(hosts):
            self.add_host("")
        settle(self)
        self.taken.clear()

    def do(self, actions: list[ms.Action]) -> None:
        self.taken += actions
        super().do([action for action in actions if not isinstance(action, ms.EndJob)])

    def pass_time(self, seconds: float) -> list[ms.Action]:
        """Everything that is sent arrives; what was decided."""
        before = len(self.taken)
        for _ in range(round(seconds / 0.5)):
            tick(self, 0.5)
            serve(self)
        return self.taken[before:]


def test_gm30_a_minority_waits_for_hosts_that_are_out_of_reach_and_goes_on_with_them() -> None:
    """Two of three are cut off while a rank of the third one dies: nobody is given up, nothing is lost."""
    world = Told(3)
    machine, (first, second, third) = machine_of(world), world.hosts
    generation = machine.generation
    for host in (second, third):
        world.partition(host)
    world.kill_worker(next(w.worker for w in members(world) if w.host == first))
    found = world.pass_time(60.0)
    (lost,) = records(found, "quorum_lost")
    assert (lost["code"], lost["unreachable"]) == ("QUORUM_LOST", sorted([second, third]))
    assert records(found, "host_lost") == [] and machine.generation == generation and len(machine.hosts) == 3
    assert machine.out_of_reach == {second, third}
    for host in (second, third):
        world.mend(host)
    settle(world)
    assert hosts_of(world) == {first, second, third} and world.check_line() > 0
    assert len(records(world.taken, "quorum_back")) == 1 and machine.quorum.lost_at is None


@pytest.mark.parametrize("comes_back", [True, False])
def test_gm30_of_hosts_that_were_out_of_reach_together_the_last_one_has_its_time_again(comes_back: bool) -> None:
    """The first one that is back makes a quorum; that says nothing against the other."""
    world = Told(3)
    machine, (_, second, third) = machine_of(world), world.hosts
    for host in (second, third):
        world.partition(host)
    found = world.pass_time(machine.rules.agent_grace + 5.0)
    assert len(records(found, "quorum_lost")) == 1
    world.mend(second)
    world.attach(second)
    found = world.pass_time(machine.rules.agent_grace - 2.0)
    assert len(records(found, "quorum_back")) == 1 and records(found, "host_lost") == []
    if comes_back:
        world.mend(third)
        world.attach(third)
    found = world.pass_time(4.0)
    assert [each["host"] for each in records(found, "host_lost")] == ([] if comes_back else [third])


def test_gm30_a_majority_gives_up_who_is_out_of_reach() -> None:
    world = Told(3)
    machine, (_, _, third) = machine_of(world), world.hosts
    world.partition(third)
    found = world.pass_time(machine.rules.agent_grace + 5.0)
    (lost,) = records(found, "host_lost")
    assert (lost["host"], lost["certain"]) == (third, False)
    assert records(found, "quorum_lost") == [] and len(hosts_of(world)) == 2


def test_gm30_of_two_hosts_the_one_that_is_there_goes_on() -> None:
    world = Told(2)
    first, second = world.hosts
    world.partition(second)
    found = world.pass_time(machine_of(world).rules.agent_grace + 5.0)
    assert hosts_of(world) == {first} and records(found, "quorum_lost") == []


def test_gm30_hosts_whose_death_is_certain_are_not_waited_for() -> None:
    """The exit of a rank with a living agent, a node that is dead."""
    world = Told(3)
    machine, (first, second, third) = machine_of(world), world.hosts
    world.kill_host(second)
    world.kill_host(third)
    found = world.pass_time(NODE_DEATH_SECONDS + 2.0)
    assert [(e["host"], e["reason"]) for e in records(found, "host_lost")] == [
        (second, "its node is dead"),
        (third, "its node is dead"),
    ]
    assert hosts_of(world) == {first} and machine.quorum.lost_at is None
    others = Told(3)
    for worker in [w.worker for w in members(others) if w.host != next(iter(others.hosts))]:
        others.kill_worker(worker)
    found = others.pass_time(2.0)
    assert records(found, "quorum_lost") == [] and records(found, "generation")


def test_gm30_an_error_in_an_exchange_tells_of_one_host_that_is_gone_and_not_of_two() -> None:
    for lost in (1, 2):
        world = Told(3)
        machine, (first, *others) = machine_of(world), world.hosts
        for host in others[:lost]:
            world.partition(host)
        reporter = next(w for w in members(world) if w.host == first)
        world.do(machine.exchange_failed(reporter.worker, machine.generation, "closed", world.now))
        found = world.pass_time(5.0)
        assert [e["certain"] for e in records(found, "host_lost")] == ([True] if lost == 1 else [])
        assert len(records(found, "quorum_lost")) == lost - 1
        assert machine.phase is (ms.JobPhase.TRAINING if lost == 1 else ms.JobPhase.FORMING)


def test_gm30_it_does_not_wait_for_ever() -> None:
    world = Told(3)
    machine, (first, second, third) = machine_of(world), world.hosts
    machine.rules = machine.roster.rules = replace(machine.rules, replace_wait=40.0)
    for host in (second, third):
        world.partition(host)
    world.kill_worker(next(w.worker for w in members(world) if w.host == first))
    found = world.pass_time(machine.rules.agent_grace + 39.0)
    assert ends(found) == []
    ((code, message),) = ends(world.pass_time(5.0))
    assert code == 9
    assert (
        message
        == "2 of 2 hosts cannot be reached, too many to go on without them; waited 40 s for them (hosts.replace_wait)"
    )


def test_gm30_while_the_generation_before_trains_on_the_job_does_not_end() -> None:
    """Agents are away, and steps are committed all the same."""
    world = Told(3)
    machine, (_, second, third) = machine_of(world), world.hosts
    machine.rules = machine.roster.rules = replace(machine.rules, replace_wait=40.0)
    for host in (second, third):
        world.partition(host)
    before = world.check_line()
    found = world.pass_time(100.0)
    assert len(records(found, "quorum_lost")) == 1 and ends(found) == [] and records(found, "prepare") == []
    assert machine.phase is ms.JobPhase.TRAINING and world.check_line() > before
    for host in (second, third):
        world.mend(host)
        world.attach(host)
    found = world.pass_time(2.0)
    assert len(records(found, "quorum_back")) == 1 and records(found, "generation") == []


def test_gm30_who_stops_asks_nobody() -> None:
    """What there is is saved, and the job ends."""
    world = Told(3)
    machine, (first, second, third) = machine_of(world), world.hosts
    for host in (second, third):
        world.partition(host)
    world.do(machine.stop("enough", world.now))
    world.pass_time(machine.rules.agent_grace + 5.0)
    assert hosts_of(world) == {first} and machine.plan is not None and machine.plan.stop


def test_gm30_a_restarted_coordinator_knows_whose_agreement_is_needed() -> None:
    world = Told(3)
    first, second, third = world.hosts
    for host in (second, third):
        world.partition(host)
    world.kill_coordinator()
    world.start_coordinator()
    world.attach(first)
    machine = machine_of(world)
    generation = machine.generation
    found = world.pass_time(60.0)
    assert len(records(found, "quorum_lost")) == 1 and records(found, "prepare") == []
    assert machine.recovering_until is not None and machine.generation == generation
    for host in (second, third):
        world.mend(host)
    settle(world)
    assert hosts_of(world) == {first, second, third}


def test_gm30_a_restarted_coordinator_does_not_wait_for_those_that_were_dead_for_certain() -> None:
    world = Told(3)
    first, second, third = world.hosts
    for host in (second, third):
        world.kill_host(host)
        world.do(machine_of(world).host_lost(host, "gone", world.now))
    world.kill_coordinator()
    world.start_coordinator()
    assert machine_of(world).quorum.hosts == {first}
    settle(world)
    assert hosts_of(world) == {first}


def test_gm30_a_silent_host_is_kept_where_the_others_are_too_few() -> None:
    world = Told(3)
    machine, (_, second, third) = machine_of(world), world.hosts
    world.partition(third)
    assert records(machine.host_lost(second, "HEARTBEAT_DEAD", world.now, certain=False), "quorum_lost")
    assert machine.host_lost(second, "HEARTBEAT_DEAD", world.now, certain=False) == []
    assert second in machine.hosts
    world.mend(third)
    world.attach(third)
    assert records(machine.host_lost(second, "HEARTBEAT_DEAD", world.now, certain=False), "host_lost")


def test_gm30_the_simulation_sees_a_generation_without_a_quorum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its invariant is checked in all interleavings."""
    monkeypatch.setattr(Quorum, "allows", lambda self, votes: True)
    world = Told(3)
    machine, (_, second, third) = machine_of(world), world.hosts
    for host in (second, third):
        world.partition(host)
    with pytest.raises(Violation, match="but not of"):
        world.pass_time(machine.rules.agent_grace + 5.0)


def interleaving(seed: int, events: int = 150) -> int:
    """A random history with faults, in which hosts are cut off and found again. Returns how many were cut off."""
    world = Simulation(seed, hosts=1 + seed % 5, ranks=1 + (seed // 5) % 2)
    chance, cut = world.random, 0
    for _ in range(events):
        choice = chance.random()
        if choice < 0.05:
            break_something(world)
        elif choice < 0.1 and world.hosts:
            host = world.hosts[chance.choice(list(world.hosts))]
            if host.partitioned:
                world.mend(host.name)
            else:
                world.partition(host.name)
                cut += 1
        else:
            advance(world)
        if world.machine is not None and chance.random() < 0.2:
            world.check_line()
    if world.machine is None:
        world.start_coordinator()
    for name in list(world.hosts):
        world.mend(name)
    settle(world)
    world.check_line()
    return cut


def test_gm30_random_interleavings_in_which_hosts_are_out_of_reach() -> None:
    """No generation without a quorum (the simulation checks it), and progress once all are reached again."""
    cuts = 0
    for seed in range(800):
        try:
            cuts += interleaving(seed)
        except Exception as error:
            raise AssertionError(f"interleaving {seed}: {type(error).__name__}: {str(error)[:300]}") from error
    assert cuts > 800
