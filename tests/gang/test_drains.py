"""Hosts that will be taken away, in a gang of real processes (GM-38)."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.gang.harness import Gang

StartGang = Callable[..., Gang]


def hosts(g: Gang, kind: str) -> list[str]:
    return [str(event["host"]) for event in g.events(kind)]


def test_gm38_notices_of_one_second_are_one_change_of_members_that_discards_nothing(gang: StartGang) -> None:
    """By Ray and by SIGTERM. What the hosts owe is handed over; the one whose node Ray drains no more is back at once."""
    g = gang(hosts=3, ranks_per_host=1, spares=0, codec="topk 0.05", epochs=40)
    g.wait_until_measured()
    leavers = {str(member["worker"]) for member in g.members().values() if member["host"] != "host-1"}
    g.drain_nodes({"host-2": 0.0})
    g.signal_agent("host-3", signal.SIGTERM)
    g.wait_for("their end", lambda: len(g.events("host_left")) == 2)
    notices = {str(event["host"]): event for event in g.events("drain_notice")}
    assert {host: event["source"] for host, event in notices.items()} == {"host-2": "ray", "host-3": "agent"}
    assert {event["code"] for event in notices.values()} == {"DRAIN"}
    assert all(event["deadline"] - event["heard"] == 30.0 for event in notices.values())
    assert all(notices[str(left["host"])]["t"] < left["t"] for left in g.events("host_leaves"))
    first, alone = g.events("generation")
    assert ([m["host"] for m in alone["members"]], len(first["members"]), alone["discarded"]) == (["host-1"], 3, 0)
    assert {str(event["worker"]) for event in g.events("residual_handed_over")} == leavers and len(leavers) == 2
    g.drain_nodes({})
    g.wait_for("host-2", lambda: {member["host"] for member in g.members().values()} == {"host-1", "host-2"})
    assert sorted(hosts(g, "host_up")) == ["host-1", "host-2", "host-2", "host-3"]
    g.check()
    assert [event for event in g.events("verdict") if event["act"] == "evict"] == [] == g.events("host_lost")


def test_gm38_a_notice_outlives_the_coordinator_that_has_heard_it(gang: StartGang) -> None:
    """It dies before it has told the host to leave."""
    g = gang(coordinator_deaths=("record:drain_notice#1",), spares=0, epochs=40)
    g.wait_until_measured()
    g.signal_agent("host-2", signal.SIGTERM)
    g.wait_for("the end of host-2", lambda: g.events("host_left"))
    heard = {(event["host"], event["heard"], event["deadline"]) for event in g.events("drain_notice")}
    assert len(heard) == 1 and {host for host, _, _ in heard} == {"host-2"}
    step = g.step()
    g.wait_for_step(step + 10)
    assert {member["host"] for member in g.members().values()} == {"host-1"}  # its node is not taken again so soon
    g.check()


def test_gm38_gm35_who_alone_has_the_state_saves_it_and_stays(gang: StartGang) -> None:
    g = gang(hosts=1, spares=0, checkpoint_every=0, epochs=40)
    g.wait_until_measured()
    g.signal_agent("host-1", signal.SIGTERM)
    saved = g.wait_for("a checkpoint", lambda: g.events("checkpoint"))
    (leaves,) = g.events("host_leaves")
    assert saved[0]["tier"] == "exact" and leaves["t"] < saved[0]["t"]
    g.wait_for_step(g.step() + 10)
    assert g.events("host_left") == [] and len(g.events("generation")) == 1
    g.check()
