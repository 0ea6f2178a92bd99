"""Decisions of the coordinator's machine that random interleavings do not single out."""

from __future__ import annotations

import pytest

from orchestrator import membership as ms
from tests.protocol.simulation import Simulation
from tests.protocol.test_interleavings import settle


@pytest.fixture
def world() -> Simulation:
    """Two hosts with two ranks each that train."""
    world = Simulation(0, hosts=2, ranks=2)
    settle(world)
    return world


def machine_of(world: Simulation) -> ms.Membership:
    assert world.machine is not None
    return world.machine


def members(world: Simulation) -> list[ms.WorkerView]:
    return [w for w in machine_of(world).workers.values() if w.role is ms.Role.MEMBER]


def ends(actions: list[ms.Action]) -> list[tuple[int, str]]:
    return [(a.exit_code, a.message) for a in actions if isinstance(a, ms.EndJob)]


def test_a_task_that_raises_on_one_rank_costs_that_rank(world: Simulation) -> None:
    victim = members(world)[1]
    actions = machine_of(world).failed(victim.worker, 1, "OSError: no space", 7, world.now)
    assert ends(actions) == []
    assert ms.SendExit(victim.worker, "OSError: no space") in actions
    (record,) = [a for a in actions if isinstance(a, ms.Record) and a.kind == "task_error"]
    assert record.fields == {"host": victim.host, "rank": victim.rank, "step": 7, "error": "OSError: no space"}
    world.do(actions)
    world.raise_task(victim.worker)
    settle(world)
    assert len(members(world)) == 4 and victim.worker not in machine_of(world).workers


def test_a_task_that_raises_twice_after_the_same_step_is_a_bug_and_ends_the_job(world: Simulation) -> None:
    first, second = members(world)[:2]
    machine = machine_of(world)
    assert ends(machine.failed(first.worker, 1, "ValueError: x", 7, world.now)) == []
    assert ends(machine.failed(second.worker, 1, "ValueError: x", 7, world.now)) == [(1, "ValueError: x")]


def test_a_task_that_raises_on_the_only_rank_ends_the_job() -> None:
    world = Simulation(0, hosts=1, ranks=1, spares=0)
    settle(world)
    (only,) = members(world)
    assert ends(machine_of(world).failed(only.worker, 2, "write it so", 3, world.now)) == [(2, "write it so")]


def test_a_spare_whose_task_raises_ends_nothing_however_often(world: Simulation) -> None:
    machine = machine_of(world)
    spares = [w for w in machine.workers.values() if w.role is ms.Role.IDLE]
    assert len(spares) == 2
    for spare in spares:
        assert ends(machine.failed(spare.worker, 3, "no such file", 0, world.now)) == []


def test_before_the_first_generation_a_task_that_raises_ends_the_job() -> None:
    world = Simulation(0, hosts=2, ranks=2)
    assert ends(machine_of(world).failed("unheard-of", 3, "no such file", 0, world.now)) == [(3, "no such file")]


def test_ep13_after_a_total_loss_the_job_waits_for_hosts_min_but_not_for_ever(world: Simulation) -> None:
    machine = machine_of(world)
    for host in list(machine.hosts):
        machine.host_lost(host, "gone", world.now)
    assert machine.phase is ms.JobPhase.WAITING
    limit = world.now + machine.rules.replace_wait
    assert ends(machine.tick(limit - 1.0)) == []
    assert ends(machine.tick(limit + 1.0)) == [(9, "fewer than hosts.min=1 hosts for 300 s")]


def test_a_process_that_dies_before_its_hello_is_started_again_later_and_later(world: Simulation) -> None:
    machine = machine_of(world)
    spare = next(w for w in machine.workers.values() if w.role is ms.Role.IDLE)
    actions = machine.worker_exit(spare.worker, -9, world.now)
    delays = []
    for _ in range(4):
        (spawn,) = [a for a in actions if isinstance(a, ms.SpawnWorker)]
        assert spawn.host == spare.host
        delays.append(spawn.delay)
        actions = machine.stillborn(spare.host, world.now)
    assert delays == [1.0, 2.0, 4.0, 8.0]


def test_processes_that_die_before_their_hello_on_and_on_end_a_job_that_has_never_trained() -> None:
    machine = ms.Membership(ms.Rules(hosts_min=1, hosts_max=1, ranks_per_host=1, spares_per_host=0), incarnation=1)
    machine.expect_host("host-1", "127.0.0.2", 0.0)
    machine.attach("host-1", "127.0.0.2", [], 0.0)
    outcomes = [ends(machine.stillborn("host-1", 1.0)) for _ in range(machine.rules.crash_limit)]
    assert outcomes[:-1] == [[]] * 4
    ((code, message),) = outcomes[-1]
    assert (code, message) == (
        9,
        "5 workers in a row died on host-1 before they could train; see logs/worker-host-1.log and logs/coordinator.log in "
        "the job's folder",
    )
