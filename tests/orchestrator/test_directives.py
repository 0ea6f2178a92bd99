"""What is the same for many workers is made once and goes out once."""

from __future__ import annotations

from quantarion.v1 import control_pb2 as pb

from orchestrator import membership as ms
from orchestrator.directives import Directives, Sending, runs
from workers.identity import GENESIS, Generation

FIRST, SECOND = Generation(1, 1), Generation(1, 2)


def plan(generation: Generation) -> ms.Plan:
    members = tuple(ms.MemberPlan(f"w{n}", n, f"host-{n}", f"10.0.0.{n}:1", GENESIS, n == 0, True) for n in range(3))
    return ms.Plan(generation, members, GENESIS, attempt=0, first=True, stop=False)


def test_what_says_the_same_to_several_is_together_and_the_order_stays() -> None:
    first, second = plan(FIRST), plan(SECOND)
    record = ms.Record("prepare", {})
    expected: list[list[ms.Action]] = [
        [ms.SendPrepare("a", FIRST, 0, 5.0), ms.SendPrepare("b", FIRST, 0, 5.0)],
        [ms.SendPrepare("c", FIRST, 7, 5.0)],
        [record],
        [record],
        [ms.SendConfigure("a", first), ms.SendConfigure("b", first)],
        [ms.SendConfigure("a", second)],
        [ms.SendExit("a", "over"), ms.SendExit("b", "over")],
        [ms.SendExit("c", "over", ("10.0.0.1:1",))],
        [ms.KillWorker("a", "silent")],
        [ms.KillWorker("a", "silent")],
    ]
    assert list(runs(action for run in expected for action in run)) == expected


def test_a_plan_is_made_once_for_all_its_members_and_anew_for_the_next() -> None:
    directives, first = Directives("10.0.0.9:1"), plan(FIRST)
    made = [directives.make(ms.SendConfigure(member.worker, first)).configure for member in first.members]
    assert made[0] == made[1] == made[2]
    configure = pb.Configure.FromString(made[0])
    assert [member.worker for member in configure.members] == ["w0", "w1", "w2"]
    assert (configure.store_address, configure.first, configure.HasField("at_most")) == ("10.0.0.9:1", True, False)
    other = pb.Configure.FromString(directives.make(ms.SendConfigure("w0", plan(SECOND))).configure)
    assert (other.generation.incarnation, other.generation.counter) == SECOND


def test_every_directive_says_what_its_action_does() -> None:
    directives = Directives("10.0.0.9:1")
    donor = plan(FIRST).members[0]
    actions: list[Sending] = [
        ms.SendPrepare("a", SECOND, 7, 5.0, 600.0),
        ms.SendJoin("a", (donor,)),
        ms.SendExit("a", "over", ("10.0.0.1:1",), GENESIS),
    ]
    prepare, join, leave = map(directives.make, actions)
    assert (prepare.prepare.generation.counter, prepare.prepare.at_step, prepare.prepare.timeout) == (2, 7, 5.0)
    assert prepare.prepare.busy_timeout == 600.0
    assert [member.worker for member in join.join.donors] == ["w0"]
    assert (leave.exit.reason, list(leave.exit.heirs)) == ("over", ["10.0.0.1:1"])
    assert [list(message.workers) for message in (prepare, join, leave)] == [[], [], []]
