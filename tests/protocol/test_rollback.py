"""GM-17: what members hold is wrong, and the gang begins anew from a checkpoint, whatever is lost meanwhile."""

from __future__ import annotations

import pytest

from orchestrator import membership as ms
from tests.protocol.simulation import Simulation
from tests.protocol.test_interleavings import serve, settle
from tests.protocol.test_leaving import hosts_of, records
from tests.protocol.test_membership import machine_of
from workers.identity import NOWHERE, StateId
from workers.protocol import RankState


@pytest.fixture
def world() -> Simulation:
    """Three hosts with a rank each that train. There are no checkpoints: who rolls back begins with the first step."""
    world = Simulation(0, hosts=3, ranks=1)
    settle(world)
    settle(world)
    return world


def length_after(world: Simulation) -> int:
    """Of the line that the members are on once they train again."""
    machine = machine_of(world)
    for _ in range(100):
        if machine.phase is ms.JobPhase.TRAINING and machine.rolling_back is None:
            return world.check_line()
        serve(world)
    raise AssertionError(f"nobody trains: {vars(machine)}")


def line_of(world: Simulation) -> set[StateId]:
    """Of the members that train."""
    states = [w.machine.state for w in world.workers.values() if w.machine.phase is RankState.TRAINING]
    state, line = max(states, key=lambda each: each.step), set()
    while state in world.commits:
        line.add(state)
        state = world.commits[state].before
    return line


def test_gm17_nobodys_state_counts_and_all_begin_anew(world: Simulation) -> None:
    machine, before = machine_of(world), world.check_line()
    actions = machine.roll_back(7, "digests differ", world.now)
    assert records(actions, "rolls_back") == [{"at_most": 7, "reason": "digests differ"}]
    world.do(actions)
    while machine.phase is ms.JobPhase.FORMING:
        serve(world)
    assert machine.plan is not None and (machine.plan.first, machine.plan.at_most) == (True, 7)
    assert machine.plan.authority == NOWHERE and len(machine.plan.members) == 3
    assert sum(member.donor for member in machine.plan.members) == 1
    assert length_after(world) < before
    settle(world)
    assert machine.rolling_back is None and machine.plan.first


def test_gm17_the_next_generation_counts_states_again(world: Simulation) -> None:
    machine = machine_of(world)
    world.do(machine.roll_back(0, "digests differ", world.now))
    settle(world)
    length = world.check_line()
    world.kill_worker(next(iter(machine.workers)))
    settle(world)
    assert machine.plan is not None and not machine.plan.first and machine.plan.at_most is None
    assert world.check_line() > length


def test_gm17_a_host_that_deviates_is_out_of_the_generation_that_begins_anew(world: Simulation) -> None:
    machine, deviant = machine_of(world), next(iter(world.hosts))
    world.do(machine.roll_back(3, "SDC_DIGEST", world.now))
    world.do(machine.leave(deviant, "SDC_DIGEST", world.now, at_once=True))
    settle(world)
    assert deviant not in hosts_of(world) and len(hosts_of(world)) == 2
    assert machine.rolling_back is None


@pytest.mark.parametrize("turns", range(6))
def test_gm17_a_coordinator_that_dies_meanwhile_is_no_way_out(world: Simulation, turns: int) -> None:
    """Its successor goes on with it, as long as not all of them train from the checkpoint."""
    old = line_of(world)
    world.do(machine_of(world).roll_back(0, "digests differ", world.now))
    for _ in range(turns):
        serve(world)
    world.kill_coordinator()
    world.start_coordinator()
    settle(world)
    assert world.rolling_back is None and machine_of(world).rolling_back is None
    assert not line_of(world) & old


@pytest.mark.parametrize("victim", range(3))
@pytest.mark.parametrize("turns", range(5))
def test_gm17_a_member_that_dies_meanwhile_does_not_bring_the_old_state_back(
    world: Simulation, turns: int, victim: int
) -> None:
    machine = machine_of(world)
    old = line_of(world)
    world.do(machine.roll_back(0, "digests differ", world.now))
    for _ in range(turns):
        serve(world)
    members = [name for name, view in machine.workers.items() if view.role is ms.Role.MEMBER]
    world.kill_worker(members[victim])
    settle(world)
    assert not line_of(world) & old


def test_gm17_where_every_host_is_needed_the_next_process_takes_part_at_once(world: Simulation) -> None:
    """There is no state that it could copy first."""
    machine = machine_of(world)
    machine.rules = machine.roster.rules = ms.Rules(3, 3, 1, 1, crash_limit=10**9)
    old, victim = line_of(world), next(name for name, view in machine.workers.items() if view.role is ms.Role.MEMBER)
    world.do(machine.roll_back(0, "digests differ", world.now))
    world.kill_worker(victim)
    settle(world)
    assert len(hosts_of(world)) == 3 and machine.rolling_back is None
    assert not line_of(world) & old


def test_gm17_a_host_that_takes_the_place_of_a_deviant_takes_part_at_once(world: Simulation) -> None:
    machine, deviant = machine_of(world), next(iter(world.hosts))
    machine.rules = machine.roster.rules = ms.Rules(3, 3, 1, 1, crash_limit=10**9)
    world.do(machine.leave(deviant, "SDC_DIGEST", world.now, at_once=True, bequeaths=False))
    world.do(machine.roll_back(0, "SDC_DIGEST", world.now))
    for _ in range(10):
        world.now += 0.1
        serve(world)
    assert machine.phase is ms.JobPhase.FORMING  # two hosts are not enough
    world.add_host()
    settle(world)
    assert len(hosts_of(world)) == 3 and deviant not in hosts_of(world)


def test_gm17_members_of_a_generation_are_those_that_were_configured_whatever_they_do_now(world: Simulation) -> None:
    machine = machine_of(world)
    members = machine.configured
    assert len(members) == 3 and set(members.values()) == hosts_of(world)
    world.do(machine.stop("enough", world.now))
    serve(world)
    assert machine.configured == members
    world.kill_coordinator()
    world.start_coordinator()
    assert machine_of(world).configured.keys() == members.keys()
