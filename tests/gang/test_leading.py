"""Gangs with hosts that lead others to the coordinator, or hear them beside it (GM-4, GM-18)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.gang.harness import Gang

StartGang = Callable[..., Gang]

GROUPS = {"group": 2}
ALL_LED = {"group": 2, "streams": 4}

NOTICED_SECONDS = 1.0
"""GM-4, by the coordinator's clock."""


def ways(g: Gang) -> dict[str, str]:
    """By host: whose stream it hangs on."""
    state = g.status()
    return {str(host["host"]): str(host["through"]) for host in state["hosts"]} if state else {}


def are_led(g: Gang, hosts: int) -> bool:
    return sum(bool(leader) for leader in ways(g).values()) == hosts


def test_gm4_a_leader_that_dies_is_replaced_and_training_goes_on(gang: StartGang) -> None:
    g = gang(hosts=4, ranks_per_host=1, spares=0, groups=GROUPS)
    g.wait_for("a leader of each group", lambda: len(g.events("leader")) == 2)
    leader = str(g.events("leader")[0]["host"])
    g.wait_for_step(3)
    g.kill_agent(leader)
    after = g.wait_for("another leader", lambda: g.events("leader")[2:])[0]
    lost = g.events("leader_lost")[0]
    assert (lost["host"], lost["code"]) == (leader, "GROUP_LEADER_LOST")
    assert after["host"] != leader and after["t"] - lost["t"] <= NOTICED_SECONDS
    g.wait_for("its agent", lambda: g.events("agent_back"))
    g.wait_for_step(g.step() + 5)
    assert not any(ways(g).values())  # four hosts are few enough for streams of their own
    g.hurry()
    g.check()
    assert len(g.events("generation")) == 1 and g.events("host_lost") == []


@pytest.mark.parametrize("plaintext", ["anywhere", "never"])
def test_gm4_a_job_that_reaches_its_coordinator_through_leaders_survives_what_others_do(
    gang: StartGang, plaintext: str
) -> None:
    """The death of a rank, of a leader's agent, and of the coordinator."""
    g = gang(hosts=4, ranks_per_host=1, spares=1, groups=ALL_LED, security={"plaintext": plaintext}, epochs=25)
    g.wait_for("half of the hosts are led", lambda: are_led(g, 2))
    assert g.events("agent_lost") == []
    led = next(host for host, leader in ways(g).items() if leader)
    g.kill(next(rank for rank, member in g.members().items() if member["host"] == led))
    g.wait_until_whole()
    g.kill_agent(ways(g)[led])
    g.wait_for("another leader", lambda: len(g.events("leader")) == 3)
    g.wait_for("all agents", lambda: len(g.events("agent_back")) == len(g.events("agent_lost")) > 0)
    g.wait_for_step(g.step() + 3)
    assert len(g.events("generation")) == 3  # the first, that without the rank, that with it: a leader is no member
    g.kill_coordinator()
    g.wait_for("its successor", lambda: len(g.events("coordinator_started")) == 2)
    g.wait_for("half of the hosts are led again", lambda: are_led(g, 2))
    g.hurry()
    g.check()
    assert g.events("host_lost") == []
