"""The rules that only show between processes, each by its id: EP-5 to EP-16 and EP-18. The rest is in `test_step.py`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import copy
from pathlib import Path

import pytest

from orchestrator import status
from orchestrator.records import Record
from tests.gang.harness import IMPATIENT, WORLD, Gang, read_json_lines

StartGang = Callable[..., Gang]

PATIENT = {"prepare": 60.0, "patience": 60.0}
"""Nobody loses patience with a rank that the test has stopped and will let go on."""


def lines_of(g: Gang, step: int) -> list[Record]:
    """Everything that was written about a step, superseded or not."""
    return [line for line in read_json_lines(g.folder / "steps.jsonl") if line["step"] == step]


def how(g: Gang, rank: int) -> list[str]:
    """How a rank came into each of its generations."""
    return [str(event["how"]) for event in g.events("running") if event["rank"] == rank]


# ---------------------------------------------------------------------- commit, abort, authority


def test_ep5_ep9_whoever_has_the_reduced_buckets_commits_and_the_others_catch_up(gang: StartGang) -> None:
    """Three ranks apply step 20 while the fourth stands still before it: that stands, and it fetches the buckets."""
    g = gang(faults=("before_apply@rank=3,step=20=stop",), limits=PATIENT)
    bell = g.wait_until_stopped(3)
    g.wait_for("the others' commits", lambda: all(g.page_step(rank) == 20 for rank in range(3)))
    g.kill(1)
    g.go_on(3, bell)
    g.wait_until_whole()
    second = g.events("generation")[1]
    assert (second["authority_step"], len(second["members"])) == (20, 3)
    assert how(g, 3)[1] == "caught_up"
    assert [line["generation"] for line in lines_of(g, 20)] == [[1, 1]]
    g.check()


def test_ep10_a_step_that_only_the_dead_had_applied_is_computed_again(gang: StartGang) -> None:
    """Same samples, next attempt; the dead writer's line stays in the file and no longer counts."""
    g = gang(faults=tuple(f"before_apply@rank={rank},step=20=stop" for rank in (1, 2, 3)), limits=PATIENT)
    bells = {rank: g.wait_until_stopped(rank) for rank in (1, 2, 3)}
    g.wait_for_step(20)
    g.kill(0)
    for rank, bell in bells.items():
        g.go_on(rank, bell)
    g.wait_until_whole()
    assert g.events("generation")[1]["authority_step"] == 19
    g.check()
    first, again = lines_of(g, 20)
    assert (first["generation"], first["attempt"], first["ranks"]) == ([1, 1], 0, 4)
    assert again["generation"] > [1, 1] and again["attempt"] > 0
    assert again["lineage"] != first["lineage"]


def test_ep7_ep8_a_stopped_rank_is_killed_and_nobody_hangs_in_its_exchange(gang: StartGang) -> None:
    """gloo shows no error while the peer lives: the others abandon the operation, and the agent answers for nobody."""
    g = gang(faults=("in_exchange@rank=1,step=20,bucket=0=stop",), limits=IMPATIENT)
    g.wait_for_faults()
    g.wait_until_whole()
    (exit_,) = g.events("worker_exit")
    assert (exit_["rank"], exit_["status"]) == (1, -9)
    assert not any(m["pid"] == exit_["pid"] for m in g.events("generation")[1]["members"])
    g.check()


def test_ep11_what_one_rank_alone_runs_into_costs_that_rank(gang: StartGang) -> None:
    """The task raises in a backward pass: that process leaves, its spare takes over, the step is computed again."""
    g = gang(faults=("in_backward@rank=2,step=20=raise",))
    g.wait_until_whole()
    (error,) = g.events("task_error")
    assert (error["rank"], error["step"]) == (2, 19)
    assert g.events("generation")[1]["authority_step"] == 19
    assert not (g.folder / "traceback.txt").exists()
    g.check()


def test_ep11_a_broken_apply_is_healed_in_place(gang: StartGang) -> None:
    g = gang(faults=("in_apply@rank=2,step=20=raise",))
    g.wait_until_whole()
    assert how(g, 2)[1] == "healed"
    first, second = g.events("generation")
    assert [m["pid"] for m in first["members"]] == [m["pid"] for m in second["members"]]
    g.check()
    assert len(g.events("apply_failed")) == 1


@pytest.mark.parametrize("step", [pytest.param(20, marks=pytest.mark.long), 70], ids=["from-nothing", "from-a-checkpoint"])
def test_ep11_an_unhealed_rank_is_no_authority_even_alone(step: int, gang: StartGang) -> None:
    """All others die as they promise: the job goes back to its checkpoint, or to the model as it was built."""
    deaths = (f"after_prepared@rank={rank},generation=1=kill" for rank in (0, 1, 3))
    g = gang(faults=(f"in_apply@rank=2,step={step}=raise", *deaths))
    g.wait_for_faults()
    g.wait_until_whole()
    assert 0 in [event["authority_step"] for event in g.events("generation")[1:]]
    assert [event["step"] for event in g.events("resumed")] == ([] if step < 50 else [50])
    g.check()


# ---------------------------------------------------------------------- coordinator and agents


def test_ep12_training_goes_on_without_a_coordinator(gang: StartGang, undisturbed: str) -> None:
    g = gang()
    g.wait_for_step(20)
    g.kill_coordinator(hold=True)
    g.wait_for_step(g.step() + 20)
    g.release("coordinator")
    g.wait_for("the next coordinator", lambda: len(g.events("coordinator_started")) == 2)
    g.check(same_as=undisturbed)
    assert len(g.events("generation")) == 1


def test_ep12_a_death_while_the_coordinator_is_away(gang: StartGang) -> None:
    g = gang()
    g.wait_for_step(20)
    g.kill_coordinator(hold=True)
    g.kill(2)
    g.release("coordinator")
    g.wait_until_whole()
    assert g.events("generation")[1]["generation"] == [2, 1]
    g.check()


def test_ep13_training_is_held_below_hosts_min(gang: StartGang) -> None:
    """At the start, and again when a host is lost: nothing is trained until another one is there."""
    g = gang(hosts_min=2, nodes=1)
    (waiting,) = g.wait_for("the waiting state", lambda: g.events("waiting"))
    assert "waiting for 1 more host" in waiting["message"]
    assert g.processes("agent") == []
    g.set_nodes(["127.0.0.2", "127.0.0.3"])
    g.wait_for_step(20)
    g.lose_host("host-2", replace=False)
    g.wait_for("the hold", lambda: (status.fetch(g.folder, driver=True) or {"phase": ""})["phase"] == "waiting")
    held_at = g.step()
    g.set_nodes(["127.0.0.2", "127.0.0.4"])
    g.wait_until_whole()
    assert min(line["ranks"] for line in read_json_lines(g.folder / "steps.jsonl")) > 2  # a host alone has two
    assert g.step() >= held_at
    g.check()


def test_ep14_an_agent_dies_and_nobody_is_evicted(gang: StartGang, undisturbed: str) -> None:
    g = gang()
    g.wait_for_step(20)
    g.kill_agent("host-1", hold=True)
    g.wait_for_step(g.step() + 20)
    g.release("agent")
    g.wait_for("the next agent", lambda: g.events("agent_back"))
    g.check(same_as=undisturbed)
    assert len(g.events("generation")) == 1


def test_ep14_many_exits_are_evidence_against_the_host(gang: StartGang) -> None:
    g = gang(exits_allowed=1)
    for step in (20, 40):
        g.wait_for_step(step)
        g.kill(3)
        g.wait_until_whole()
    (evidence,) = g.events("evidence")
    assert (evidence["host"], evidence["code"], evidence["exits"]) == ("host-2", "PROC_EXIT", 2)
    g.check()


# ---------------------------------------------------------------------- joining and leaving


def test_ep15_the_first_generation_takes_its_state_from_the_lowest_rank(gang: StartGang) -> None:
    """Every rank has built another model."""
    g = gang(own_seeds=True)
    g.check()
    assert [how(g, rank) for rank in range(WORLD)] == [["went_on"], ["healed"], ["healed"], ["healed"]]


def test_ep15_a_joiner_is_the_warm_spare(gang: StartGang) -> None:
    """The one that was idle takes the place; the others discard a step for the death, and none for its joining."""
    g = gang()
    g.wait_until_measured()
    spare = g.wait_for("a spare on host-1", lambda: g.idle("host-1"))
    g.kill(1)
    g.wait_until_whole()
    assert g.members()[1]["pid"] == spare
    joined = g.events("prepare")[-1]
    assert joined["reason"] == "join" and joined["at_step"] > 1
    g.check()
    assert [event["discarded"] for event in g.events("generation")] == [0, 1, 1]


def test_ep16_a_planned_end_discards_nothing_and_goes_on_to_the_same_bytes(gang: StartGang, undisturbed: str) -> None:
    """Stop: the step is finished, every rank leaves by itself, the state is saved; a resume is as if nothing had been."""
    g = gang()
    g.wait_until_measured()
    g.stop()
    assert g.finish() == 130
    g.check_processes()
    assert g.events("generation")[-1]["discarded"] == 0
    stopped_at = g.step()
    g.start(resume=True)
    g.check(same_as=undisturbed)
    (resumed,) = g.events("resumed")
    assert resumed["step"] == stopped_at


# ---------------------------------------------------------------------- knowing that it holds


def test_ep18_a_difference_between_equal_states_is_seen(quiet: Gang, tmp_path: Path) -> None:
    """The comparison that all these tests end with fails where it should, and only between equal state ids."""
    g = copy(quiet)
    g.folder = shutil.copytree(quiet.folder, tmp_path / "copy")
    path = next((g.folder / "digests").glob("*.jsonl"))
    lines = list(read_json_lines(path))
    other = {"state": [8, 0, 9, 9, 9], "digest": "0" * 32, "final": False}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, other]))
    g.check_digests()
    lines[3]["digest"] = other["digest"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(AssertionError):
        g.check_digests()
