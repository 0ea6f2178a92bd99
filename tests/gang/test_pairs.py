"""EP-19: a second fault while the first one is being dealt with, on real processes."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.gang.harness import WORLD, Gang, name

StartGang = Callable[..., Gang]

DEATH = "step_begin@rank=1,step=20=kill"
BROKEN_APPLY = "in_apply@rank=2,step=20=raise"

PAIRS = [
    # a survivor dies while it promises, enters the next generation, connects
    (DEATH, "after_prepared@rank=2,generation=1=kill"),
    (DEATH, "in_configure@rank=2,generation=2=kill"),
    (DEATH, "in_connect@rank=0,generation=2=kill"),
    # the one that is healed dies
    (BROKEN_APPLY, "in_heal@rank=2,generation=2=kill"),
    # the donor of a joiner dies: the next donor (EP-15)
    (DEATH, "in_serve@rank=3,generation=2=kill"),
    # the writer, and then its successor
    ("after_apply_alone@rank=0,step=20=kill", "after_apply_alone@rank=1,step=21=kill"),
]
SLOW_ONLY = [
    (BROKEN_APPLY, "in_serve@rank=0,generation=2=kill"),  # the one that heals dies
    *(
        (DEATH, f"{point}@rank={rank},generation=1=kill")
        for point in ("before_prepared", "after_prepared")
        for rank in (0, 3)
    ),
    *((DEATH, f"{point}@rank={rank},generation=2=kill") for point in ("in_configure", "in_connect") for rank in (0, 2, 3)),
    ("after_apply_alone@rank=0,step=20=kill", "in_configure@rank=1,generation=2=kill"),
    ("in_publish@rank=0,step=51=kill", "in_publish@rank=0,step=101=kill"),
    ("in_round@rank=0,step=41=kill", "in_round@rank=2,generation=2=kill"),
    (DEATH, "in_join_copy=kill", "after_ready=kill"),
    (DEATH, "in_heal@generation=0=kill"),
    (DEATH, "in_serve@rank=3,generation=2=kill", "in_serve@rank=2,generation=3=kill"),
    ("step_begin@rank=0,step=20=kill", "step_begin@rank=1,step=20=kill", "step_begin@rank=2,step=20=kill"),
    ("in_configure@rank=1,generation=1=kill", "in_connect@rank=2,generation=2=kill"),
    ("in_serve@rank=0,generation=1=kill", "in_serve@rank=1,generation=2=kill"),
    ("at_finish@rank=0=kill", "at_finish@rank=1=kill"),
]  # fmt: skip
COORDINATOR = [  # dies while the generation after the first death forms, at each thing it says or hears
    "half:SendConfigure#5",
]
COORDINATOR_SLOW = [
    "record:prepare#2",
    "after:SendPrepare#6",
    "record:generation#2",
    "heard:prepared#6",
    "heard:running#6",
    "heard:ready#1",
    "before:SpawnWorker#7",
]
COORDINATOR_ALONE = [
    "record:host_up#2",
    "before:SpawnWorker#2",
    "record:worker_up#3",
    "record:prepare#1",
    "heard:prepared#2",
    "record:generation#1",
    "half:SendConfigure#1",
    "heard:running#2",
    "heard:finished#1",
    "heard:finished#4",
]


@pytest.mark.parametrize("faults", PAIRS, ids=map(name, PAIRS))
def test_ep19_pair(faults: tuple[str, ...], gang: StartGang) -> None:
    breaks_twice(faults, gang)


@pytest.mark.long
@pytest.mark.parametrize("faults", SLOW_ONLY, ids=map(name, SLOW_ONLY))
def test_ep19_other_pair(faults: tuple[str, ...], gang: StartGang) -> None:
    breaks_twice(faults, gang)


def breaks_twice(faults: tuple[str, ...], gang: StartGang) -> None:
    g = gang(faults=faults)
    if "at_finish" in faults[0]:
        g.hurry()
    else:
        g.wait_for_faults()
        g.wait_until_whole()
    g.check()


@pytest.mark.parametrize("point", COORDINATOR, ids=map(name, COORDINATOR))
def test_ep12_ep19_a_rank_and_the_coordinator_at(point: str, gang: StartGang) -> None:
    rank_and_coordinator(point, gang)


@pytest.mark.long
@pytest.mark.parametrize("point", COORDINATOR_SLOW, ids=map(name, COORDINATOR_SLOW))
def test_ep12_ep19_a_rank_and_the_coordinator_also_at(point: str, gang: StartGang) -> None:
    rank_and_coordinator(point, gang)


def rank_and_coordinator(point: str, gang: StartGang) -> None:
    g = gang(faults=(DEATH,), coordinator_deaths=(point,))
    g.wait_for_faults()
    g.wait_until_whole()
    g.check()


@pytest.mark.long
@pytest.mark.parametrize("point", COORDINATOR_ALONE, ids=map(name, COORDINATOR_ALONE))
def test_ep12_ep19_the_coordinator_alone_dies_at(point: str, gang: StartGang) -> None:
    """While the first generation forms, and when the ranks say that they have finished."""
    g = gang(coordinator_deaths=(point,))
    g.hurry()
    g.check()


@pytest.mark.long
def test_ep12_ep19_the_coordinator_dies_twice(gang: StartGang) -> None:
    g = gang(faults=(DEATH,), coordinator_deaths=("record:prepare#2", "record:prepare#1"))
    g.wait_for_faults()
    g.wait_until_whole()
    g.check()


@pytest.mark.parametrize("ranks", [pytest.param((0, 1), marks=pytest.mark.long), (1, 2)], ids=["one-host", "two-hosts"])
def test_ep19_two_ranks_at_once(ranks: tuple[int, int], gang: StartGang) -> None:
    g = gang()
    g.wait_for_step(20)
    g.kill(*ranks)
    g.wait_until_whole()
    g.check()


@pytest.mark.parametrize("step", [pytest.param(20, marks=pytest.mark.long), 70], ids=["from-nothing", "from-a-checkpoint"])
def test_ep10_all_ranks_at_once(step: int, gang: StartGang) -> None:
    """Nobody is left who holds the state: the gang is formed anew from the newest checkpoint, or from nothing."""
    g = gang()
    g.wait_for_step(step)
    members = g.members()
    g.kill(*range(WORLD))
    old = {member["pid"] for member in members.values()}
    g.wait_for("a gang of new processes", lambda: old.isdisjoint(m["pid"] for m in g.members().values()))
    g.wait_until_whole()
    resumed = g.events("resumed")
    assert [event["step"] for event in resumed] == ([] if step < 50 else [50])
    g.check()


@pytest.mark.parametrize("host", ["host-2", pytest.param("host-1", marks=pytest.mark.long)])
def test_ep14_a_host_is_lost(host: str, gang: StartGang) -> None:
    """Its ranks, its spare and its agent die at once; another host takes its place."""
    g = gang()
    g.wait_for_step(20)
    survivors = {m["pid"] for m in g.members().values() if m["host"] != host}
    g.lose_host(host)
    g.wait_until_whole()
    assert survivors <= {m["pid"] for m in g.members().values()}
    assert {m["host"] for m in g.members().values()}.isdisjoint({host})
    g.check()


@pytest.mark.long
def test_ep14_a_host_is_lost_and_a_rank_of_the_other(gang: StartGang) -> None:
    g = gang()
    g.wait_for_step(20)
    g.lose_host("host-2")
    g.kill(1)
    g.wait_until_whole()
    g.check()


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 3], ids=["of-that-host", "of-the-other"])
def test_ep14_an_agent_and_then_a_rank(rank: int, gang: StartGang) -> None:
    g = gang()
    g.wait_for_step(20)
    g.kill_agent("host-1")
    g.kill(rank)
    g.wait_until_whole()
    g.check()


@pytest.mark.long
def test_ep14_a_rank_and_then_the_agent_that_should_tell(gang: StartGang) -> None:
    """The death is seen by nobody but the next agent."""
    g = gang()
    g.wait_for_step(20)
    g.signal_agent("host-1", signal.SIGSTOP)
    g.kill(0)
    g.kill_agent("host-1")
    g.wait_until_whole()
    g.check()


@pytest.mark.long
@pytest.mark.parametrize("victims", ["coordinator-agent", "agent-coordinator-rank"])
def test_ep12_ep14_the_whole_control_plane(victims: str, gang: StartGang) -> None:
    g = gang()
    g.wait_for_step(20)
    g.kill_agent("host-1")
    g.kill_coordinator()
    if victims.endswith("rank"):
        g.kill(1)
        g.wait_until_whole()
    else:
        g.wait_for("the next coordinator", lambda: len(g.events("coordinator_started")) == 2)
        g.wait_for_step(g.step() + 10)
    g.check()


@pytest.mark.long
def test_ep19_one_kill_after_the_other(gang: StartGang) -> None:
    """Every rank in turn, whatever the gang is doing at that moment."""
    g = gang()
    for turn in range(6):
        g.wait_for_step(15 * (turn + 1))
        g.wait_for("four ranks", lambda: len(g.members()) == WORLD)
        g.kill(turn % WORLD)
    g.wait_until_whole()
    g.check()
