"""`quantarion preflight`: the gate as a whole (GM-40).

Jobs one after the other on the hosts of a job, a verdict on each test, a second try of what was failed, a pass.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from orchestrator import placement, rayenv, status
from orchestrator.embedded import EmbeddedCluster
from orchestrator.errors import ExitCode, UserError
from orchestrator.folder import refuse_relative
from orchestrator.jobspec import JobSpec
from orchestrator.launch import Interrupts, Site, listening, on_cluster, on_embedded
from orchestrator.preflight import host_tests, jobs, probes, runs, verdicts
from orchestrator.preflight.hosts import MOST, Host, Roles, chosen, hosts_of_cluster, hosts_of_machine, roles
from orchestrator.preflight.passes import VALID_SECONDS, Passes, subject
from orchestrator.preflight.probes import LEAST, TESTS, Probe, applicable
from orchestrator.preflight.report import HOST_TEST, Result, Row, ordered, text
from orchestrator.preflight.runs import Run
from orchestrator.preflight.shown import is_shown
from orchestrator.preflight.verdicts import Finding, Outcome, Reference, failed, skipped
from orchestrator.records import STEP_KEYS, STEPS, read_events
from workers.actors import log_to
from workers.memory_file import memory_folder
from workers.paths import runtime_dir

SECONDS = 180.0
"""For all of it."""

CLEAR_SECONDS = 4.0
"""Of those, that a job needs to end."""

WAIT_SECONDS = 15.0
"""For a cluster to have as many hosts as the job needs, at most."""

SEEDS = 5
STEP_SECONDS = 0.05
"""Of a step of the probe, before one was measured."""

CPUS_PER_HOST = 2
"""Of an embedded host: one job's rank may still be ending while the next one's begins."""


def run(spec: JobSpec, *, address: str | None, as_json: bool) -> int:
    """Put the hosts of a job to the test, and print what came of it; the exit code: 0, or 93 where they have failed.

    Raises UserError for everything that a user can put right.
    """
    begun = time.monotonic()
    cluster = rayenv.cluster_address(address)
    refuse_relative(spec, cluster)
    token = secrets.token_hex(3)
    records = _records(spec, token)
    log_to(records / "preflight.log")
    with listening() as interrupts, ExitStack() as stack:
        ground = _Ground(spec, cluster, token, records)
        stack.enter_context(ground)
        gate = Gate(spec, ground, token, records, begun + SECONDS, interrupts)
        gate.test_hosts()
        gate.run_all()
        if interrupts.signals:
            sys.stderr.write("preflight: stopped; nothing was signed\n")
            return ExitCode.STOPPED
        result = gate.result(time.monotonic() - begun)
    sys.stdout.write(json.dumps(result.plain(), indent=2) + "\n" if as_json else text(result))
    return ExitCode.PREFLIGHT if result.failed else ExitCode.DONE


def _records(spec: JobSpec, token: str) -> Path:
    """A fresh folder for this gate's jobs; those of gates that are over are removed."""
    root = spec.storage.absolute() / ".preflight"
    try:
        for earlier in root.glob(f"{spec.name}.*"):
            if time.time() - earlier.stat().st_mtime > 2 * SECONDS:
                shutil.rmtree(earlier, ignore_errors=True)
        folder = root / f"{spec.name}.{token}"
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{root} cannot be written ({error.strerror}); choose another place with --set storage=…", ExitCode.STORAGE
        ) from None
    return folder


class _Ground:
    """Where the gate's jobs run: on Ray in this process, or on a cluster that runs already."""

    def __init__(self, spec: JobSpec, cluster: str | None, token: str, records: Path) -> None:
        self.spec, self.cluster, self._token = spec, cluster, token
        self._embedded: EmbeddedCluster | None = None
        if cluster is None:
            hosts = min(MOST, spec.hosts.max)
            places = ((name, records / turn / name) for turn in "12" for name in (_name(token, probe) for probe in Probe))
            runtimes = [runtime_dir(name, folder) for name, folder in places]
            left = [*runtimes, *map(memory_folder, runtimes)]
            self._embedded = EmbeddedCluster(hosts, CPUS_PER_HOST, records, left_behind=left)

    def __enter__(self) -> Self:
        if self._embedded is not None:
            _say(f"starting Ray with {_hosts(min(MOST, self.spec.hosts.max))} in this machine")
            self._embedded.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._embedded is not None:
            self._embedded.stop()

    def connect(self, job: str) -> Site:
        """This process, for a job of that name."""
        if self._embedded is not None:
            return on_embedded(self._embedded, job)
        assert self.cluster is not None
        return on_cluster(self.cluster, job)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """For questions about hosts."""
        if self.cluster is None:
            yield
            return
        self.connect(f"preflight-{self._token}")
        try:
            yield
        finally:
            rayenv.disconnect()

    def hosts(self) -> list[Host]:
        """All that the job would have. Raises UserError: too few."""
        if self.cluster is None:
            return hosts_of_machine(self.spec)
        deadline = time.monotonic() + min(WAIT_SECONDS, self.spec.hosts.wait)
        while len(found := hosts_of_cluster(self.spec)) < self.spec.hosts.min:
            if time.monotonic() > deadline:
                lacking = placement.missing(self.spec.hosts.min, len(found), self.spec.ranks_per_host)
                raise UserError(lacking, ExitCode.HOSTS)
            time.sleep(jobs.LOOK_SECONDS)
        return found

    def test(self, hosts: Sequence[Host]) -> dict[str, str]:
        """What is wrong with each; embedded ones are one machine."""
        return {"this machine": host_tests.here()} if self.cluster is None else host_tests.on_cluster(hosts)


@dataclass(frozen=True)
class Shown:
    """A job of the gate that is over, and what it was."""

    run: Run
    ring: Sequence[Host]
    who: Roles
    injected: probes.Faults
    spec: JobSpec


class Gate:
    """One gate. `deadline`: monotonic seconds."""

    def __init__(
        self, spec: JobSpec, ground: _Ground, token: str, records: Path, deadline: float, interrupts: Interrupts
    ) -> None:
        self._spec, self._ground, self._token, self._records = spec, ground, token, records
        self._deadline, self._interrupts = deadline, interrupts
        self._hosts: list[Host] = []
        self._subject = subject(spec, [])  # the code is that of now
        self._rows: dict[str, Row] = {}
        self._shown: dict[Probe, Shown] = {}
        self._tries: dict[Probe, int] = {}
        self._reference: Reference | None = None
        self._turn = 0

    # ------------------------------------------------------------------ hosts

    def test_hosts(self) -> None:
        """Find them, and put each to the host test."""
        begun = time.monotonic()
        with self._ground.connected():
            self._interrupts.listen()
            self._hosts = self._ground.hosts()
            found = self._ground.test(self._hosts)
        self._subject = replace(subject(self._spec, self._hosts), code=self._subject.code)
        self._rows[HOST_TEST] = Row(HOST_TEST, host_tests.judged(found), time.monotonic() - begun, 1)

    def _look_again(self) -> None:
        """Raises UserError where they are not those that were tested: nothing that was found is of the others."""
        with self._ground.connected():
            self._interrupts.listen()
            hosts = self._ground.hosts()
        if sorted(hosts) != sorted(self._hosts):
            raise UserError(
                f"the hosts have changed while they were tested ({len(self._hosts)} then, {len(hosts)} now); run it again "
                "once they stay",
                ExitCode.PREFLIGHT,
            )

    @property
    def _ring(self) -> list[Host]:
        """Those that take part; of embedded ones, those that were started."""
        return chosen(self._hosts if self._ground.cluster is not None else self._hosts[:MOST])

    # ------------------------------------------------------------------ jobs

    def run_all(self) -> None:
        """All jobs, and once more those that have failed a test, with other hosts disturbed."""
        self._run(list(Probe))
        self._judge()
        again = self._to_repeat()
        if not again or self._interrupts.signals:
            return
        _say(f"once more: {', '.join(self._failed)}")
        self._turn = 1
        self._look_again()
        self._run(again)
        self._judge()

    @property
    def _failed(self) -> list[str]:
        return [test for test, row in self._rows.items() if row.finding.outcome is Outcome.FAILED and test != HOST_TEST]

    def _to_repeat(self) -> list[Probe]:
        """The jobs that failed tests are of, and what is restored needs to be saved anew."""
        parts = self._parts().items()
        wanted = {probe for probe, found in parts for each in found.values() if each.outcome is Outcome.FAILED}
        if Probe.RESTORE in wanted or Probe.LOSE in wanted:
            wanted |= {Probe.LOSE, Probe.RESTORE}
        return [probe for probe in Probe if probe in wanted and applicable(probe, len(self._ring))]

    def _left(self) -> float:
        return self._deadline - CLEAR_SECONDS - time.monotonic()

    def _run(self, wanted: Sequence[Probe]) -> None:
        for probe in wanted:
            ring = self._ring
            tests = applicable(probe, len(ring))
            if not tests or self._interrupts.signals:
                continue
            step_seconds = self._reference.step_seconds if self._reference is not None else STEP_SECONDS
            when = probes.times(len(ring), step_seconds)
            if self._left() < probes.least_seconds(probe, len(ring), when):
                _say(f"{', '.join(tests)}: no time left")
                continue
            _say(f"{', '.join(tests)} on {_hosts(len(ring))}")
            self._run_one(probe, ring, when)
            if probe is Probe.AGREE:
                self._compare_with(self._shown[probe])

    def _run_one(self, probe: Probe, ring: Sequence[Host], when: probes.Times) -> None:
        hosts, who, begun = len(ring), roles(ring, self._turn), time.monotonic()
        injected = probes.faults(probe, hosts, who, when)
        place = Probe.LOSE if probe is Probe.RESTORE else probe
        name, storage = _name(self._token, place), self._records / str(self._turn + 1)
        spec = probes.jobspec(probe, self._spec, ring, who, injected, name=name, storage=storage)
        folder = storage / name
        known = frozenset(path.name for path in runs.digest_files(folder))

        def shown(folder: Path) -> bool:
            steps = status.tail(folder / STEPS, STEP_KEYS)
            noted = len({path.name for path in runs.digest_files(folder)} - known)
            return is_shown(probe, hosts, who, read_events(folder), int(steps[-1]["step"]) if steps else 0, noted)

        self._tries[probe] = self._tries.get(probe, 0) + 1
        exit_code = None
        try:
            exit_code = jobs.run(
                spec,
                self._ground.connect,
                cluster=self._ground.cluster,
                resume=probe is Probe.RESTORE,
                is_shown=shown,
                deadline=min(begun + probes.limit(probe, hosts, when), self._deadline - CLEAR_SECONDS),
                interrupts=self._interrupts,
            )
        except UserError as error:
            if probe is not Probe.RESTORE or error.exit_code not in (ExitCode.RESUME, ExitCode.RUNNING):
                raise
            _say(str(error))  # there is nothing to be restored, or it is held: a finding
        seconds = time.monotonic() - begun
        found = runs.read(folder, injected.all, exit_code=exit_code, seconds=seconds, known=known)
        self._shown[probe] = Shown(found, ring, who, injected, spec)

    def _compare_with(self, undisturbed: Shown) -> None:
        """What other runs of the probe are compared with."""
        from workers.tasks.preflight import losses

        seed, spec = self._spec.seed, undisturbed.spec
        last = [losses(spec, (seed + number) % 2**63, probes.COMPARED_AT)[-1] for number in range(SEEDS)]
        self._reference = verdicts.reference(undisturbed.run, last)

    # ------------------------------------------------------------------ verdicts

    def _parts(self) -> dict[Probe, dict[str, Finding]]:
        """By job, what each of its tests has come to."""
        found = dict[Probe, dict[str, Finding]]()
        for probe in Probe:
            tests = applicable(probe, len(self._ring))
            shown = self._shown.get(probe)
            if shown is None:
                found[probe] = dict.fromkeys(tests, failed(f"no time was left of {SECONDS:g} s"))
            else:
                judge = self._judges(probe, shown)
                found[probe] = {test: judge[test]() for test in tests if test in judge}
        return found

    def _judges(self, probe: Probe, shown: Shown) -> dict[str, Callable[[], Finding]]:
        run, who, injected, hosts = shown.run, shown.who, shown.injected, len(shown.ring)
        match probe:
            case Probe.AGREE:
                return {
                    "PF-1": partial(verdicts.pf1, run, hosts),
                    "PF-3": partial(verdicts.pf3_host, run, who.slow, injected),
                    "PF-5": partial(verdicts.pf5, run, who.flipped, injected),
                }
            case Probe.LOSE:
                return {"PF-2": partial(verdicts.pf2, run, who.lost, injected, hosts, self._reference)}
            case Probe.RESTORE:
                saved = self._shown.get(Probe.LOSE)
                lines = saved.run.digests if saved is not None else ()
                return {"PF-6": partial(verdicts.pf6, lines, run.digests, hosts, probes.fewer(hosts))}
            case Probe.HALT:
                return {"PF-7": partial(verdicts.pf7, run, who.lost, injected, hosts, self._reference)}
            case Probe.NOISE:
                return {
                    "PF-3": partial(verdicts.pf3_links, run, injected),
                    "PF-4": partial(verdicts.pf4, run, who.noisy, injected, shown.spec.governor),
                }

    def _judge(self) -> None:
        parts, hosts = self._parts(), len(self._ring)
        for test, least in LEAST.items():
            mine = [probe for probe in Probe if test in TESTS[probe]]
            if hosts < least:
                self._rows[test] = Row(test, skipped(f"fewer than {least} hosts"), 0.0, 0)
                continue
            finding = verdicts.together([parts[probe][test] for probe in mine])
            seconds = sum(self._shown[probe].run.seconds for probe in mine if probe in self._shown)
            self._rows[test] = Row(test, finding, seconds, max(self._tries.get(probe, 0) for probe in mine))

    def result(self, seconds: float) -> Result:
        """With a pass, where no test was failed. Raises UserError where it cannot be written."""
        rows = ordered(self._rows)
        result = Result(rows, len(self._ring), seconds, self._records)
        if result.failed:
            return result
        now = time.time()
        path = Passes(self._spec.storage).issue(self._subject, [row.plain() for row in rows], now)
        return Result(rows, len(self._ring), seconds, self._records, (path, now + VALID_SECONDS))


def _name(token: str, probe: Probe) -> str:
    """Of a job of the gate."""
    return f"preflight-{token}-{probe}"


def _hosts(number: int) -> str:
    return f"{number} host{'' if number == 1 else 's'}"


def _say(what: str) -> None:
    sys.stderr.write(f"preflight: {what}\n")
    sys.stderr.flush()
