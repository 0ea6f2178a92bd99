"""GM-37: hosts that are kept ready take the place of those that are lost."""

from __future__ import annotations

import pytest

from orchestrator import membership as ms
from tests.protocol.simulation import Simulation
from tests.protocol.test_interleavings import Spared, settle
from tests.protocol.test_membership import machine_of
from workers.identity import NO_GENERATION, NOWHERE
from workers.protocol import Answer, RankState


@pytest.fixture
def world() -> Simulation:
    """Of three hosts two train."""
    world = Spared(0, hosts=3, ranks=2)
    settle(world)
    return world


def training(world: Simulation) -> set[str]:
    return {worker.host for worker in machine_of(world).roster.members}


def test_gm37_a_spare_host_has_its_processes_ready_and_does_not_train(world: Simulation) -> None:
    machine = machine_of(world)
    first, second, third = machine.hosts
    assert training(world) == {first, second}
    assert machine.roster.spares == [third]
    assert [worker.role for worker in machine.roster.on(third)] == [ms.Role.IDLE] * 3
    assert not machine.roster.lacking


def test_gm37_it_takes_the_place_of_a_lost_host_which_is_the_spare_when_it_comes_back(world: Simulation) -> None:
    first, second, third = machine_of(world).hosts
    world.kill_host(first)
    settle(world)
    assert training(world) == {second, third}
    assert machine_of(world).roster.spares == []
    world.add_host()
    settle(world)
    assert training(world) == {second, third}
    assert machine_of(world).roster.spares == [list(machine_of(world).hosts)[-1]]


def test_gm37_and_of_one_that_is_sent_away(world: Simulation) -> None:
    first, second, third = machine_of(world).hosts
    world.send_away(second, at_once=False)
    settle(world)
    assert training(world) == {first, third}


def test_gm37_a_lost_spare_costs_no_step_and_no_generation(world: Simulation) -> None:
    before, (first, second, third) = machine_of(world).generation, machine_of(world).hosts
    world.kill_host(third)
    settle(world)
    assert machine_of(world).generation == before
    assert training(world) == {first, second}


def test_gm37_where_the_job_is_scaled_up_spares_join(world: Simulation) -> None:
    world.do(machine_of(world).scaled(3, world.now))
    settle(world)
    assert training(world) == set(machine_of(world).hosts)
    assert machine_of(world).roster.spares == []


def test_gm37_a_restarted_coordinator_leaves_the_spare_in_reserve(world: Simulation) -> None:
    first, second, third = machine_of(world).hosts
    world.kill_coordinator()
    settle(world)
    assert training(world) == {first, second}
    assert machine_of(world).roster.spares == [third]


def test_gm37_the_first_generation_does_not_wait_for_a_spare_that_is_not_up() -> None:
    machine = ms.Membership(ms.Rules(hosts_min=2, hosts_max=2, ranks_per_host=1, spares_per_host=0), incarnation=1)
    nothing = Answer(NO_GENERATION, NOWHERE, NOWHERE, False, NO_GENERATION)
    for host in ("a", "b", "c"):
        machine.expect_host(host, host, 0.0)
    asked: list[str] = []
    for host in ("a", "c"):
        worker = ms.WorkerView(f"w{host}", host, 1, host)
        actions = machine.attach(host, host, [(worker, RankState.IDLE, nothing)], 0.0)
        asked += [action.worker for action in actions if isinstance(action, ms.SendPrepare)]
    assert asked == ["wa", "wc"]
