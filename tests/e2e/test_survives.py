"""kill -9 of each part of a running job, and what the others notice of it (EP-12, EP-13, EP-14).

One job on two embedded hosts runs through the whole module; each test begins when it is whole.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orchestrator import reaper, status
from orchestrator.embedded import HEAD_ADDRESS
from tests.e2e.gang import Gang, is_alive, kill
from workers.paths import runtime_dir

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

RANKS, SPARES = 4, 2


@pytest.fixture(scope="module")
def gang(start: Callable[..., Gang], paced_job: Path) -> Gang:
    return start(paced_job, name="paced")


def test_status_shows_every_rank(gang: Gang) -> None:
    members = gang.until_full(RANKS, SPARES)
    told = gang.command("status", "paced", "--json", "--storage", gang.storage)
    assert told.returncode == 0, told.stdout
    state = json.loads(told.stdout)
    assert {r["rank"]: r["pid"] for r in state["ranks"] if r["rank"] >= 0} == members
    assert {host["address"] for host in state["hosts"]} == {"127.0.0.2", "127.0.0.3"}
    coordinator = status.read_coordinator(gang.folder)
    assert coordinator is not None and coordinator.address.startswith(f"{HEAD_ADDRESS}:")
    assert (state["phase"], state["answering"]) == ("training", True)


def test_a_second_job_of_the_name_is_refused(gang: Gang, start: Callable[..., Gang], paced_job: Path) -> None:
    gang.until_full(RANKS, SPARES)
    second = start(paced_job, name="paced")
    assert second.end() == 8
    assert re.fullmatch(r"quantarion: a job named paced is running in .*; choose another name .*\n", second.output)
    gang.until_more(3)


def test_ep12_training_goes_on_without_the_coordinator(gang: Gang, record_property: Callable[..., None]) -> None:
    members = gang.until_full(RANKS, SPARES)
    coordinator = gang.coordinator()
    os.kill(coordinator, signal.SIGSTOP)  # away for as long as we want: Ray restarts only what is dead
    before = gang.until_more(20)
    meanwhile = [step for step in gang.steps() if step["step"] > before]
    assert {step["ranks"] for step in meanwhile} == {RANKS}
    victim = kill([members[3]])  # nobody is there to handle it
    gone = kill([coordinator])
    back = gang.until_event("coordinator_started", gone, recovered=True)
    handled = gang.until_event("generation", gone)
    record_property("coordinator_back_seconds", back["t"] - gone)
    record_property("death_while_away_handled_seconds", handled["t"] - victim)
    assert members[3] not in {member["pid"] for member in handled["members"]}
    now = gang.until_full(RANKS, SPARES)
    assert {rank: now[rank] for rank in (0, 1, 2)} == {rank: members[rank] for rank in (0, 1, 2)}

    later = kill([now[1]])
    gang.until_event("recovered", later, rank=1)
    whole = gang.until_full(RANKS, SPARES)
    assert {rank: whole[rank] for rank in (0, 2, 3)} == {rank: now[rank] for rank in (0, 2, 3)}


def test_ep14_the_death_of_an_agent_changes_nothing(gang: Gang, record_property: Callable[..., None]) -> None:
    members = gang.until_full(RANKS, SPARES)
    state = gang.status()
    assert state is not None
    host = state["hosts"][1]
    gone = kill([host["agent_pid"]])
    back = gang.until_event("agent_back", gone, host=host["host"])
    record_property("agent_back_seconds", back["seconds"])
    gang.until_more(10)
    assert gang.until_full(RANKS, SPARES) == members
    after = gang.status()
    assert after is not None and after["generation"] == state["generation"]
    told = {event["kind"] for event in gang.events(since=gone)}
    assert not told & {"host_lost", "worker_exit", "prepare", "generation"}


def test_a_lost_host_comes_back(gang: Gang, record_property: Callable[..., None]) -> None:
    members = gang.until_full(RANKS, SPARES)
    raylets = {marked.host.partition("#")[0]: marked.pid for marked in gang.marked() if _is_raylet(marked)}
    state = gang.status()
    assert state is not None
    victim = next(host for host in state["hosts"] if host["address"] == "127.0.0.3")
    survivors = {r["rank"]: r["pid"] for r in state["ranks"] if r["rank"] >= 0 and r["host"] != victim["host"]}
    assert len(survivors) == RANKS // 2
    gone = kill([raylets["127.0.0.3"]])
    gang.until_event("host_lost", gone, host=victim["host"])
    smaller = gang.until_event("generation", gone)
    assert {m["rank"]: m["pid"] for m in smaller["members"]} == survivors
    up = gang.until_event("host_up", gone)
    back = gang.until_event("rank_back", gone, world=RANKS)
    record_property("world_full_after_host_up_seconds", back["t"] - up["t"])
    whole = gang.until_full(RANKS, SPARES)
    assert survivors.items() <= whole.items()
    assert not any(is_alive(pid) for rank, pid in members.items() if rank not in survivors)


def test_ctrl_c_finishes_the_step_and_saves(gang: Gang) -> None:
    gang.until_full(RANKS, SPARES)
    gang.signal(signal.SIGINT)
    assert gang.end() == 130, gang.describe()
    assert gang.left_over() == []
    assert not runtime_dir(gang.name, gang.folder).exists()
    last = gang.last_step()
    assert gang.events("checkpoint")[-1]["step"] == last
    assert "press Ctrl-C again" in gang.output and "Traceback" not in gang.output
    assert gang.output.rstrip().splitlines()[-1].startswith("stopped: ")
    audited = gang.command("audit", gang.folder)
    assert audited.returncode == 0 and "audit: each sample once" in audited.stdout, audited.stdout
    report = json.loads((gang.folder / "report.json").read_text())
    assert report["samples"]["each_once"] is True
    assert report["world"]["max"] == RANKS
    kinds = {incident["kind"] for incident in report["incidents"]}
    assert {"worker_killed", "coordinator_lost", "agent_lost", "host_lost"} <= kinds


def _is_raylet(marked: reaper.Marked) -> bool:
    return bool(marked.host) and psutil.Process(marked.pid).name() == "raylet"
