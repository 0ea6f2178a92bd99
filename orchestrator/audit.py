"""Was every sample in exactly one committed step? Answered from what was recorded, not from the plan (EP-17).

    python -m orchestrator.audit runs/my-job

The ranks note the ids that they read where they read them (`samples/*.jsonl`); a committed step is a line of
`steps.jsonl`. A step's samples are the ids noted under exactly its (step, generation, attempt). This program joins
the two and knows nothing of how the samples were dealt out: it never imports the sampler, nor any other part that
trains.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from orchestrator.errors import ExitCode, UserError
from orchestrator.records import Record, generation_of, read_events, read_lines, read_object, read_steps

SAMPLES = "samples"
SAMPLE_KEYS = frozenset({"step", "generation", "attempt", "epoch", "ids"})
MAX_PROBLEMS = 20
"""More problems than these are counted, not spelled out."""

Key = tuple[int, int, int, int]
"""(step, incarnation, counter, attempt)."""


@dataclass(frozen=True)
class EpochAudit:
    """One epoch of the surviving line."""

    epoch: int
    steps: int
    samples: int  # distinct ids
    complete: bool  # every sample is due


@dataclass
class AuditResult:
    """What was found.

    `per_epoch` is the number of samples of an epoch, or None while no epoch is complete; `discarded` the number of
    attempts at a step that ranks had read samples for and that are not on the surviving line.
    """

    epochs: list[EpochAudit] = field(default_factory=list)
    per_epoch: int | None = None
    steps: int = 0
    discarded: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def each_once(self) -> bool:
        """Every sample of each complete epoch is in exactly one committed step, and at most once in the last one."""
        return not self.problems


def audit(folder: Path) -> AuditResult:
    """Join the sample ids recorded in `folder` with its surviving line of steps.

    Raises:
        OSError: a file cannot be read.
    """
    result = AuditResult()
    steps = read_steps(folder)
    result.steps = len(steps)
    if not steps:
        result.problems.append("steps.jsonl has no committed step")
        return result
    result.problems += _gaps(steps)
    read, wrong, result.discarded = _recorded(folder, steps)
    result.problems += wrong
    epochs: dict[int, list[Record]] = {}
    for step in steps:
        result.problems += _step_problems(step, read.get(_key(step)))
        epochs.setdefault(int(step["epoch"]), []).append(step)
    counts = {
        epoch: Counter(sample for step in members for sample in set(read.get(_key(step)) or ()))
        for epoch, members in epochs.items()
    }
    declared = _declared(folder, steps)
    largest = max((max(count, default=-1) for count in counts.values()), default=-1)
    total = largest + 1 if declared is None else declared
    if largest >= total:
        result.problems.append(f"sample {largest} was read, but there are {total} samples, 0 to {total - 1}")
    for epoch in sorted(epochs):
        complete = _is_complete(epoch, epochs, counts[epoch], total, declared is not None)
        result.epochs.append(EpochAudit(epoch, len(epochs[epoch]), len(counts[epoch]), complete))
        result.problems += _epoch_problems(epoch, counts[epoch], total, complete)
        if complete:
            result.per_epoch = total
    return result


def _key(record: Record) -> Key:
    return (int(record["step"]), *generation_of(record), int(record["attempt"]))


def _declared(folder: Path, steps: Sequence[Record]) -> int | None:
    """How many samples the data set has, where the job says so: in its result, its steps, or a `plan` event."""
    sources = [read_object(folder / "result.json"), steps[-1], *reversed(read_events(folder))]
    sizes = (source.get("num_samples") for source in sources)
    return next((size for size in sizes if isinstance(size, int)), None)


def _gaps(steps: Sequence[Record]) -> Iterator[str]:
    """Steps are numbered from 1 without a hole; a hole is a line that nobody wrote."""
    expected = 1
    for record in steps:
        step = int(record["step"])
        if step > expected:
            missing = f"step {expected}" if step == expected + 1 else f"steps {expected} to {step - 1}"
            yield f"steps.jsonl has no line for {missing}"
        expected = step + 1


def _recorded(folder: Path, steps: Sequence[Record]) -> tuple[dict[Key, list[int]], list[str], int]:
    """Ids per surviving step over all ranks, what is wrong with the records, and how many other attempts there are.

    An attempt beyond the newest committed step is under way, not discarded.
    """
    epochs = {_key(step): int(step["epoch"]) for step in steps}
    newest = (int(steps[-1]["step"]), generation_of(steps[-1]))
    read: dict[Key, list[int]] = {}
    problems: list[str] = []
    others: set[Key] = set()
    for path in sorted((folder / SAMPLES).glob("*.jsonl")):
        mine: set[Key] = set()
        for record in read_lines(path, SAMPLE_KEYS):
            key = _key(record)
            if key not in epochs:
                if key[0] <= newest[0] or key[1:3] < newest[1]:
                    others.add(key)
                continue
            if key in mine:
                problems.append(f"{SAMPLES}/{path.name} has {_name(key)} twice")
            if int(record["epoch"]) != epochs[key]:
                problems.append(f"{SAMPLES}/{path.name} has {_name(key)} in epoch {record['epoch']}, not {epochs[key]}")
            mine.add(key)
            read.setdefault(key, []).extend(int(sample) for sample in record["ids"])
    return read, problems, len(others)


def _step_problems(step: Record, ids: Sequence[int] | None) -> Iterator[str]:
    """The ids recorded for a committed step are as many as its line says, and distinct."""
    name = _name(_key(step))
    if ids is None:
        yield f"nothing in {SAMPLES}/ was recorded for {name}"
        return
    if len(ids) != int(step["samples"]):
        yield f"{name} committed {step['samples']} samples, but {len(ids)} were recorded as read"
    doubled = [sample for sample, times in Counter(ids).items() if times > 1]
    if doubled:
        yield f"{name} read {_some(sorted(doubled), len(doubled))} more than once"


def _is_complete(epoch: int, epochs: dict[int, list[Record]], count: Counter[int], total: int, declared: bool) -> bool:
    """Is every sample due in this epoch?

    In every epoch but the last one; in the last one when it took as many steps or committed as many samples as an
    epoch has. A single epoch of a set whose size nobody stated is complete when the ids seen have no hole.
    """
    if epoch != max(epochs):
        return True
    earlier = [len(steps) for number, steps in epochs.items() if number != epoch]
    if not earlier and not declared:
        return len(count) == total
    if earlier and len(epochs[epoch]) >= max(earlier):
        return True
    return sum(int(step["samples"]) for step in epochs[epoch]) >= total


def _epoch_problems(epoch: int, count: Counter[int], total: int, complete: bool) -> Iterator[str]:
    """Each id at most once; in a complete epoch each of 0 … total - 1 once."""
    doubled = sorted(sample for sample, times in count.items() if times > 1)
    if doubled:
        yield f"epoch {epoch}: {_some(doubled, len(doubled))} in more than one committed step"
    missing = total - sum(0 <= sample < total for sample in count)
    if complete and missing:
        unread = (sample for sample in range(total) if sample not in count)
        yield f"epoch {epoch}: {_some(unread, missing)} in no committed step"


def _name(key: Key) -> str:
    step, incarnation, counter, attempt = key
    return f"step {step} (generation {incarnation}.{counter}, attempt {attempt})"


def _some(samples: Iterable[int], number: int) -> str:
    """Samples for a sentence: the first five, and how many more of `number` there are."""
    shown = ", ".join(str(sample) for sample in islice(samples, 5))
    more = f" and {number - 5} more" if number > 5 else ""
    return f"{'sample' if number == 1 else 'samples'} {shown}{more}"


def main(folder: Path) -> int:
    """Print what the audit of `folder` found; 0 where it holds, 1 where it does not.

    Raises:
        UserError: exit code 3, there is nothing to audit in `folder`; exit code 4, it cannot be read.
    """
    if not (folder / "steps.jsonl").is_file():
        raise UserError(f"{folder} has no steps.jsonl; write the folder of a job that has trained", ExitCode.DATA)
    if not (folder / SAMPLES).is_dir():
        raise UserError(f"{folder} has no record of samples; train with record_samples: true, then audit", ExitCode.DATA)
    try:
        result = audit(folder)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})", ExitCode.STORAGE) from None
    for epoch in result.epochs:
        state = "complete" if epoch.complete else "unfinished"
        print(f"epoch {epoch.epoch}: {epoch.steps} steps, {epoch.samples} samples, {state}")
    for problem in result.problems[:MAX_PROBLEMS]:
        print(f"problem: {problem}")
    if len(result.problems) > MAX_PROBLEMS:
        print(f"and {len(result.problems) - MAX_PROBLEMS} more problems")
    verdict = "each sample once" if result.each_once else f"{len(result.problems)} problems"
    print(f"audit: {verdict}, {result.steps} committed steps, {result.discarded} discarded attempts")
    return ExitCode.DONE if result.each_once else ExitCode.BUG


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("write: python -m orchestrator.audit FOLDER_OF_A_JOB", file=sys.stderr)
        raise SystemExit(int(ExitCode.USAGE))
    try:
        raise SystemExit(main(Path(sys.argv[1])))
    except UserError as problem:
        print(problem, file=sys.stderr)
        raise SystemExit(problem.exit_code) from None
