"""GM-37 on real processes: a spare host takes the place of a lost one, without a new host having to come."""

from __future__ import annotations

from collections.abc import Callable

from tests.gang.harness import Gang

StartGang = Callable[..., Gang]


def training(g: Gang) -> set[str]:
    return {str(member["host"]) for member in g.members().values()}


def spare(g: Gang) -> str:
    """The only one, once it is ready; which of the hosts that is depends on who is up first."""

    def look() -> list[str]:
        state = g.status()
        return [str(host["host"]) for host in state["hosts"] if host["state"] == "spare"] if state else []

    (found,) = g.wait_for("the spare host", look)
    return found


def test_gm37_a_spare_host_joins_when_another_is_lost(gang: StartGang) -> None:
    """`Gang.check` asserts that every sample is in one step, and that equal states have equal digests."""
    g = gang(hosts=2, nodes=3, spare_hosts=1, ranks_per_host=1, spares=0)
    g.wait_for_step(10)
    waits, victim = spare(g), min(training(g))
    assert len(training(g)) == 2 and waits not in training(g)
    g.lose_host(victim, replace=False)
    g.wait_for("the spare host to join", lambda: len(training(g)) == 2 and waits in training(g))
    (lost,), joined = g.events("host_lost"), g.events("generation")[-1]
    assert lost["host"] == victim
    assert joined["t"] - lost["t"] < 10.0
    assert {event["host"] for event in g.events("host_up")} == {"host-1", "host-2", "host-3"}
    g.check()


def test_gm37_a_spare_host_that_falls_silent_is_given_up(gang: StartGang) -> None:
    g = gang(hosts=1, nodes=2, spare_hosts=1, ranks_per_host=1, spares=0)
    g.wait_for_step(10)
    waits = spare(g)
    g.set_nodes([])  # nobody comes in its place
    g.stop_host(waits)
    g.wait_for("its end", lambda: [event["host"] for event in g.events("host_lost")] == [waits])
    assert len(g.events("generation")) == 1
    g.check()
