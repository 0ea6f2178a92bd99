"""GM-19: what the coordinator does when nothing gets on, with the real state machines."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

from orchestrator import membership as ms
from orchestrator.hangs import ANSWER_SECONDS, MOST_IN_A_ROW, SHOW_SECONDS
from tests.protocol.simulation import Simulation
from tests.protocol.test_interleavings import serve, settle
from tests.protocol.test_leaving import records
from tests.protocol.test_membership import ends, machine_of, members

TICK_SECONDS, BEAT_SECONDS = 0.1, 0.5
FRAMES = ("task.py:12 load", "task.py:90 main")


class Beating(Simulation):
    """Agents say what their ranks do; nothing that a rank does takes place unless the test says so."""

    def __init__(self, seed: int, hosts: int, ranks: int) -> None:
        self.taken: list[ms.Action] = []
        self.polls = 0
        super().__init__(seed, hosts, ranks)

    def do(self, actions: list[ms.Action]) -> None:
        self.taken += actions
        super().do([action for action in actions if not isinstance(action, ms.EndJob)])

    def beat(self, still: Collection[str]) -> None:
        """Ranks that stand still look for no directives, the others do nothing else."""
        machine = machine_of(self)
        self.polls += 1
        for worker in members(self):
            polls = 0 if worker.worker in still else self.polls
            machine.heard(worker.worker, machine.generation, 0, polls, self.now)

    def pass_time(self, seconds: float, still: Collection[str] = ()) -> list[ms.Action]:
        """Ticks and beats; what was decided meanwhile. Nobody answers."""
        before = len(self.taken)
        for tick in range(round(seconds / TICK_SECONDS)):
            self.now += TICK_SECONDS
            if tick % round(BEAT_SECONDS / TICK_SECONDS) == 0:
                self.beat(still)
            self.do(machine_of(self).tick(self.now))
        return self.taken[before:]


@pytest.fixture
def world() -> Beating:
    """Two hosts with two ranks each that train, 0.1 s for a step."""
    world = Beating(0, hosts=2, ranks=2)
    settle(world)
    assert machine_of(world).pace.patience == 10.0
    world.do(machine_of(world).tick(world.now))
    return world


def asked(actions: list[ms.Action]) -> dict[str, set[str]]:
    return {action.host: set(action.workers) for action in actions if isinstance(action, ms.AskStacks)}


def orders(actions: list[ms.Action]) -> list[ms.SendPrepare]:
    return [action for action in actions if isinstance(action, ms.SendPrepare)]


def test_gm19_ranks_are_asked_at_the_limit_and_judged_a_moment_later(world: Beating) -> None:
    machine, (_, hung, *_) = machine_of(world), members(world)
    idle_since = machine.pace.progress_at
    found = world.pass_time(idle_since + 9.9 - world.now, {hung.worker})
    assert found == []
    found = world.pass_time(3 * TICK_SECONDS, {hung.worker})
    assert asked(found) == {host: {w.worker for w in members(world) if w.host == host} for host in machine.hosts}
    assert records(found, "prepare") == []
    found = world.pass_time(SHOW_SECONDS + TICK_SECONDS, {hung.worker})
    (hang,) = records(found, "hang")
    assert hang["culprits"] == [{"host": hung.host, "rank": hung.rank}]
    assert (hang["limit"], hang["generation"], hang["step"]) == (10.0, list(machine.generation), machine.pace.step)
    assert world.now - idle_since <= 10.0 + 2.0
    assert machine.phase is ms.JobPhase.FORMING and machine.reason == f"rank {hung.rank} on {hung.host} hangs"


def test_gm19_where_all_show_where_they_stand_nobody_waits(world: Beating) -> None:
    machine, (_, hung, *_) = machine_of(world), members(world)
    world.pass_time(machine.pace.progress_at + 10.2 - world.now, {hung.worker})
    for worker in members(world):
        machine.hangs.shown(worker.worker, FRAMES if worker is hung else ())
    (hang,) = records(world.pass_time(TICK_SECONDS, {hung.worker}), "hang")
    stacks = hang["stacks"]
    assert isinstance(stacks, dict) and stacks[str(hung.rank)] == list(FRAMES)


def serve_until_training(world: Beating) -> None:
    """And no further."""
    for _ in range(20):
        if machine_of(world).phase is ms.JobPhase.TRAINING:
            return
        serve(world)


def hang(world: Beating, *still: str, seconds: float = 12.0) -> list[ms.Action]:
    """These stand still until the others are told to close."""
    return world.pass_time(seconds, still)


def test_ep8_the_culprit_has_a_moment_to_answer_and_is_replaced_and_no_host_is_evicted(world: Beating) -> None:
    machine, (_, hung, *others) = machine_of(world), members(world)
    found = hang(world, hung.worker)
    timeouts = {order.worker: (order.timeout, order.busy_timeout) for order in orders(found)}
    assert timeouts.pop(hung.worker) == (ANSWER_SECONDS, 0.0)
    assert set(timeouts.values()) == {(machine.pace.answer_limit, machine.rules.busy)} and len(timeouts) == 3
    assert records(found, "evidence") == []
    world.kill_worker(hung.worker)  # its agent does
    settle(world)
    assert len(members(world)) == 4 and all(other.worker in machine.workers for other in others)


def test_gm19_a_host_that_hangs_again_is_convicted(world: Beating) -> None:
    hung = members(world)[1]
    hang(world, hung.worker)
    world.kill_worker(hung.worker)
    settle(world)
    world.beat(())
    machine = machine_of(world)
    machine.heard(members(world)[0].worker, machine.generation, 1, 10_000, world.now)  # a collective is finished
    again = next(w for w in members(world) if w.host == hung.host)
    (evidence,) = records(hang(world, again.worker, seconds=14.0), "evidence")
    assert evidence == {"host": hung.host, "code": "HANG_CULPRIT", "hangs": 2}


def test_gm19_an_evicted_culprit_is_waited_for_by_nobody(world: Beating) -> None:
    """Both ranks of a host stand still; what the governor makes of the evidence is done in the same tick."""
    machine, host = machine_of(world), members(world)[2].host
    still = [worker.worker for worker in members(world) if worker.host == host]
    found = world.pass_time(10.3, still)
    while not records(found, "evidence"):
        found = world.pass_time(TICK_SECONDS, still)
    assert records(found, "evidence") == [{"host": host, "code": "HANG_CULPRIT", "hangs": 1}]
    world.do(machine.leave(host, "HANG_CULPRIT", world.now, at_once=True, bequeaths=False))
    assert {machine.workers[worker].host for worker in machine.waiting}.isdisjoint({host})
    for _ in range(8):
        serve(world)
    assert machine.plan is not None and {member.host for member in machine.plan.members}.isdisjoint({host})


def test_gm19_where_all_wait_all_begin_again_and_after_three_times_the_job_ends(world: Beating) -> None:
    machine = machine_of(world)
    limits = []
    for turn in range(MOST_IN_A_ROW):
        before = {member.worker for member in members(world)}
        found = hang(world, seconds=12.0 * 2**turn)
        (hung,) = records(found, "hang")
        limits.append(hung["limit"])
        assert (hung["culprits"], hung["in_a_row"]) == ([], turn + 1)
        assert records(found, "evidence") == []
        if turn < MOST_IN_A_ROW - 1:
            assert {order.worker for order in orders(found)} == before
            serve_until_training(world)
            assert machine.phase is ms.JobPhase.TRAINING and {m.worker for m in members(world)} == before
    assert limits == [10.0, 20.0, 40.0]
    ((code, message),) = ends(found)
    assert code == 9 and message.startswith(f"no collective has finished after step {machine.pace.step} in 3 generations")


def test_gm19_nothing_is_said_where_something_happens_in_the_last_moment(world: Beating) -> None:
    machine = machine_of(world)
    found = world.pass_time(machine.pace.progress_at + 10.2 - world.now)
    assert asked(found)
    machine.activity(members(world)[0].worker, world.now)
    assert world.pass_time(9.0) == [] and machine.phase is ms.JobPhase.TRAINING


def test_gm19_code_of_the_task_has_its_own_limit(world: Beating) -> None:
    """And no more than that: who is found in it then does not get it once more."""
    machine, (_, busy, *_) = machine_of(world), members(world)
    machine.rules = machine.roster.rules = replace(machine.rules, busy=50.0)
    machine.busy(busy.worker, True)
    assert hang(world, busy.worker, seconds=machine.pace.progress_at + 49.8 - world.now) == []
    found = hang(world, busy.worker, seconds=2.0)
    (hung,) = records(found, "hang")
    assert (hung["limit"], hung["culprits"]) == (50.0, [{"host": busy.host, "rank": busy.rank}])
    assert [order.busy_timeout for order in orders(found) if order.worker == busy.worker] == [0.0]


def test_gm19_before_a_step_was_seen_the_limit_is_a_minute(world: Beating) -> None:
    machine = machine_of(world)
    machine.pace.longest_step = 0.0
    assert hang(world, seconds=machine.pace.progress_at + 59.8 - world.now) == []
    (hung,) = records(hang(world, seconds=2.0), "hang")
    assert hung["limit"] == 60.0


def test_gm19_the_limit_is_five_times_the_longest_step(world: Beating) -> None:
    machine = machine_of(world)
    machine.progress(machine.pace.step, 4.0, world.now)
    assert hang(world, seconds=machine.pace.progress_at + 19.8 - world.now) == []
    assert records(hang(world, seconds=2.0), "hang")


def test_gm19_a_coordinator_that_has_stood_still_counts_anew(world: Beating) -> None:
    world.pass_time(9.0)
    world.now += 30.0
    assert world.pass_time(9.0) == []
    assert records(world.pass_time(3.0), "hang")


def test_gm19_a_restarted_coordinator_counts_anew_and_remembers_who_hung(world: Beating) -> None:
    hung = members(world)[1]
    world.pass_time(9.0)
    world.kill_coordinator()
    world.start_coordinator()
    machine = machine_of(world)
    machine.hangs.remember([(world.now - 60.0, hung.host)])
    for name in list(world.hosts):
        world.attach(name)
    assert machine.phase is ms.JobPhase.TRAINING
    machine.progress(1, 0.1, world.now)
    assert world.pass_time(9.0, {hung.worker}) == []
    found = world.pass_time(3.0, {hung.worker})
    assert records(found, "evidence") == [{"host": hung.host, "code": "HANG_CULPRIT", "hangs": 2}]


def test_gm19_of_hosts_that_are_not_heard_nobody_is_blamed(world: Beating) -> None:
    """An agent is away, and all others wait: perhaps for its ranks."""
    machine = machine_of(world)
    away = members(world)[2].host
    world.cut_stream(away)
    (hung,) = records(world.pass_time(12.0, {members(world)[0].worker}), "hang")
    assert (hung["unheard"], hung["culprits"], hung["in_a_row"]) == ([away], [], 0)
    assert machine.phase is ms.JobPhase.FORMING


def test_gm19_where_nobody_is_heard_nobody_is_told_to_close(world: Beating) -> None:
    machine = machine_of(world)
    for host in list(world.hosts):
        world.cut_stream(host)
    found = world.pass_time(15.0)
    assert records(found, "hang") == [] and orders(found) == [] and machine.phase is ms.JobPhase.TRAINING


def test_gm19_ranks_that_hang_before_the_step_they_are_to_close_at_are_found_too(world: Beating) -> None:
    machine = machine_of(world)
    while not machine.pace.step_seconds:
        settle(world)
    leaves = members(world)[2].host
    world.do(machine.leave(leaves, "drained", world.now))
    assert machine.phase is ms.JobPhase.FORMING and machine.at_step > machine.pace.step
    hung = members(world)[0]
    found = world.pass_time(12.0, {hung.worker})
    assert records(found, "hang")[0]["culprits"] == [{"host": hung.host, "rank": hung.rank}]
    assert orders(found)[-1].at_step == 0
