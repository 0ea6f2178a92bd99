"""What a storm has cost, in numbers: pure functions of the records of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gang.gang import read_json_lines
from benchmarks.storm.findings import Finding, Outcome
from benchmarks.storm.kinds import Kind
from benchmarks.storm.records import Fault
from benchmarks.storm.stretch import Stretch
from orchestrator.records import Generation, Record, generation_of, surviving


@dataclass(frozen=True)
class Pace:
    """Of a stretch: what of the job's work counts that was done in it.

    Attributes:
        steps: committed in it, and kept to the end of the job.
        samples_per_second: of these steps.
        goodput: seconds in which they were computed, over the seconds of the stretch. A step counts from the commit before
            it, or from the moment when its generation began to train, but never before it was computed once more.
    """

    seconds: float
    steps: int
    samples_per_second: float
    goodput: float


def pace(stretch: Stretch, kept: Sequence[Record], events: Iterable[Record]) -> Pace:
    """Of the steps that were `kept`, as `orchestrator.records.surviving` tells them."""
    again = {int(e["step"]): float(e["t"]) for e in events if e["kind"] == "non_finite" and not e["again"]}
    inside = [step for step in kept if stretch.has(float(step["t"]))]
    busy = sum(stretch.shares(_begun(step, again), float(step["t"])) for step in kept)
    if stretch.seconds <= 0:
        return Pace(0.0, 0, 0.0, 0.0)
    samples = sum(int(step["samples"]) for step in inside)
    return Pace(stretch.seconds, len(inside), samples / stretch.seconds, busy / stretch.seconds)


def _begun(step: Record, again: Mapping[int, float]) -> float:
    """Unix seconds. A step of which nobody has measured how long it took counts as none."""
    end = float(step["t"])
    begun = end - float(step["step_seconds"] or 0.0)
    refused = again.get(int(step["step"]), begun)
    return max(begun, refused) if refused <= end else begun


def together(stretches: Sequence[Pace]) -> Pace:
    """Several stretches as one."""
    seconds = sum(each.seconds for each in stretches)
    if seconds <= 0:
        return Pace(0.0, 0, 0.0, 0.0)
    samples = sum(each.samples_per_second * each.seconds for each in stretches)
    busy = sum(each.goodput * each.seconds for each in stretches)
    return Pace(seconds, sum(each.steps for each in stretches), samples / seconds, busy / seconds)


Flipped = tuple[int, Generation]
"""After which step and in which generation a bit has flipped in the memory of a process."""


@dataclass(frozen=True)
class Digests:
    """Of equal states. `shared`: how many states more than one process has told a digest of."""

    shared: int
    different: tuple[int, ...]  # their steps

    @property
    def equal(self) -> bool:
        """Nothing is known where nothing was compared."""
        return self.shared > 0 and not self.different


def compare_digests(lines: Iterable[Record], events: Sequence[Record], excused: Mapping[int, Flipped]) -> Digests:
    """Of the lines of `digests/*.jsonl`; what the job went back from is no state.

    Args:
        excused: by pid, processes that were gone before anybody had to see that a bit in their memory had flipped.
    """
    left = list(
        zip(
            (int(e["at_most"]) for e in events if e["kind"] == "rolls_back"),
            (generation_of(e) for e in events if e["kind"] == "rolled_back"),
            strict=False,
        )
    )
    by_state: dict[tuple[int, ...], dict[int, str]] = {}
    for line in lines:
        state = tuple(int(part) for part in line["state"])
        if any(state[0] > at_most and state[2:4] < generation for at_most, generation in left):
            continue
        if _is_excused(state, excused.get(int(line["pid"])), left):
            continue
        by_state.setdefault(state, {})[int(line["pid"])] = str(line["digest"])
    shared = {state: digests for state, digests in by_state.items() if len(digests) > 1}
    different = sorted({state[0] for state, digests in shared.items() if len(set(digests.values())) > 1})
    return Digests(len(shared), tuple(different))


def _is_excused(state: Sequence[int], flipped: Flipped | None, left: Sequence[tuple[int, Generation]]) -> bool:
    """Whether it is a state of a flipped bit, as long as the job has not gone back since."""
    if flipped is None or state[0] < flipped[0]:
        return False
    return not any(flipped[1] < generation <= tuple(state[2:4]) for _, generation in left)


def read_digests(folder: Path) -> list[Record]:
    return [line for path in sorted(folder.glob("*.jsonl")) for line in read_json_lines(path)]


@dataclass(frozen=True)
class Run:
    """All that is known of a storm when it is over.

    Attributes:
        steps, events: all that were written, in the order of writing.
        quiet: stretches without faults, with all ranks; the one after the storm is missing where they were not back.
        discarded: attempts at steps that count no more, as the audit has found them.
        each_once, problems: the same.
    """

    seed: int
    ranks: int
    steps: Sequence[Record]
    events: Sequence[Record]
    quiet: Sequence[Stretch]
    storm: Stretch
    faults: Sequence[Fault]
    findings: Sequence[Finding]
    evictions: Sequence[Record]
    discarded: int
    each_once: bool
    digests: Digests
    problems: Sequence[str] = field(default_factory=list)
    failure: str = ""


def summarise(run: Run) -> dict[str, Any]:
    """`summary.json`. What could not be measured is null."""
    kept = surviving(run.steps)
    stretches = [pace(each, kept, run.events) for each in run.quiet]
    quiet, storm = together(stretches), pace(run.storm, kept, run.events)
    attempts = storm.steps + run.discarded
    return {
        "seed": run.seed,
        "ranks": run.ranks,
        "seconds": run.storm.seconds,
        "throughput_kept": storm.samples_per_second / quiet.samples_per_second if quiet.samples_per_second else None,
        "step_efficiency": storm.steps / attempts if attempts else None,
        "goodput": storm.goodput if storm.seconds > 0 else None,
        "goodput_quiet": quiet.goodput if quiet.seconds else None,
        "samples_per_second": storm.samples_per_second,
        "samples_per_second_quiet": [each.samples_per_second for each in stretches],
        "steps": storm.steps,
        "discarded": run.discarded,
        "each_once": run.each_once,
        "digests_equal": run.digests.equal,
        "digests_compared": run.digests.shared,
        "digests_different_at": list(run.digests.different),
        "false_evictions": len(run.evictions),
        "falsely_evicted": [str(event["target"]) for event in run.evictions],
        "faults": counted(run.faults, run.findings),
        "late": sum(finding.in_time is False for finding in run.findings),
        "problems": list(run.problems)[:20],
        "failure": run.failure,
    }


def counted(faults: Sequence[Fault], found: Sequence[Finding]) -> dict[str, Any]:
    """How many there were, by kind; those that were passed over with their reasons."""
    by_kind = {}
    for kind in Kind:
        planned = [fault for fault in faults if fault.kind is kind]
        if planned:
            mine = [finding for finding in found if finding.fault.kind is kind]
            by_kind[kind.value] = {
                "planned": len(planned),
                "done": sum(fault.t is not None for fault in planned),
                "noticed": sum(finding.outcome is Outcome.NOTICED for finding in mine),
                "in_time": sum(finding.in_time is True for finding in mine),
                "late": sum(finding.in_time is False for finding in mine),
                "noticed_seconds": _middle(finding.noticed for finding in mine),
                "trained_seconds": _middle(finding.trained for finding in mine),
                "full_seconds": _middle(finding.full for finding in mine),
            }
    skipped = Counter(fault.skipped for fault in faults if fault.skipped)
    done = sum(fault.t is not None for fault in faults)
    return {"planned": len(faults), "done": done, "skipped": dict(skipped), "by_kind": by_kind}


def _middle(values: Iterable[float | None]) -> float | None:
    """Median of those that are known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def kept_its_promises(summary: Mapping[str, Any]) -> bool:
    """Nothing was lost or wrong, and nobody was sent away who had done nothing; how long things took is for the reader."""
    whole = summary["each_once"] and summary["digests_equal"] and not summary["failure"]
    return bool(whole and not summary["false_evictions"])
