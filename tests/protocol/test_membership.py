"""Decisions of the coordinator's machine that random interleavings do not single out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator import membership as ms
from tests.protocol.simulation import Simulation
from tests.protocol.test_interleavings import settle
from workers.identity import NO_GENERATION, NOWHERE
from workers.protocol import Answer, RankState


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
    assert ends(machine.tick(limit + 1.0)) == [(75, "fewer than hosts.min=1 hosts for 300 s")]


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


def test_gm5_the_duties_of_rank_0_pass_on_and_a_newcomer_takes_its_number(world: Simulation) -> None:
    """Nobody is renumbered: the first of the ring writes logs and checkpoints, whatever its rank is."""
    before = [(member.worker, member.rank) for member in machine_of(world).plan.members]  # type: ignore[union-attr]
    first, *others = before
    assert first[1] == 0
    seen = len(world.plans)
    world.kill_worker(first[0])
    settle(world)
    without = list(world.plans.values())[seen]
    assert [(member.worker, member.rank) for member in without.members] == others
    assert [worker.rank for worker in members(world) if worker.worker not in dict(before)] == [0]
    assert sorted(worker.rank or 0 for worker in members(world)) == [0, 1, 2, 3]


def test_gm4_what_a_leader_tells_at_once_is_decided_on_once() -> None:
    machine = ms.Membership(ms.Rules(hosts_min=2, hosts_max=2, ranks_per_host=1, spares_per_host=0), incarnation=1)
    nothing = Answer(NO_GENERATION, NOWHERE, NOWHERE, False, NO_GENERATION)
    for host in ("a", "b"):
        machine.expect_host(host, host, 0.0)
    machine.is_held = True
    heard: list[ms.Action] = []
    for host in ("a", "b"):
        worker = ms.WorkerView(f"w{host}", host, 1, host)
        heard += machine.attach(host, host, [(worker, RankState.IDLE, nothing)], 0.0)
    assert [type(action) for action in heard] == [ms.Record, ms.Record]
    asked = [action.worker for action in machine.go_on(0.0) if isinstance(action, ms.SendPrepare)]
    assert asked == ["wa", "wb"]
    assert machine.go_on(0.1) == []


@pytest.fixture
def sites() -> Simulation:
    """Four hosts of two ranks that train; the first and the third are in group b, the others in a."""
    world = Simulation(0, hosts=0, ranks=2)
    for group in ("b", "a", "b", "a"):
        world.add_host(group)
    settle(world)
    return world


def ring(world: Simulation) -> list[tuple[str, str, int]]:
    plan = machine_of(world).plan
    assert plan is not None
    return [(member.group, member.host, member.rank) for member in plan.members]


def test_cc9_the_ring_goes_from_group_to_group_and_from_host_to_host(sites: Simulation) -> None:
    first, second, third, fourth = sites.hosts
    hosts = [("a", second), ("a", fourth), ("b", first), ("b", third)]
    assert ring(sites) == [(group, host, 2 * place + rank) for place, (group, host) in enumerate(hosts) for rank in (0, 1)]


def test_cc9_a_joiner_takes_its_place_in_the_ring_and_survivors_keep_their_ranks(sites: Simulation) -> None:
    before = {m.worker: m.rank for m in machine_of(sites).plan.members}  # type: ignore[union-attr]
    lost = list(sites.hosts)[1]
    sites.kill_host(lost)
    sites.now += 60
    settle(sites)
    sites.add_host("a")
    settle(sites)
    joined = list(sites.hosts)[-1]
    plan = machine_of(sites).plan
    assert plan is not None and [m.host for m in plan.members][2:4] == [joined, joined]
    assert {m.rank for m in plan.members if m.host == joined} == {0, 1}
    kept = {m.worker: m.rank for m in plan.members if m.worker in before}
    assert len(kept) == 6 and kept == {worker: before[worker] for worker in kept}


def test_cc9_a_rank_that_another_host_takes_over_does_not_tear_the_ring(sites: Simulation) -> None:
    """Where hosts lose ranks together, whoever is back first takes the lowest number."""
    machine = machine_of(sites)
    by_rank = {m.rank: m for m in machine.plan.members}  # type: ignore[union-attr]
    workers = [machine.workers[by_rank[rank].worker] for rank in (6, 1, 4, 3)]
    for worker, rank in zip(workers, (0, 7, 5, 2), strict=True):
        worker.rank = rank
    assert [w.host for w in machine.roster.in_ring(workers)] == [by_rank[r].host for r in (1, 3, 4, 6)]


def test_cc9_a_restarted_coordinator_knows_the_groups(sites: Simulation) -> None:
    before = ring(sites)
    sites.kill_coordinator()
    sites.start_coordinator()
    settle(sites)
    assert {host.group for host in machine_of(sites).hosts.values()} == {"a", "b"}
    sites.kill_worker(members(sites)[0].worker)
    settle(sites)
    assert [place[:2] for place in ring(sites)] == [place[:2] for place in before]


def test_cc9_a_joiner_copies_from_its_own_group_first(sites: Simulation) -> None:
    machine = machine_of(sites)
    second = list(sites.hosts)[1]
    donors = machine._donors(second)
    assert [machine.hosts[d.host].group for d in donors] == ["a"] * 4 + ["b"] * 4
    assert donors[0].rank == 3


def test_ep15_a_joiner_is_told_of_as_many_donors_as_it_can_need(sites: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_of(sites)
    every = machine._donors(list(sites.hosts)[1])
    monkeypatch.setattr(ms, "MOST_DONORS", 3)
    assert machine._donors(list(sites.hosts)[1]) == every[:3]


class Probed(Simulation):
    """Remembers what was to be measured."""

    def __init__(self, seed: int, hosts: int, ranks: int) -> None:
        self.asked: list[ms.MeasureLinks] = []
        super().__init__(seed, hosts, ranks)

    def do(self, actions: list[ms.Action]) -> None:
        self.asked += [action for action in actions if isinstance(action, ms.MeasureLinks)]
        super().do(actions)


@pytest.fixture
def probing() -> tuple[Simulation, ms.MeasureLinks]:
    """Three hosts without groups whose gang waits for the probe, and what is to be measured."""
    world = Probed(0, hosts=0, ranks=1)
    machine = machine_of(world)
    machine.rules = machine.roster.rules = replace(machine.rules, probe=True)
    for _ in range(3):
        world.add_host("")
    for _ in range(10):
        settle_a_little(world)
    assert machine.plan is None
    (asked,) = world.asked
    return world, asked


def settle_a_little(world: Simulation) -> None:
    """Messages arrive, a tenth of a second passes."""
    for name, host in world.hosts.items():
        if not host.attached:
            world.attach(name)
        while host.up:
            world.deliver_up(name)
        while host.down:
            world.deliver_down(name)
    world.now += 0.1
    world.do(machine_of(world).tick(world.now))


def test_cc9_the_first_generation_waits_for_the_probe_and_follows_it(probing: tuple[Simulation, ms.MeasureLinks]) -> None:
    world, asked = probing
    first, second, third = world.hosts
    assert asked.addresses == {host: host for host in world.hosts}
    world.do(machine_of(world).probed({second: "b", first: "c", third: "b"}, world.now))
    settle(world)
    assert ring(world) == [("b", second, 0), ("b", third, 1), ("c", first, 2)]


def test_cc9_a_probe_that_never_ends_keeps_no_job_from_starting(probing: tuple[Simulation, ms.MeasureLinks]) -> None:
    world, _ = probing
    world.now += machine_of(world).rules.probe_limit
    settle(world)
    assert [place[0] for place in ring(world)] == ["", "", ""]


def test_cc9_nor_does_the_loss_of_a_host_meanwhile(probing: tuple[Simulation, ms.MeasureLinks]) -> None:
    world, _ = probing
    lost = next(iter(world.hosts))
    machine = machine_of(world)
    world.kill_host(lost)
    world.do(machine.host_lost(lost, "gone", world.now))
    world.do(machine.probed({lost: "a"}, world.now))
    settle(world)
    assert len(ring(world)) == 2


def test_cc9_the_probe_does_not_overrule_what_was_told(probing: tuple[Simulation, ms.MeasureLinks]) -> None:
    world, _ = probing
    first, *others = world.hosts
    machine = machine_of(world)
    machine.hosts[first].group = "site"
    world.do(machine.probed(dict.fromkeys(world.hosts, "probe-1"), world.now))
    settle(world)
    assert {host: view.group for host, view in machine.hosts.items()} == {first: "site", **dict.fromkeys(others, "probe-1")}
