"""A storm on a job in the lab, from the first namespace to the last figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gang.gang import LIMITS, InVain
from benchmarks.gang.start import start_zygote
from benchmarks.lab import Lab
from benchmarks.storm.disk import SmallDisk
from benchmarks.storm.findings import Finding, Outcome, false_evictions, findings
from benchmarks.storm.gang import CHECKPOINT_EVERY, StormGang, armed_fault
from benchmarks.storm.kinds import Kind
from benchmarks.storm.records import FaultLog, write_line
from benchmarks.storm.run import JobEnded, Storm
from benchmarks.storm.schedule import Planned
from benchmarks.storm.show import Screen
from benchmarks.storm.stretch import Stretch
from benchmarks.storm.summary import Flipped, Run, compare_digests, read_digests
from benchmarks.storm.watch import Watch, read_limits
from benchmarks.system import environment
from orchestrator.audit import audit

FAULTS, DETECTED = "faults.jsonl", "detected.jsonl"
OURS_ALONE = ("GLOO_SOCKET_IFNAME",)
"""What ranks find out for themselves, by the address of their host."""


@dataclass(frozen=True)
class Setting:
    """Of one storm.

    Attributes:
        hosts_min: as in the JobSpec.
        minutes: of the storm itself.
        quiet: seconds, before and after it.
        out: folder of the job and of the records.
    """

    seed: int
    hosts: int
    ranks_per_host: int
    hosts_min: int
    minutes: float
    quiet: float
    out: Path


def blow(setting: Setting, plan: Sequence[Planned], screen: Screen) -> Run:
    """All of it. What was found also lies in `setting.out`: every fault in `faults.jsonl`, what the job noticed of each in
    `detected.jsonl`. Whatever happens, nothing that was started or mounted is left.

    Raises:
        LabError: this machine cannot run it.
        InVain: the job did not come up.
    """
    setting.out.mkdir(parents=True, exist_ok=True)
    with _gang(setting, plan) as gang:
        gang.start()
        watch = screen.watch = Watch(gang.folder)
        log = FaultLog(setting.out / FAULTS)
        storm = Storm(gang, watch, plan, log, screen)
        quiet, blown, failure = list[Stretch](), None, ""
        try:
            storm.warm_up()
            quiet.append(storm.quiet(setting.quiet))
            blown = storm.blow(60.0 * setting.minutes)
            if storm.settle():
                quiet.append(storm.quiet(setting.quiet))
            storm.finish()
        except (JobEnded, InVain) as error:
            if not quiet:
                raise
            failure = str(error).splitlines()[0]
        finally:
            storm.let_go()
        watch.look()
    begin = quiet[0].end
    return _judge(setting, gang, watch, storm, quiet, blown or Stretch(begin, _last(watch, begin)), failure)


@contextmanager
def _gang(setting: Setting, plan: Sequence[Planned]) -> Iterator[StormGang]:
    words = environment()
    for name in OURS_ALONE:
        words.pop(name, None)
    with ExitStack() as stack:
        disk = stack.enter_context(SmallDisk(setting.out))
        lab = stack.enter_context(Lab(setting.hosts))
        zygote = stack.enter_context(start_zygote(words))
        gang = StormGang(
            zygote,
            setting.out,
            hosts=setting.hosts,
            ranks_per_host=setting.ranks_per_host,
            seed=setting.seed,
            hosts_min=setting.hosts_min,
            faults=tuple(filter(None, map(armed_fault, plan))),
            lab=lab,
            disk=disk,
        )
        try:
            yield gang
        finally:
            if hasattr(gang, "folder"):
                gang.clear()


def _last(watch: Watch, begin: float) -> float:
    """When a job that failed has told of itself last."""
    return max([begin, *(float(event["t"]) for event in watch.events), *(float(step["t"]) for step in watch.steps)])


def _judge(
    setting: Setting,
    gang: StormGang,
    watch: Watch,
    storm: Storm,
    quiet: Sequence[Stretch],
    blown: Stretch,
    failure: str,
) -> Run:
    found = findings(storm.faults, watch.events, watch.steps, read_limits(gang.folder / LIMITS), CHECKPOINT_EVERY)
    evictions = false_evictions(storm.faults, watch.events)
    audited = audit(gang.folder)
    digests = compare_digests(read_digests(gang.folder / "digests"), watch.events, lost_flips(found))
    (setting.out / DETECTED).write_text("")
    for finding in found:
        write_line(setting.out / DETECTED, {**asdict(finding), "in_time": finding.in_time})
    for event in evictions:
        write_line(setting.out / DETECTED, {"false_eviction": event})
    return Run(
        seed=setting.seed,
        ranks=setting.hosts * setting.ranks_per_host,
        steps=watch.steps,
        events=watch.events,
        quiet=quiet,
        storm=blown,
        faults=storm.faults,
        findings=found,
        evictions=evictions,
        discarded=audited.discarded,
        each_once=audited.each_once,
        digests=digests,
        problems=audited.problems,
        failure=failure,
    )


def lost_flips(found: Sequence[Finding]) -> dict[int, Flipped]:
    """Those whose processes were gone before anybody had to see it."""
    flips = (each.fault for each in found if each.fault.kind is Kind.FLIP and each.outcome is Outcome.LOST)
    return {fault.pid: (fault.step, fault.generation) for fault in flips if fault.pid is not None}


def write_summary(path: Path, summary: object) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(summary, indent=1) + "\n")
    partial.replace(path)
