"""CC-4, CC-7, CC-10: gangs whose gradients travel encoded, killed and stopped in the middle of it.

`Gang.check` compares the digests of equal states, in which the Q of PowerSGD is too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator import operator_commands
from tests.codecs import CODECS
from tests.gang.harness import IMPATIENT, Gang
from workers.compression.controller.ladder import rung

StartGang = Callable[..., Gang]

KILLS = {
    "in_exchange": "in_exchange@rank=3,step=20,bucket=1=kill",
    "before_apply": "before_apply@rank=1,step=21=kill",
    "after_apply_alone": "after_apply_alone@rank=0,step=22=kill",
}


def run_with(fault: str, gang: StartGang, codec: str, **settings: object) -> Gang:
    g = gang(faults=(fault,), codec=codec, **settings)
    g.wait_for_faults()
    g.wait_until_whole()
    g.check()
    return g


@pytest.mark.parametrize("point", KILLS)
@pytest.mark.parametrize("codec", ["int8", pytest.param("powersgd 2", marks=pytest.mark.long)])
def test_cc7_kill_in_the_middle_of_a_step(codec: str, point: str, gang: StartGang) -> None:
    run_with(KILLS[point], gang, codec)


def test_cc12_what_a_killed_rank_owed_is_logged(gang: StartGang) -> None:
    g = run_with("step_begin@rank=2,step=35=kill", gang, "topk 0.05")
    (lost,) = g.events("residual_lost")
    (left,) = [event for event in g.events("worker_exit") if event["signal"] == 9]
    assert lost["worker"] == left["worker"] and lost["residual_lost_norm"] > 0.01


def test_cc12_what_a_drained_host_owes_goes_to_those_that_stay(gang: StartGang) -> None:
    g = gang(codec="topk 0.05")
    g.wait_for_step(35)
    leavers = {str(member["worker"]) for member in g.members().values() if member["host"] == "host-2"}
    assert operator_commands.drain("gang", "host-2", "new kernel", g.storage) == 0
    g.wait_for("its end", lambda: g.events("host_left"))
    handed = g.events("residual_handed_over")
    assert {event["worker"] for event in handed} == leavers and len(leavers) == 2
    assert len({event["heir"] for event in handed}) == 2  # each to another
    assert all(event["residual_norm"] > 0 for event in handed) and g.events("residual_lost") == []
    g.check()


@pytest.mark.long
@pytest.mark.parametrize("point", KILLS)
@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec not in ("int8", "powersgd 2")])
def test_cc7_kill_in_the_middle_of_a_step_other_codecs(codec: str, point: str, gang: StartGang) -> None:
    run_with(KILLS[point], gang, codec)


@pytest.mark.long
@pytest.mark.parametrize("codec", CODECS)
def test_cc7_stop_in_the_middle_of_an_exchange(codec: str, gang: StartGang) -> None:
    run_with("in_exchange@rank=1,step=20,bucket=0=stop", gang, codec, limits=IMPATIENT)


@pytest.mark.parametrize("policy", ["adaptive", "latency_ladder"])
def test_cc20_all_ranks_decide_alike_and_so_do_those_that_join(policy: str, gang: StartGang) -> None:
    """The controller's state is part of the digests."""
    g = run_with("after_apply_alone@rank=0,step=60=kill", gang, "none", policy=policy)
    plans = g.events("compression_plan")
    assert len({plan["step"] for plan in plans}) >= 4
    if policy == "latency_ladder":
        for plan in plans[1:]:  # after the dense start, whatever this machine makes of a round trip
            assert plan["plan"] == [str(rung(plan["round_trip"]))] * len(plan["plan"])


@pytest.mark.parametrize("codec", ["topk 0.05"])
def test_cc4_ranks_of_one_host_and_of_none_shared(codec: str, gang: StartGang) -> None:
    """One host has no room for shared memory: its ranks send and receive as if each were a host."""
    g = gang(codec=codec, full=("host-1",))
    g.hurry()
    g.check()
