"""GM-6, GM-18, GM-36a: from what happens in a job to the governor, and back to what is to be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.governing import Governing, Removal, Way
from orchestrator.governor.codes import Code
from orchestrator.governor.config import GovernorConfig
from orchestrator.governor.events import Asked, HostTested, Wish
from orchestrator.governor.hosts import HostState
from orchestrator.governor.log import Governor, replay

HOSTS = {f"host-{number}": "" for number in range(1, 5)}


class Job:
    """Four hosts that train, and their governor's log in `path`."""

    def __init__(self, path: Path, launch: float = 1.0) -> None:
        self.said: list[tuple[str, dict[str, object]]] = []
        governor = Governor.open(path, GovernorConfig(), 4, seed=7, launch=launch)
        self.governing = Governing(governor, lambda kind, fields: self.said.append((kind, fields)))

    def state(self, host: str) -> HostState:
        return self.governing.records[host].state

    def removals(self, now: float, present: set[str] | None = None, placed: set[str] | None = None) -> list[Removal]:
        present = set(HOSTS) if present is None else present
        return self.governing.removals(present, present if placed is None else placed, now)

    def beats(self, hosts: set[str], until: float, since: float) -> None:
        for number in range(round(2 * (until - since)) + 1):
            for host in sorted(hosts):
                self.governing.beat(host, since + 0.5 * number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "governor.jsonl"


@pytest.fixture
def job(path: Path) -> Job:
    job = Job(path)
    job.governing.generation(HOSTS, 0.0, first=True)
    return job


def watch(job: Job, now: float, stepped_at: float, busy: set[str] | None = None) -> None:
    """A look at `now`, after one of half a second before."""
    job.governing._watched_at = now - 0.5
    job.governing.watch(HOSTS, busy or set(), stepped_at, now)


def test_gm18_a_host_that_falls_silent_is_suspect_and_then_dead(job: Job) -> None:
    job.beats(set(HOSTS), 10.0, 0.0)
    others = set(HOSTS) - {"host-2"}
    job.beats(others, 12.0, 10.5)
    watch(job, 11.4, 10.0)
    assert job.state("host-2") is HostState.HEALTHY
    watch(job, 11.5, 10.0)
    assert job.state("host-2") is HostState.SUSPECT
    job.beats(others, 13.0, 12.5)
    watch(job, 12.9, 10.0)
    assert job.removals(12.9) == []
    watch(job, 13.0, 10.0)
    assert job.removals(13.0) == [Removal("host-2", Way.LOST, "host-2 is evicted: HEARTBEAT_DEAD")]
    assert {job.state(host) for host in others} == {HostState.HEALTHY}


def test_gm18_three_beats_in_time_and_it_is_healthy_again(job: Job) -> None:
    job.beats(set(HOSTS), 10.0, 0.0)
    watch(job, 12.0, 10.0)
    assert {job.state(host) for host in HOSTS} == {HostState.SUSPECT}
    job.governing.beat("host-1", 12.1)  # late itself
    job.beats({"host-1"}, 13.1, 12.6)
    assert job.state("host-1") is HostState.SUSPECT
    job.beats({"host-1"}, 13.6, 13.6)
    assert job.state("host-1") is HostState.HEALTHY


def test_ep14_a_host_whose_steps_are_committed_lives_whatever_its_agent_says(job: Job) -> None:
    job.beats(set(HOSTS), 10.0, 0.0)
    watch(job, 30.0, 29.5)
    assert {job.state(host) for host in HOSTS} == {HostState.HEALTHY}


def test_gm18_while_others_are_in_code_of_the_task_nobody_is_dead_for_a_lost_agent(job: Job) -> None:
    job.beats(set(HOSTS), 10.0, 0.0)
    job.beats(set(HOSTS) - {"host-2"}, 20.0, 10.5)
    watch(job, 20.0, 10.0, busy={"host-2", "host-3"})
    assert job.removals(20.0) == []
    watch(job, 20.0, 10.0, busy={"host-2"})  # as it was itself, when it was last heard of
    assert [each.host for each in job.removals(20.0)] == ["host-2"]


def test_gm18_a_coordinator_that_has_stood_still_gives_up_nobody(job: Job) -> None:
    job.beats(set(HOSTS), 10.0, 0.0)
    watch(job, 10.1, 10.0)
    job.governing.watch(HOSTS, set(), 10.0, 30.0)
    assert {job.state(host) for host in HOSTS} == {HostState.HEALTHY}
    watch(job, 31.6, 10.0)
    assert {job.state(host) for host in HOSTS} == {HostState.SUSPECT}


def test_gm18_gaps_between_beats_that_were_in_time_make_the_limit_longer(job: Job) -> None:
    assert job.governing.dead_limit == 3.0
    for now in (0.0, 1.2, 2.4):
        job.governing.beat("host-1", now)
    assert job.governing.dead_limit == pytest.approx(6.0)
    job.governing.beat("host-1", 60.0)  # this one was not
    assert job.governing.dead_limit == pytest.approx(6.0)


def test_gm36a_a_host_that_was_lost_is_fenced_and_may_come_back_at_once_through_the_host_test(job: Job) -> None:
    job.governing.lost("host-3", 5.0)
    present = set(HOSTS) - {"host-3"}
    assert job.removals(5.1, present, placed=set(HOSTS)) == [] and job.state("host-3") is HostState.EVICTED
    assert not job.governing.may_come("host-3")
    assert job.removals(5.2, present) == [] and job.state("host-3") is HostState.COOLING
    job.removals(5.3, present)
    assert job.governing.may_come("host-3") and not job.governing.is_in("host-3")
    job.governing.tell(HostTested(7.0, "host-3", passed=True))
    assert job.state("host-3") is HostState.PROBATION and job.governing.is_in("host-3")


def test_gm36_whom_an_operator_has_evicted_comes_back_when_an_operator_says_so(job: Job) -> None:
    job.governing.tell(Asked(1.0, "host-1", Wish.EVICT))
    assert job.removals(1.0) == [Removal("host-1", Way.AFTER_THE_STEP, "host-1 is evicted: OPERATOR_EVICT")]
    present = set(HOSTS) - {"host-1"}
    for now in (2.0, 3.0, 100_000.0):
        job.removals(now, present)
    assert job.state("host-1") is HostState.COOLING and not job.governing.may_come("host-1")
    job.governing.tell(Asked(100_001.0, "host-1", Wish.READMIT))
    assert job.governing.may_come("host-1")


def test_gm28_corruption_does_not_wait_for_the_end_of_the_step(job: Job) -> None:
    job.governing.convict("host-4", Code.SDC_DIGEST, 1.0)
    assert [each.way for each in job.removals(1.0)] == [Way.AT_ONCE]


def test_gm38_a_planned_leave_costs_nothing(job: Job) -> None:
    job.governing.left("host-2", 3.0)
    assert "host-2" not in job.governing.records and job.governing.may_come("host-2")


def test_gm23_trust_and_evictions_outlive_the_coordinator_but_not_the_launch(job: Job, path: Path) -> None:
    job.governing.lost("host-3", 5.0)
    with path.open("a") as log:
        log.write('{"event":"tick","ti')  # a crash in the middle of a line
    again = Job(path)
    assert again.governing.records == job.governing.records
    again.removals(6.0, set(HOSTS) - {"host-3"})
    assert again.state("host-3") is HostState.COOLING
    assert replay(path.open()).difference is None
    assert Job(path, launch=2.0).governing.records == {}
    assert replay(path.open()).difference is None


def test_gm10_verdicts_that_a_crash_has_kept_from_the_log_are_written_by_the_next_one(job: Job, path: Path) -> None:
    job.governing.lost("host-3", 5.0)
    whole = path.read_text().splitlines(keepends=True)
    assert "act" in json.loads(whole[-1])
    path.write_text("".join(whole[:-1]))
    Job(path)
    assert path.read_text() == "".join(whole)


def test_gm10_verdicts_are_events_of_the_job(job: Job) -> None:
    job.governing.lost("host-3", 5.0)
    kinds = [(kind, fields["target"], fields["act"], fields["reasons"]) for kind, fields in job.said]
    assert kinds == [("verdict", "host-3", "evict", ["PROC_EXIT"])]
