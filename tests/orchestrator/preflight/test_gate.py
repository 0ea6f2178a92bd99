"""GM-40: the gate as a whole, on jobs whose records are made up."""

from __future__ import annotations

import json
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ExitCode, UserError
from orchestrator.jobspec import JobSpec
from orchestrator.launch import Interrupts
from orchestrator.preflight import gate as gates
from orchestrator.preflight import report
from orchestrator.preflight.gate import Gate
from orchestrator.preflight.hosts import Host
from orchestrator.preflight.passes import Passes, subject
from orchestrator.preflight.probes import Probe
from orchestrator.preflight.runs import Run
from orchestrator.preflight.verdicts import Outcome, passed, skipped
from tests.orchestrator.preflight import made_up
from tests.orchestrator.preflight.made_up import FLIP_AT, LOUD_AT, QUIET_AT, SLOW_AT
from workers.tasks import preflight

HOSTS = [Host(f"10.0.0.{number}", f"n{number}") for number in range(1, 5)]


class Deaf(Interrupts):
    """Leaves the signals of the process that runs the tests alone."""

    def listen(self) -> None: ...


class Ground:
    """Where nothing runs."""

    cluster: str | None = "h:1"

    def __init__(self, *hosts: list[Host]) -> None:
        """`hosts`: as they are seen at one look after the other."""
        self.seen, self.wrong, self.looks = hosts, dict[str, str](), 0

    @contextmanager
    def connected(self) -> Iterator[None]:
        yield

    def connect(self, job: str) -> Any:
        raise AssertionError(job)

    def hosts(self) -> list[Host]:
        self.looks += 1
        return self.seen[min(self.looks, len(self.seen)) - 1]

    def test(self, hosts: list[Host]) -> dict[str, str]:
        return {host.address: self.wrong.get(host.address, "") for host in hosts}


class Jobs:
    """Stands in for `jobs.run` and `runs.read`: what each job leaves on record is good, unless it is in `bad` still.

    Attributes:
        bad: by job, what it leaves the first times.
        ran: the jobs, with the faults that were injected.
        seconds: that each takes, on the clock of the gate.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bad: dict[Probe, list[Run]] = {}
        self.ran: list[tuple[Probe, list[str]]] = []
        self.seconds, self.now, self.raises = 10.0, 1000.0, dict[Probe, UserError]()
        monkeypatch.setattr(gates.jobs, "run", self._run)
        monkeypatch.setattr(gates.runs, "read", self._read)
        monkeypatch.setattr(preflight, "losses", lambda config, seed, steps: [1.5 + 0.01 * (seed % 3)] * steps)
        monkeypatch.setattr(gates.time, "monotonic", lambda: self.now)

    @property
    def probes(self) -> list[Probe]:
        return [probe for probe, _ in self.ran]

    def _run(self, spec: JobSpec, connect: object, *, resume: bool, deadline: float, **_: object) -> int:
        probe = Probe.RESTORE if resume else Probe(spec.name.rpartition("-")[2])
        self.ran.append((probe, list(spec.faults)))
        assert deadline <= 1000.0 + gates.SECONDS - gates.CLEAR_SECONDS
        self.now = min(self.now + self.seconds, deadline)
        if probe in self.raises:
            raise self.raises[probe]
        return 130

    def _read(self, folder: Path, names: Iterable[str], *, exit_code: int | None, seconds: float, **_: object) -> Run:
        probe, names = self.ran[-1][0], list(names)
        if self.bad.get(probe):
            return self.bad[probe].pop(0)
        marks = {name: mark for name in names for mark in made_up.marks(name, at=_step(name)).values()}
        found = {
            Probe.AGREE: lambda: made_up.late(_rank(names, "delay"), _rank(names, "flip")),
            Probe.LOSE: lambda: made_up.lost(rank=_rank(names, "lose")),
            Probe.RESTORE: lambda: Run(digests=made_up.restored()),
            Probe.HALT: made_up.halted,
            Probe.NOISE: lambda: made_up.noisy(_rank(names, "noise")),
        }[probe]()
        return replace(found, marks=marks, seconds=seconds, exit_code=9 if probe is Probe.HALT else exit_code)


def _rank(names: list[str], action: str) -> int:
    """That a fault is for; 0 where there is no such fault."""
    return next((int(found[1]) for name in names if action in name and (found := re.search(r"rank=(\d+)", name))), 0)


def _step(name: str) -> int:
    ends = {"=lose": 5, "delay:0.5": SLOW_AT, "=flip": FLIP_AT, "+-0.01": QUIET_AT, "noise:0.1": QUIET_AT}
    return next((step for end, step in ends.items() if name.endswith(end)), LOUD_AT)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    return Jobs(monkeypatch)


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return JobSpec.model_validate({"name": "demo", "storage": str(tmp_path), "hosts": {"max": 4}, "seed": 3})


def gate_of(spec: JobSpec, hosts: list[Host], ground: Ground | None = None, signals: tuple[int, ...] = ()) -> Gate:
    interrupts = Deaf()
    interrupts.signals += signals
    place: Any = ground or Ground(hosts)
    return Gate(spec, place, "abc123", spec.storage / ".preflight" / "demo.abc123", 1000.0 + gates.SECONDS, interrupts)


def result_of(spec: JobSpec, hosts: list[Host] = HOSTS, ground: Ground | None = None) -> report.Result:
    gate = gate_of(spec, hosts, ground)
    gate.test_hosts()
    gate.run_all()
    return gate.result(60.0)


def test_gm40_hosts_that_pass_every_test_get_a_pass(jobs: Jobs, spec: JobSpec) -> None:
    result = result_of(spec)
    assert jobs.probes == list(Probe) and result.failed == [] and result.hosts == 4
    assert [row.test for row in result.rows] == ["host test", *(f"PF-{number}" for number in range(1, 8))]
    assert {row.finding.outcome for row in result.rows} == {Outcome.PASSED} and {row.tries for row in result.rows} == {1}
    assert {row.test: row.seconds for row in result.rows}["PF-3"] == 20.0  # of two jobs
    assert result.issued is not None
    path, until = result.issued
    assert Passes(spec.storage).objection(subject(spec, HOSTS), time.time()) == ""
    assert json.loads(path.read_text())["findings"] == [row.plain() for row in result.rows]
    assert until == pytest.approx(time.time() + 24 * 3600, abs=3600)
    assert stat.S_IMODE((spec.storage / ".control").stat().st_mode) == 0o700


def test_gm40_what_was_failed_is_tried_once_more_on_other_hosts(jobs: Jobs, spec: JobSpec) -> None:
    jobs.bad = {Probe.NOISE: [replace(made_up.noisy(), verdicts=[])]}
    ground = Ground(HOSTS, HOSTS[::-1])
    result = result_of(spec, ground=ground)
    assert jobs.probes == [*Probe, Probe.NOISE] and ground.looks == 2
    first, second = (faults for probe, faults in jobs.ran if probe is Probe.NOISE)
    assert "rank=3" in first[-1] and "rank=2" in second[-1]
    assert result.failed == [] and {row.test: row.tries for row in result.rows}["PF-4"] == 2


def test_gm40_other_hosts_than_those_that_were_tested_get_no_pass(jobs: Jobs, spec: JobSpec) -> None:
    jobs.bad = {Probe.NOISE: [replace(made_up.noisy(), verdicts=[])]}
    with pytest.raises(UserError, match=r"have changed while they were tested \(4 then, 3 now\)") as refused:
        result_of(spec, ground=Ground(HOSTS, HOSTS[:3]))
    assert refused.value.exit_code == ExitCode.PREFLIGHT


def test_gm40_of_many_embedded_hosts_those_take_part_that_were_started(jobs: Jobs, spec: JobSpec) -> None:
    ground = Ground([Host(f"127.0.0.{number}") for number in range(2, 102)])
    ground.cluster = None
    gate = gate_of(spec, HOSTS, ground)
    gate.test_hosts()
    assert {host.address for host in gate._ring} == {f"127.0.0.{number}" for number in range(2, 66)}


def test_gm40_what_is_failed_twice_is_failed_and_there_is_no_pass(jobs: Jobs, spec: JobSpec) -> None:
    jobs.bad = {Probe.HALT: [made_up.lost(), made_up.lost()]}
    result = result_of(spec)
    assert jobs.probes == [*Probe, Probe.HALT]
    assert result.failed == ["PF-7"] and result.issued is None
    assert Passes(spec.storage).objection(subject(spec, HOSTS), time.time()) == "there is none for this JobSpec"


def test_pf6_what_is_restored_is_saved_anew(jobs: Jobs, spec: JobSpec) -> None:
    jobs.bad = {Probe.RESTORE: [Run(digests=made_up.restored(rank0="odd"))]}
    assert result_of(spec).failed == []
    assert jobs.probes == [*Probe, Probe.LOSE, Probe.RESTORE]


def test_pf6_fails_where_there_is_nothing_to_restore(jobs: Jobs, spec: JobSpec) -> None:
    jobs.raises = {Probe.RESTORE: UserError("nothing to resume from", ExitCode.RESUME)}
    jobs.bad = {Probe.RESTORE: [Run(), Run()]}
    assert result_of(spec).failed == ["PF-6"]
    jobs.now, jobs.raises = 1000.0, {Probe.NOISE: UserError("the cluster is lost", ExitCode.FAILED)}
    with pytest.raises(UserError, match="the cluster is lost"):
        result_of(spec)


def test_pf2_without_an_undisturbed_run_nothing_can_be_compared(jobs: Jobs, spec: JobSpec) -> None:
    jobs.bad = {Probe.AGREE: [Run(), Run()]}
    assert result_of(spec).failed == ["PF-1", "PF-2", "PF-3", "PF-5", "PF-7"]


def test_pf2_is_judged_again_once_there_is_an_undisturbed_run(jobs: Jobs, spec: JobSpec) -> None:
    jobs.bad = {Probe.AGREE: [Run()]}
    assert result_of(spec).failed == []
    assert jobs.probes[5:] == [Probe.AGREE, Probe.LOSE, Probe.RESTORE, Probe.HALT]


def test_gm40_after_180_seconds_it_is_over(jobs: Jobs, spec: JobSpec) -> None:
    jobs.seconds = 60.0
    result = result_of(spec)
    assert jobs.probes == [Probe.AGREE, Probe.LOSE, Probe.RESTORE] and jobs.now <= 1000.0 + gates.SECONDS
    assert result.failed == ["PF-3", "PF-4", "PF-7"]
    reasons = {row.test: row.finding.reason for row in result.rows}
    assert reasons["PF-4"] == "no time was left of 180 s" and "no time was left" in reasons["PF-3"]


@pytest.mark.parametrize(
    ("hosts", "probes", "left_out"),
    [
        (1, [Probe.AGREE], ["PF-2", "PF-3", "PF-4", "PF-5", "PF-6", "PF-7"]),
        (2, [Probe.AGREE, Probe.LOSE, Probe.RESTORE, Probe.HALT], ["PF-3", "PF-4", "PF-5"]),
        (3, [Probe.AGREE, Probe.LOSE, Probe.RESTORE, Probe.HALT], ["PF-3", "PF-4"]),
    ],
)
def test_gm40_with_fewer_hosts_tests_are_skipped_and_it_says_so(
    jobs: Jobs, spec: JobSpec, hosts: int, probes: list[Probe], left_out: list[str]
) -> None:
    result = result_of(spec, HOSTS[:hosts])
    assert jobs.probes[: len(probes)] == probes and Probe.NOISE not in jobs.probes
    found = {row.test: row for row in result.rows}
    assert [test for test, row in found.items() if row.finding.outcome is Outcome.SKIPPED] == left_out
    assert found["PF-4"].finding == skipped("fewer than 4 hosts")
    assert (found["PF-4"].tries, found["PF-4"].seconds) == (0, 0.0)


def test_gm40_a_host_that_does_not_compute_right_fails_the_gate(jobs: Jobs, spec: JobSpec) -> None:
    ground = Ground(HOSTS)
    ground.wrong = {"10.0.0.3": "a product of float32 matrices (seed 1) is wrong"}
    result = result_of(spec, ground=ground)
    assert result.failed == ["host test"] and result.issued is None
    assert result.rows[0].finding.reason == "10.0.0.3: a product of float32 matrices (seed 1) is wrong"


def test_gm40_after_ctrl_c_no_job_begins(jobs: Jobs, spec: JobSpec) -> None:
    gate = gate_of(spec, HOSTS, signals=(2,))
    gate.test_hosts()
    gate.run_all()
    assert jobs.ran == []


# ---------------------------------------------------------------- report


def rows(*found: tuple[str, Any]) -> list[report.Row]:
    return [report.Row(test, finding, 7.04, 1) for test, finding in found]


def test_gm40_the_table_says_what_was_skipped_and_until_when_the_pass_is_valid(tmp_path: Path) -> None:
    found = rows(("PF-1", passed("4 ranks hold the same")), ("PF-4", skipped("fewer than 4 hosts")))
    result = report.Result(found, 3, 41.6, tmp_path, (tmp_path / "pass.json", 1_700_000_000.0))
    lines = report.text(result).splitlines()
    assert lines[0].split() == ["test", "result", "seconds", "tries", "why"]
    assert lines[1].split() == ["PF-1", "passed", "7.0", "1", "4", "ranks", "hold", "the", "same"]
    assert "skipped" in lines[2] and lines[2].endswith("fewer than 4 hosts")
    assert lines[3].startswith("passed in 42 s, without PF-4: valid until 2023-11-1") and "these 3 hosts" in lines[3]


def test_gm40_the_last_line_says_what_was_failed_and_where_to_look(tmp_path: Path) -> None:
    found = rows(("PF-1", passed("ok")), ("PF-2", report.Finding(Outcome.FAILED, "slow")))
    result = report.Result(found, 1, 170.0, tmp_path)
    last = report.text(result).splitlines()[-1]
    assert last == f"not passed in 170 s: PF-2; start no job on these 1 host; records in {tmp_path}"
    plain = result.plain()
    assert (plain["passed"], plain["pass"], plain["valid_until"], plain["hosts"]) == (False, None, None, 1)
    assert plain["tests"][1] == {"test": "PF-2", "outcome": "failed", "seconds": 7.0, "tries": 1, "reason": "slow"}
    assert json.loads(json.dumps(plain)) == plain
