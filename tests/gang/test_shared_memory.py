"""CC-2: the memory that the ranks of a host share, from a rank's start to its end, on real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.records import Record
from tests.gang.harness import WORLD, Gang, read_json_lines

StartGang = Callable[..., Gang]


def kill(gang: Gang, rank: int) -> Path:
    """kill -9, until its agent has told of it; the file that it had."""
    member, path = gang.members()[rank], gang.memory(rank)
    assert path.exists()
    gang.kill(rank)
    gang.wait_for("news of its end", lambda: [e for e in gang.events("worker_exit") if e["pid"] == member["pid"]])
    return path


def greetings(gang: Gang) -> dict[tuple[int, int], dict[int, Record]]:
    """By generation and rank: what a rank has found out through the memory of its host."""
    found: dict[tuple[int, int], dict[int, Record]] = {}
    for path in (gang.folder / "greetings").iterdir():
        for line in read_json_lines(path):
            found.setdefault(tuple(line["generation"]), {})[line["rank"]] = line
    return found


def check_greetings(gang: Gang, without: tuple[str, ...] = ()) -> int:
    """In each generation the members of a host, and nobody else, have met; how many generations were complete."""
    found, complete = greetings(gang), 0
    for made in gang.events("generation"):
        met = found.get(tuple(made["generation"]), {})
        complete += set(met) == {m["rank"] for m in made["members"]}
        ranks = {host: [m["rank"] for m in made["members"] if m["host"] == host] for host in ("host-1", "host-2")}
        shared = any(len(each) > 1 for host, each in ranks.items() if host not in without)
        for line in met.values():
            mine = ranks[line["host"]]
            expected = (len(mine), sum(mine)) if shared and line["host"] not in without else (None, None)
            assert (line["world"], line["sum"]) == expected, (made, line)
    return complete


def test_cc2_a_file_lives_as_long_as_its_rank(gang: StartGang) -> None:
    """Also under a coordinator that knows of the memory only from what the agents tell it."""
    g = gang(greet=True)
    g.wait_for("all processes", lambda: len(list(g.memory_folder.glob("*.memory"))) == WORLD + 2)
    g.wait_for_step(10)
    others = [g.memory(rank) for rank in (0, 2, 3)]
    gone = kill(g, 1)
    assert not gone.exists()
    assert all(path.exists() for path in others)
    g.wait_until_whole()
    assert g.memory(1).exists() and g.memory(1) != gone
    g.kill_coordinator()
    g.wait_for("the next coordinator", lambda: len(g.events("coordinator_started")) == 2)
    g.wait_for_step(g.step() + 5)
    gone = kill(g, 2)
    assert not gone.exists()
    g.wait_until_whole()
    assert all(g.memory(rank).exists() for rank in range(WORLD))
    g.wait_for_step(g.step() + 5)
    g.check()
    assert g.left_memory == []
    assert check_greetings(g) >= 3
    assert g.events("shared_memory") == []


def test_cc2_a_generation_that_comes_to_nothing_is_followed_by_another(gang: StartGang) -> None:
    """Rank 2 dies in the second generation, when it shares memory and the others wait for its connection."""
    g = gang(greet=True, faults=("step_begin@rank=1,step=20=kill", "in_connect@rank=2,generation=2=kill"))
    g.wait_for_faults()
    g.wait_until_whole()
    g.wait_for_step(g.step() + 5)
    g.check()
    assert g.left_memory == []
    assert check_greetings(g) >= 2


def test_cc2_a_host_without_room_says_so_and_trains(gang: StartGang) -> None:
    g = gang(greet=True, full=("host-2",))
    g.wait_for_step(10)
    hosts = {rank: member["host"] for rank, member in g.members().items()}
    assert sorted(hosts.values()) == ["host-1", "host-1", "host-2", "host-2"]
    assert {rank for rank in hosts if g.memory(rank).exists()} == {r for r, host in hosts.items() if host == "host-1"}
    kill(g, min(rank for rank, host in hosts.items() if host == "host-1"))
    g.wait_until_whole()
    g.wait_for_step(g.step() + 5)
    g.check()
    assert check_greetings(g, without=("host-2",)) >= 2
    told = g.events("shared_memory")
    assert [event["host"] for event in told] == ["host-2"] * 3  # its two ranks and its spare, once each
    for event in told:
        assert event["message"].startswith("/dev/shm has ")
        assert event["message"].endswith("; until then its ranks go through sockets")
