"""EP-16, GM-28, GM-35: hosts that are sent away while they live."""

from __future__ import annotations

import pytest

from orchestrator import membership as ms
from tests.protocol.simulation import Simulation
from tests.protocol.test_interleavings import serve, settle
from tests.protocol.test_membership import ends, machine_of, members


@pytest.fixture
def world() -> Simulation:
    """Two hosts with two ranks each that train, for so long that it is known how long a step takes."""
    world = Simulation(0, hosts=2, ranks=2)
    while not machine_of(world).pace.step_seconds:
        settle(world)
    return world


def hosts_of(world: Simulation) -> set[str]:
    plan = machine_of(world).plan
    assert plan is not None
    return {member.host for member in plan.members}


def records(actions: list[ms.Action], kind: str) -> list[dict[str, object]]:
    return [dict(action.fields) for action in actions if isinstance(action, ms.Record) and action.kind == kind]


def test_ep16_a_drained_host_closes_with_the_others_at_a_step_to_come_and_nothing_is_discarded(world: Simulation) -> None:
    machine, (stays, leaves) = machine_of(world), world.hosts
    step, discarded = machine.pace.step, machine.discarded
    actions = machine.leave(leaves, "drained", world.now)
    assert records(actions, "host_leaves") == [{"host": leaves, "reason": "drained"}]
    orders = [action for action in actions if isinstance(action, ms.SendPrepare)]
    assert len(orders) == 4 and all(order.at_step > step for order in orders)
    world.do(actions)
    settle(world)
    assert hosts_of(world) == {stays} and leaves not in machine.hosts and leaves not in world.hosts
    assert machine.discarded == discarded and machine.incidents.open == []


def test_cc12_who_leaves_is_told_who_stays_and_from_which_state(world: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, (stays, leaves) = machine_of(world), world.hosts
    told: list[ms.SendExit] = []
    farewell = machine._farewell

    def noted(worker: str, host: ms.HostView) -> ms.SendExit:
        told.append(farewell(worker, host))
        return told[-1]

    monkeypatch.setattr(machine, "_farewell", noted)
    leaving = {worker.worker for worker in machine.workers.values() if worker.host == leaves}
    world.do(machine.leave(leaves, "drained", world.now))
    settle(world)
    assert machine.plan is not None
    assert {exit.worker for exit in told} == leaving
    addresses = {member.peer_address for member in machine.plan.members}
    assert all(set(exit.heirs) == addresses and exit.authority == machine.plan.authority for exit in told)
    assert all(member.host == stays for member in machine.plan.members)


def test_cc12_what_is_not_trusted_goes_to_nobody(world: Simulation) -> None:
    machine, (_, leaves) = machine_of(world), world.hosts
    world.do(machine.leave(leaves, "NONFINITE_HOST", world.now, bequeaths=False))
    leavers = [worker.worker for worker in machine.workers.values() if worker.host == leaves]
    exits = []
    for _ in range(40):
        world.now += 0.1
        serve(world)
        exits += [action for action in machine.tick(world.now) if isinstance(action, ms.SendExit)]
    assert {exit.worker for exit in exits} <= set(leavers) and all(exit.heirs == () for exit in exits)


def test_gm28_an_evicted_host_is_out_of_the_very_next_generation_and_nobody_waits_for_its_answer(world: Simulation) -> None:
    machine, (stays, leaves) = machine_of(world), world.hosts
    actions = machine.leave(leaves, "corrupt", world.now, at_once=True)
    assert all(action.at_step == 0 for action in actions if isinstance(action, ms.SendPrepare))
    assert {machine.workers[worker].host for worker in machine.waiting} == {stays}
    world.do(actions)
    settle(world)
    assert hosts_of(world) == {stays}


@pytest.mark.parametrize("hasty", [False, True])
def test_gm35_gm38_the_last_host_with_the_state_stays_until_another_has_it_in_haste_too(hasty: bool) -> None:
    world = Simulation(0, hosts=1, ranks=2)
    settle(world)
    machine, (only,) = machine_of(world), world.hosts
    world.do(machine.leave(only, "drained", world.now))
    if hasty:
        world.do(machine.hasten(only, world.now))
    settle_but_for_the_leaving(world)
    assert hosts_of(world) == {only}
    step = machine.pace.step
    world.add_host()
    settle(world)
    assert only not in machine.hosts and len(hosts_of(world)) == 1
    assert machine.pace.step > step and not machine.plan.first  # type: ignore[union-attr]


def settle_but_for_the_leaving(world: Simulation) -> None:
    with pytest.raises(AssertionError, match="no progress after faults stopped"):
        settle(world)  # it waits for the host to be gone, too


def test_ep16_a_host_that_is_told_twice_leaves_once(world: Simulation) -> None:
    machine, leaves = machine_of(world), list(world.hosts)[1]
    world.do(machine.leave(leaves, "drained", world.now))
    generation = machine.round_generation
    assert machine.leave(leaves, "again", world.now) == [] and machine.round_generation == generation
    assert machine.leave("nobody", "x", world.now) == []


def test_ep16_two_hosts_that_leave_together_cost_one_generation() -> None:
    world = Simulation(0, hosts=4, ranks=1)
    settle(world)
    machine, (first, second, *others) = machine_of(world), world.hosts
    before = machine.generation
    for host in (first, second):
        world.do(machine.leave(host, "drained", world.now))
    settle(world)
    assert hosts_of(world) == set(others) and machine.generation.counter == before.counter + 1


def test_ep16_where_the_leaving_host_dies_before_the_step_the_others_close_at_once(world: Simulation) -> None:
    machine, leaves = machine_of(world), list(world.hosts)[1]
    world.do(machine.leave(leaves, "drained", world.now))
    victim = next(w for w in members(world) if w.host == leaves)
    actions = machine.worker_exit(victim.worker, -9, world.now)
    assert all(action.at_step == 0 for action in actions if isinstance(action, ms.SendPrepare))
    assert records(actions, "prepare")


def test_ep12_a_restarted_coordinator_knows_who_was_told_to_go(world: Simulation) -> None:
    stays, leaves = world.hosts
    world.do(machine_of(world).leave(leaves, "drained", world.now))
    world.kill_coordinator()
    world.start_coordinator()
    settle(world)
    assert hosts_of(world) == {stays}


def exits(actions: list[ms.Action]) -> list[object]:
    return [fields["exits"] for fields in records(actions, "evidence")]


def test_gm36a_what_dies_together_counts_once_and_at_the_end_of_a_job_nothing_does() -> None:
    world = Simulation(0, hosts=2, ranks=4)
    settle(world)
    machine, (victim, _) = machine_of(world), world.hosts
    machine.rules = machine.roster.rules = ms.Rules(1, 2, 4, 1, exits_allowed=1)
    ranks = [w.worker for w in members(world) if w.host == victim]
    told = [exits(machine.worker_exit(worker, -9, world.now + 0.1 * place)) for place, worker in enumerate(ranks[:3])]
    assert told == [[], [], []]
    assert exits(machine.worker_exit(ranks[3], -9, world.now + 5.0)) == [2]
    machine.phase = ms.JobPhase.ENDED
    others = [w.worker for w in machine.workers.values() if w.host != victim]
    assert [exits(machine.worker_exit(worker, 0, world.now + 9.0 * n)) for n, worker in enumerate(others)] == [[]] * len(
        others
    )


def test_gm35_who_alone_has_the_state_cannot_be_spared() -> None:
    world = Simulation(0, hosts=2, ranks=1)
    settle(world)
    machine, (first, second) = machine_of(world), world.hosts
    assert machine.can_spare(first) and machine.can_spare(second)
    machine.leave(second, "drained", world.now)
    assert machine.can_spare(second) and not machine.can_spare(first)


def test_gm33_a_job_below_its_minimum_waits_for_another_host(world: Simulation) -> None:
    machine, leaves = machine_of(world), list(world.hosts)[1]
    machine.rules = machine.roster.rules = ms.Rules(2, 2, 2, 1)
    world.do(machine.leave(leaves, "corrupt", world.now, at_once=True))
    for _ in range(40):
        world.now += 0.1
        serve(world)
    assert machine.below_min_since is not None and machine.phase is ms.JobPhase.FORMING and leaves not in machine.hosts
    world.add_host()
    settle(world)
    assert len(hosts_of(world)) == 2


def test_gm33_a_job_below_its_minimum_saves_what_it_has_and_ends_to_be_started_again(
    world: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once when it is held, by a rank with the newest state, and once when it ends, as a stopped job does."""
    machine, leaves = machine_of(world), list(world.hosts)[1]
    machine.rules = machine.roster.rules = ms.Rules(2, 2, 2, 1)
    done: list[ms.Action] = []
    do = world.do

    def noted(actions: list[ms.Action]) -> None:
        done.extend(actions)
        do(actions)

    monkeypatch.setattr(world, "do", noted)
    world.do(machine.leave(leaves, "corrupt", world.now, at_once=True))
    for _ in range(40):
        world.now += 0.1
        serve(world)
    (save,) = [action for action in done if isinstance(action, ms.SendSave)]
    newest = max(worker.state.position for worker in members(world))
    assert save.held and machine.workers[save.worker].state.position == newest
    assert machine.below_min_since is not None
    world.now = machine.below_min_since + machine.rules.replace_wait
    assert not machine.stopping and records(machine.tick(world.now), "stopping") == []
    world.now += 1.0
    reason = "fewer than hosts.min=2 hosts for 300 s"
    actions = machine.tick(world.now)
    assert records(actions, "stopping") == [{"reason": reason, "requeue": True}] and ends(actions) == []
    world.do(actions)
    for _ in range(40):
        serve(world)
    assert machine.plan is not None and machine.plan.stop and not machine.plan.first
    last = [machine.finished(worker.worker, world.now) for worker in members(world)]
    assert [ends(each) for each in last] == [[], [(75, reason)]]


def test_gm38_a_host_that_can_wait_no_longer_leaves_before_the_step_ends_and_nobody_waits_for_its_answer(
    world: Simulation,
) -> None:
    machine, (stays, leaves) = machine_of(world), world.hosts
    assert machine.hasten(leaves, world.now) == [] and machine.hasten("nobody", world.now) == []
    planned = machine.leave(leaves, "drained", world.now)
    assert all(order.at_step for order in planned if isinstance(order, ms.SendPrepare))
    actions = machine.hasten(leaves, world.now)
    orders = [action for action in actions if isinstance(action, ms.SendPrepare)]
    assert len(orders) == 4 and all(order.at_step == 0 for order in orders)
    assert {machine.workers[worker].host for worker in machine.waiting} == {stays}
    assert machine.hasten(leaves, world.now) == []
    world.do(planned + actions)
    settle(world)
    assert hosts_of(world) == {stays} and leaves not in machine.hosts


def test_gm38_hosts_that_leave_at_once_together_cost_one_generation_and_nobody_waits_for_either() -> None:
    world = Simulation(0, hosts=4, ranks=1)
    settle(world)
    machine, (first, second, *others) = machine_of(world), world.hosts
    before = len(world.plans)
    for host in (first, second):
        world.do(machine.leave(host, "drained", world.now, at_once=True))
    assert {machine.workers[worker].host for worker in machine.waiting} == set(others)
    settle(world)
    assert hosts_of(world) == set(others) and len(world.plans) == before + 1
