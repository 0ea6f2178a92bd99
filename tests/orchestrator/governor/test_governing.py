"""GM-6, GM-18, GM-36a: from what happens in a job to the governor, and back to what is to be done."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from orchestrator.governing import Governing, Removal, Way
from orchestrator.governor import log
from orchestrator.governor.codes import Code
from orchestrator.governor.config import GovernorConfig, Mode
from orchestrator.governor.events import Asked, HostTested, Joined, Observed, Wish
from orchestrator.governor.hosts import HostState
from orchestrator.governor.log import Governor, Outset, replay
from orchestrator.governor.readings import Observation

HOSTS = {f"host-{number}": "" for number in range(1, 5)}


class Job:
    """Four hosts that train, and their governor's log in `path`."""

    def __init__(self, path: Path, launch: float = 1.0, config: GovernorConfig | None = None) -> None:
        self.said: list[tuple[str, dict[str, object]]] = []
        governor = Governor.open(path, Outset(config or GovernorConfig(), 4, seed=7, launch=launch))
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
    job.governing.watch(dict.fromkeys(HOSTS, True), busy or set(), stepped_at, now)


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
    job.beats(set(HOSTS) - {"host-1"}, 12.0, 10.5)
    watch(job, 12.0, 10.0)
    assert job.state("host-1") is HostState.SUSPECT
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
    job.beats({"host-1", "host-2"}, 30.0, 29.0)
    job.governing.watch(dict.fromkeys(HOSTS, True), set(), 10.0, 30.0)
    assert {job.state(host) for host in HOSTS} == {HostState.HEALTHY}
    job.beats({"host-1", "host-2"}, 31.5, 30.5)
    watch(job, 31.6, 10.0)
    assert [host for host in HOSTS if job.state(host) is HostState.SUSPECT] == ["host-3", "host-4"]


def test_gm18_where_fewer_than_half_are_heard_it_is_we_who_do_not_hear(job: Job) -> None:
    job.beats(set(HOSTS), 10.0, 0.0)
    watch(job, 20.0, 10.0)
    job.beats({"host-1"}, 20.0, 10.5)
    watch(job, 20.1, 10.0)
    assert {job.state(host) for host in HOSTS} == {HostState.HEALTHY} and job.said == []
    job.beats({"host-2"}, 20.0, 19.5)
    watch(job, 20.2, 10.0)
    assert {each.host for each in job.removals(20.2)} == {"host-3", "host-4"}


def test_ep14_a_host_whose_stream_was_reset_has_time_to_get_its_agent_back(job: Job) -> None:
    job.beats(set(HOSTS), 10.0, 0.0)
    job.beats(set(HOSTS) - {"host-2"}, 20.0, 10.5)
    job.governing._watched_at = 19.5
    job.governing.watch({host: host != "host-2" for host in HOSTS}, set(), 10.0, 20.0)
    assert job.removals(20.0) == [] and job.state("host-2") is HostState.HEALTHY


def test_gm41_a_silence_is_told_once_where_nothing_is_done_about_it(path: Path) -> None:
    job = Job(path, config=GovernorConfig(certain=Mode.SHADOW))
    job.governing.generation(HOSTS, 0.0, first=True)
    job.beats(set(HOSTS), 10.0, 0.0)
    for now in (20.0, 20.5, 21.0):
        job.beats(set(HOSTS) - {"host-2"}, now, now - 1.0)
        watch(job, now, 10.0)
    said = [fields["act"] for kind, fields in job.said if kind == "verdict" and fields["target"] == "host-2"]
    assert said.count("evict") == 1 and job.removals(21.0) == []


def test_gm36_an_excluded_host_costs_the_log_nothing(job: Job, path: Path) -> None:
    job.governing.tell(Asked(1.0, "host-1", Wish.EVICT))
    present = set(HOSTS) - {"host-1"}
    job.removals(2.0, present)
    before = path.read_text()
    for second in range(100):
        job.removals(3.0 + second, present)
    assert path.read_text() == before and job.governing.is_cooling("host-1")


def test_gm18_gaps_between_beats_that_were_in_time_make_the_limit_longer(job: Job) -> None:
    assert job.governing.dead_limit == 3.0
    for now in (0.0, 1.2, 2.4):
        job.governing.beat("host-1", now)
    assert job.governing.dead_limit == pytest.approx(6.0)
    job.governing.beat("host-1", 60.0)  # this one was not
    assert job.governing.dead_limit == pytest.approx(6.0)
    job.governing.generation({"host-1": ""}, 61.0, first=False)
    assert job.governing.dead_limit == pytest.approx(6.0)
    job.governing.generation({"host-1": ""}, 61.0, first=True)  # it was still loading what it needs
    assert job.governing.dead_limit == 3.0


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


def test_gm30_a_host_that_is_silent_is_not_dead_for_certain(job: Job) -> None:
    job.governing.convict("host-3", Code.HEARTBEAT_DEAD, 1.0)
    job.governing.convict("host-4", Code.PROC_EXIT, 1.0)
    assert [(each.host, each.way, each.is_dead) for each in job.removals(1.0)] == [
        ("host-3", Way.LOST, False),
        ("host-4", Way.LOST, True),
    ]


def test_gm19_a_host_that_hangs_is_out_at_once_and_has_its_cooldown(job: Job) -> None:
    job.governing.convict("host-4", Code.HANG_CULPRIT, 1.0)
    assert [(each.host, each.way, each.is_trusted) for each in job.removals(1.0)] == [("host-4", Way.AT_ONCE, False)]
    job.removals(5.0, set(HOSTS) - {"host-4"})
    assert not job.governing.may_come("host-4")
    returns_at = job.governing.records["host-4"].returns_at
    assert returns_at is not None and 60.0 <= returns_at - 1.0 <= 120.0


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


def test_gm11_a_policy_that_fails_is_on_record_and_changes_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    before = job.governing.records

    def fails(*_: object) -> None:
        raise ZeroDivisionError("a rule")

    monkeypatch.setattr(log, "decide", fails)
    job.governing.lost("host-1", 1.0)
    assert job.governing.records == before
    assert job.said == [("governor_failed", {"event": "Evidence", "error": "ZeroDivisionError: a rule"})]
    monkeypatch.undo()
    job.governing.lost("host-1", 2.0)
    assert job.state("host-1") is HostState.EVICTED


def test_gm10_a_full_disk_delays_the_log_and_loses_nothing_of_it(
    job: Job, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(file: int, content: bytes) -> int:
        if len(content) < 40:
            raise OSError(errno.ENOSPC, "no space")
        return write(file, content[:40])

    monkeypatch.setattr(log.os, "write", full)
    job.governing.lost("host-1", 1.0)
    assert job.state("host-1") is HostState.EVICTED
    assert not path.read_text().endswith("\n")
    monkeypatch.undo()
    job.governing.lost("host-2", 2.0)
    found = replay(path.open())
    assert (found.difference, found.events) == (None, 6)


@pytest.mark.parametrize(("certain", "emergency"), [(Mode.ENFORCE, True), (Mode.SHADOW, False)])
def test_gm32_when_many_hosts_go_at_once_the_job_is_to_be_saved(path: Path, certain: Mode, emergency: bool) -> None:
    job = Job(path, config=GovernorConfig(certain=certain))
    job.governing.generation(HOSTS, 0.0, first=True)
    for number in (1, 2):
        job.governing.lost(f"host-{number}", 10.0 + number)
    assert not job.governing.emergency
    job.governing.lost("host-3", 13.0)
    assert job.governing.emergency is emergency


def test_gm33_with_fewer_hosts_than_the_job_needs_none_is_removed_on_noisy_evidence(tmp_path: Path) -> None:
    acts = {}
    for least in (1, 8):
        outset = Outset(GovernorConfig(noisy=Mode.ENFORCE), 8, least)
        governor = Governor.open(tmp_path / f"{least}.jsonl", outset)
        verdicts = []
        for host in range(8):
            governor.tell(Joined(0.0, f"h{host}", "", first=True))
        for number in range(1, 40):
            slow = 3.0 if number > 30 else 1.0
            seen = {f"h{host}": Observation(busy=slow if host == 5 else 1.0 + 0.001 * host) for host in range(8)}
            verdicts += governor.tell(Observed(10.0 * number, seen, number))
        acts[least] = {(verdict.act.value, verdict.guard) for verdict in verdicts if verdict.target == "h5"}
    assert ("evict", "") in acts[1]
    assert ("quarantine", "min_hosts") in acts[8] and not any(act == "evict" for act, _ in acts[8])


def test_a_log_that_is_none_is_put_aside_and_keeps_no_job_from_going_on(path: Path) -> None:
    path.write_text("no log\n")
    governor = Governor.open_or_anew(path, Outset(GovernorConfig(), 2))
    governor.tell(Asked(1.0, "host-1", Wish.EVICT))
    (aside,) = path.parent.glob("governor.jsonl.damaged-*")
    assert aside.read_text() == "no log\n" and replay(path.open()).events == 1
