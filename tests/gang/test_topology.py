"""CC-9: gangs whose hosts have cables of different speed: groups are found, told and remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import Lab, can_run
from orchestrator.explain_topology import explain
from orchestrator.records import Record, read_events
from tests.gang.harness import Gang
from tests.gang.lab import LabGang

pytestmark = pytest.mark.timeout(400)

StartGang = Callable[..., LabGang]
SLOW = 20.0  # Mbit/s


@pytest.fixture
def lab_gang(zygote: str, tmp_path: Path) -> Iterator[StartGang]:
    """A gang of one rank per host in a lab in which the cables of the hosts `slow` are."""
    if reason := can_run():
        pytest.skip(reason)
    started: list[LabGang] = []

    def start(hosts: int, slow: tuple[int, ...], **settings: Any) -> LabGang:
        lab = Lab(hosts)
        lab.__enter__()
        started.append(LabGang(zygote, tmp_path, lab=lab, hosts=hosts, ranks_per_host=1, epochs=5, **settings))
        for index in slow:
            lab.set_rate(SLOW, index)
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        try:
            each.clear()
        finally:
            each.lab.__exit__(None, None, None)


def addresses(gang: Gang) -> dict[str, str]:
    """By host."""
    return {event["host"]: event["address"] for event in gang.events("host_up")}


def ring(generation: Record) -> list[str]:
    return [member["host"] for member in generation["members"]]


@pytest.mark.root
@pytest.mark.parametrize("told", [{}, {"site": 2}])
def test_cc9_the_probe_finds_the_hosts_with_fast_links(told: dict[str, int], lab_gang: StartGang) -> None:
    """And puts them next to each other in the ring; a cluster takes the name that one of its hosts was told."""
    groups = {group: [f"10.77.0.{index + 1}"] for group, index in told.items()}
    g = lab_gang(4, slow=(1, 3), spares=0, hosts_min=4, topology={"probe": True, "groups": groups})
    g.hurry()
    g.check()
    at = {address: host for host, address in addresses(g).items()}
    hosts = [at[address] for address in g.addresses]
    (event,) = g.events("topology")
    assert (event["measured"], event["failures"]) == (6, [])
    fast = next(iter(told), event["groups"][hosts[0]])
    assert event["groups"][hosts[0]] == event["groups"][hosts[2]] == fast
    assert fast not in (event["groups"][hosts[1]], event["groups"][hosts[3]], "")
    made = ring(g.events("generation")[0])
    assert abs(made.index(hosts[0]) - made.index(hosts[2])) == 1
    assert [event["groups"][host] for host in made] == sorted(event["groups"].values())
    assert "6 of 6 links between hosts measured" in explain("gang", read_events(g.folder))


def test_cc9_groups_survive_the_coordinator(gang: Callable[..., Gang]) -> None:
    """The ring is the same after a restart of the coordinator and the next change of members."""
    groups = {"a": ["127.0.0.4"], "b": ["127.0.0.2"], "c": ["127.0.0.3", "10.0.0.9"]}
    g = gang(hosts=3, hosts_min=3, ranks_per_host=1, topology={"groups": groups}, epochs=30)
    g.wait_for_step(2)
    known = addresses(g)
    expected = ["127.0.0.4", "127.0.0.2", "127.0.0.3"]
    assert [known[host] for host in ring(g.events("generation")[0])] == expected
    (warning,) = g.events("topology_warning")
    assert warning["message"].startswith("topology.groups names 10.0.0.9, which no host of the job has")
    g.kill_coordinator()
    state = g.wait_for("the answer of the next coordinator", g.status)
    assert {host["address"]: host["group"] for host in state["hosts"]} == {
        "127.0.0.2": "b",
        "127.0.0.3": "c",
        "127.0.0.4": "a",
    }
    g.kill(1)
    g.wait_until_whole()
    assert [known[host] for host in ring(g.events("generation")[-1])] == expected
    assert len(g.events("topology_warning")) == 1
    g.hurry()
    g.check()


@pytest.mark.root
def test_cc9_a_host_that_comes_back_has_the_group_that_the_probe_found(lab_gang: StartGang) -> None:
    """It is the host that it was, once it has passed the host test; nothing is measured again."""
    g = lab_gang(3, slow=(2,), spares=1, hosts_min=2, topology={"probe": True})
    g.wait_for_step(2)
    (event,) = g.events("topology")
    lost = next(host for host, address in addresses(g).items() if address == g.addresses[0])
    assert event["groups"][lost]
    g.set_nodes(g.addresses[1:])
    g.remove(lost)
    g.wait_for("the loss of the host", lambda: g.events("host_lost"))
    g.set_nodes(g.addresses)
    g.wait_until_whole()
    back = g.events("host_up")[-1]
    assert (back["host"], back["address"], back["group"]) == (lost, g.addresses[0], event["groups"][lost])
    assert [(test["host"], test["passed"]) for test in g.events("host_test")] == [(lost, True)]
    near = next(host for host, address in addresses(g).items() if address == g.addresses[1])
    made = ring(g.events("generation")[-1])
    assert abs(made.index(back["host"]) - made.index(near)) == 1
    g.hurry()
    g.check()
    assert len(g.events("topology")) == 1


@pytest.mark.parametrize(
    "death",
    [
        pytest.param("before:MeasureLinks#1", marks=pytest.mark.long),
        "after:MeasureLinks#1",
        pytest.param("record:topology#1", marks=pytest.mark.long),
    ],
)
def test_cc9_a_coordinator_that_dies_in_the_probe_keeps_no_job_from_starting(death: str, gang: Callable[..., Gang]) -> None:
    """Its successor probes again."""
    g = gang(ranks_per_host=1, hosts_min=2, spares=0, topology={"probe": True}, epochs=5, coordinator_deaths=(death,))
    g.wait_for_faults()
    g.hurry()
    g.check()
    assert len(g.events("topology")) == (2 if death.startswith("record") else 1)
    assert len(g.events("generation")) == 1
