"""The governor in a gang of real processes: what it measures, and what becomes of a host that it gives up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator import operator_commands
from orchestrator.audit import audit
from orchestrator.governor.events import Observed
from orchestrator.governor.log import replay, told
from orchestrator.records import Record, read_steps
from tests.gang.harness import Gang
from workers.checkpoint import list_checkpoints
from workers.link import page_path
from workers.page import Page
from workers.paths import runtime_dir

StartGang = Callable[..., Gang]

QUICK = {"noisy": "enforce", "evaluation": 0.4, "apart": 0.8}


def verdicts(g: Gang, act: str) -> list[Record]:
    return [event for event in g.events("verdict") if event["act"] == act]


def host(g: Gang, name: str) -> Record:
    """How it stands."""
    state = g.wait_for("an answer", g.status)
    return next(each for each in state["hosts"] if each["host"] == name)


def check_log(g: Gang) -> None:
    with (g.folder / "governor.jsonl").open() as log:
        found = replay(log)
    assert found.difference is None and found.events > 0


def test_gm23_gm36_an_evicted_host_stays_out_while_coordinators_come_and_go(gang: StartGang) -> None:
    g = gang(hosts=3, ranks_per_host=1, spares=0, epochs=40)
    g.wait_until_measured()
    assert operator_commands.evict("gang", "host-3", "smells", g.storage) == 0
    g.wait_for("its fence", lambda: host(g, "host-3")["standing"] == "cooling")
    g.kill_coordinator()
    g.wait_for("its successor", lambda: len(g.events("coordinator_started")) == 2)
    step = g.step()
    g.wait_for_step(step + 10)
    out = host(g, "host-3")
    assert (out["standing"], out["state"], out["excluded"]) == ("cooling", "gone", True) and len(g.members()) == 2
    assert operator_commands.readmit("gang", "host-3", g.storage) == 0
    g.wait_for("host-3", lambda: host(g, "host-3")["standing"] == "probation" and len(g.members()) == 3)
    assert [(test["host"], test["passed"]) for test in g.events("host_test")] == [("host-3", True)]
    g.check()
    check_log(g)


@pytest.mark.timeout(240)
def test_gm14_gm26_gm28_a_host_that_is_too_slow_is_evicted_at_a_step_and_no_other(gang: StartGang) -> None:
    g = gang(hosts=4, ranks_per_host=1, spares=0, governor=QUICK, lame=("host-3",), epochs=60)
    g.wait_for("the end of host-3", lambda: any(event["host"] == "host-3" for event in g.events("host_left")))
    g.wait_for("a generation of three", lambda: len(g.members()) == 3)
    assert [event["target"] for event in verdicts(g, "evict")] == ["host-3"]
    assert verdicts(g, "evict")[0]["reasons"][0] in ("STRAGGLER", "SLOWDOWN")
    assert {event["target"] for event in verdicts(g, "quarantine")} == {"host-3"}
    leaving = next(event for event in g.events("generation") if len(event["members"]) == 3)
    assert leaving["discarded"] == 0
    g.wait_for("its fence", lambda: host(g, "host-3")["standing"] == "cooling")
    out = host(g, "host-3")
    assert (out["state"], out["evictions"], out["excluded"]) == ("gone", 1, False)
    assert 50 < out["returns_at"] - verdicts(g, "evict")[0]["t"] < 130
    g.check()
    check_log(g)


def test_gm15_gm22_what_ranks_measure_of_themselves_reaches_the_governor(gang: StartGang) -> None:
    g = gang(governor={"evaluation": 0.3}, epochs=12)
    g.check()
    check_log(g)
    with (g.folder / "governor.jsonl").open() as log:
        windows = [event.observations for _, event, _ in told(log) if isinstance(event, Observed)]
    seen = [each for window in windows for each in window.values()]
    assert {host for window in windows for host in window} == {"host-1", "host-2"}
    assert any(each.busy is not None and each.busy > 0 for each in seen)
    assert any(each.cosine is not None and -1 <= each.cosine <= 1 for each in seen)
    assert any(each.norm is not None and each.norm > 0 for each in seen)
    assert any(each.loss is not None and each.loss > 0 for each in seen)
    assert any(each.memory is not None and 0 < each.memory <= 1.5 for each in seen)
    assert any(each.disk is not None and 0 < each.disk <= 1 for each in seen)
    assert any(each.load is not None and each.load >= 0 for each in seen)
    assert verdicts(g, "evict") == []


def test_gm21_where_disks_are_full_fewer_checkpoints_stay_and_nobody_is_removed(gang: StartGang) -> None:
    full = {"RESOURCE_DISK": {"good": 0.0, "alert": 1e-9}}  # so is any disk with something on it
    g = gang(governor={"evaluation": 1.0, "resources": full}, epochs=60)

    def told() -> list[Record]:  # of the disks: a machine that does much else is short of processors too
        return [event for event in g.events("resource_pressure") if event["code"] == "RESOURCE_DISK"]

    g.wait_for("both shortages", lambda: len(told()) >= 2)
    assert {(event["host"], event["begins"]) for event in told()} == {("host-1", True), ("host-2", True)}
    relieved = [event["target"] for event in verdicts(g, "relieve") if event["reasons"] == ["RESOURCE_DISK"]]
    assert sorted(relieved) == ["host-1", "host-2"]
    assert "RESOURCE_DISK" in host(g, "host-1")["short_of"] and host(g, "host-1")["disk"] > 0
    g.wait_for("three checkpoints", lambda: len(g.events("checkpoint")) >= 3)
    g.wait_for("two that stay", lambda: len(list_checkpoints(g.folder / "checkpoints")) == 2)
    g.check()
    assert verdicts(g, "evict") == []
    check_log(g)


@pytest.mark.root
def test_gm21_a_host_that_is_too_hot_computes_half_as_much_until_it_is_cooler(gang: StartGang) -> None:
    """The files that its agent reads are those of the kernel, for that process."""
    g = gang(sensors=("host-1", "host-2"), governor={"evaluation": 1.0}, epochs=60)
    g.wait_until_measured()
    g.heat("host-2", 90.0)

    def light() -> list[list[str]]:
        return [event.get("light", []) for event in g.events("generation")]

    g.wait_for("less to do", lambda: light()[-1] == ["host-2"])
    since = g.step()
    g.wait_for_step(since + 20)
    g.heat("host-2", 70.0)
    g.wait_for("as much to do as before", lambda: light()[-1] == [])
    told = [(event["value"], event["begins"]) for event in g.events("resource_pressure") if event["code"] == "THERMAL"]
    assert told == [(90.0, True), (70.0, False)]
    assert light() == [[], ["host-2"], []]
    assert [event["reason"] for event in g.events("generation")[1:]] == ["load", "load"]
    assert {event["discarded"] for event in g.events("generation")} == {0}
    g.check()
    assert verdicts(g, "evict") == []
    check_log(g)


def test_gm18_a_host_that_falls_silent_as_a_whole_is_given_up_within_the_limit(gang: StartGang) -> None:
    """Agent and ranks are stopped: no socket closes, nothing is reset."""
    g = gang(limits={"patience": 60.0, "prepare": 60.0}, epochs=40)
    g.wait_for_step(20)
    before = g.stop_host("host-2")
    g.wait_for("the verdict", lambda: verdicts(g, "evict"))
    (verdict,) = verdicts(g, "evict")
    assert (verdict["target"], verdict["reasons"]) == ("host-2", ["HEARTBEAT_DEAD"])
    assert verdict["t"] - before >= 3.0 - 0.5  # since its last heartbeat
    g.wait_for("the loss", lambda: g.events("host_lost"))
    g.wait_until_whole()
    g.check()
    check_log(g)
    assert [test["host"] for test in g.events("host_test")] == ["host-2"]


@pytest.mark.timeout(240)
def test_gm6_section12e_a_host_that_wakes_up_after_its_eviction_changes_nothing(gang: StartGang) -> None:
    """Nobody can end its processes, among them the rank that writes logs and checkpoints. They wake up when the others have
    gone on without them, and go on as far as they are let."""
    g = gang(limits={"patience": 60.0, "prepare": 60.0}, spares=0, epochs=40, checkpoint_every=10)
    g.wait_for_step(20)
    writer = str(g.members()[0]["host"])
    g.keep_host(writer)
    g.stop_host(writer)
    g.wait_for("the loss", lambda: g.events("host_lost"))
    (verdict,) = verdicts(g, "evict")
    assert (verdict["target"], verdict["reasons"]) == (writer, ["HEARTBEAT_DEAD"])
    g.wait_for("the others", lambda: {m["host"] for m in g.members().values()} == {"host-1", "host-2"} - {writer})
    g.wait_for_step(g.step() + 20)
    steps, generation = len(read_steps(g.folder)), g.events("generation")[-1]["generation"]
    woken = g.wake_host(writer)
    g.wait_for_step(g.step() + 30)
    assert g.events("generation")[-1]["generation"] == generation and g.events("checkpoint")
    after = read_steps(g.folder)[steps:]
    assert all(step["generation"] == generation for step in after) and len(after) >= 30
    assert len({step["step"] for step in after}) == len(after)
    assert {child.pid for child in woken if child.kind == "worker"}
    g._ask(do="remove", host=writer)  # as its own Ray would when it has found out
    g.check()
    check_log(g)


@pytest.mark.timeout(240)
def test_gm20_when_the_loss_of_all_jumps_every_host_tests_itself_and_training_goes_on(gang: StartGang) -> None:
    g = gang(hosts=3, ranks_per_host=1, spares=0, epochs=40, governor={**QUICK, "relief": "shadow"})
    g.wait_for("some windows", lambda: read_steps(g.folder) and g.step() >= 60)
    (g.folder / "spike").touch()
    g.wait_for("the tests", lambda: len(g.events("host_test")) >= 3)
    (g.folder / "spike").unlink()
    tested = g.events("host_test")
    assert sorted(event["host"] for event in tested) == ["host-1", "host-2", "host-3"]
    assert all(event["passed"] for event in tested)
    (said,) = (event for event in g.events("verdict") if event["target"] == "job")
    assert (said["act"], said["reasons"], said["mode"]) == ("test", ["LOSS_SPIKE"], "enforce")
    g.check()
    assert verdicts(g, "evict") == [] and len(g.events("generation")) == 1
    check_log(g)


def test_gm18_pages_say_what_agents_send(gang: StartGang) -> None:
    g = gang(epochs=20)
    g.wait_for_step(30)
    worker = str(g.members()[0]["worker"])
    path: Path = page_path(runtime_dir("gang", g.folder), worker)
    with closing(Page(path)) as page:
        assert page.signals.work > 0 and page.signals.loss > 0
    g.check()


def test_a_host_whose_device_is_lost_is_evicted_and_may_come_back(gang: StartGang) -> None:
    g = gang(hosts=3, ranks_per_host=1, spares=0, lost_device=(1, 30))
    (verdict,) = g.wait_for("the verdict", lambda: verdicts(g, "evict"))
    (lost,) = g.events("device_lost")
    assert (verdict["target"], verdict["reasons"]) == (lost["host"], ["DEVICE_LOST"])
    assert lost["rank"] == 1 and "ECC" in lost["error"] and g.events("task_error") == []
    g.wait_for("the host test", lambda: g.events("host_test"))
    g.check()
    check_log(g)


@pytest.mark.timeout(240)
def test_gm20_a_host_whose_loss_is_finite_elsewhere_is_evicted_and_no_step_is_skipped(gang: StartGang) -> None:
    g = gang(hosts=3, ranks_per_host=1, spares=0, epochs=20, faults=("in_backward@rank=1,step=40=nan",))
    (verdict,) = g.wait_for("a verdict", lambda: verdicts(g, "evict"))
    assert (verdict["target"], verdict["reasons"][0]) == ("host-2", "NONFINITE_HOST")
    g.check()
    (told,) = g.events("non_finite")
    assert (told["rank"], told["step"], told["parameter"], told["again"]) == (1, 40, "loss", False)
    assert all(step["loss"] is not None for step in read_steps(g.folder))  # computed again, by others
    assert g.events("non_finite_job") == []
    check_log(g)


@pytest.mark.timeout(240)
def test_gm20_what_is_finite_nowhere_is_skipped_and_nobody_is_to_blame(gang: StartGang) -> None:
    first, then = "in_backward@rank=1,step=40,attempt=0=nan", "in_backward@rank=0,step=40,attempt=1=nan"
    g = gang(hosts=3, ranks_per_host=1, spares=0, epochs=20, faults=(first, then))
    g.wait_for_faults()
    assert g.finish() == 0
    g.check_processes()
    g.check_digests()
    assert audit(g.folder).each_once
    assert [(e["rank"], e["step"], e["again"]) for e in g.events("non_finite")] == [(1, 40, False), (0, 40, True)]
    assert [(event["step"], event["code"]) for event in g.events("non_finite_job")] == [(40, "NONFINITE_JOB")]
    assert verdicts(g, "evict") == []
    assert [step["step"] for step in read_steps(g.folder) if step["loss"] is None] == [40]
