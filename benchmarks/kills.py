"""kill -9 of one rank after another at random moments, each one listed: `python -m benchmarks.kills`.

Every rank logs every commit with its pid and, every 50 steps, the digest of its whole state. After the last kill the job is
stopped, the digests of equal states are compared, and the audit, a separate program, counts the samples.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.machine import made_by
from benchmarks.measure import Kill, Recovery, Steady, recovery
from benchmarks.peers import ours
from benchmarks.steplog import Commit, LogTail
from benchmarks.system import Running, exit_on_signals
from orchestrator.audit import audit
from orchestrator.errors import UserError
from orchestrator.stop import stop

WORLD = 4
LIMIT_SECONDS = 60.0
PAGE = Path("docs/results/recovery.md")


def log_copy(spares: int) -> Path:
    """Where the output of the gang with that many idle workers is kept; its folder goes with the gang."""
    return Path(tempfile.gettempdir()) / f"kills-{spares}.log"


@dataclass(frozen=True)
class Row:
    """One kill: what it cost, the median step before it, and the longest pause of a survivor until the world was full."""

    recovery: Recovery
    step: float
    pause: float


@dataclass(frozen=True)
class Outcome:
    """What became of one gang: every kill, then the looks at its digests and at its samples."""

    spares: int
    rows: Sequence[Row]
    steps: int
    digested: int
    digests_equal: bool
    problems: Sequence[str]

    @property
    def kept_its_promises(self) -> bool:
        """Nothing was lost, nobody else was restarted, states were compared; how long it took is for the page's reader."""
        survived = all(row.recovery.kept == WORLD - 1 and not row.recovery.steps_lost for row in self.rows)
        return survived and self.digested > 0 and self.digests_equal and not self.problems


def join_pause(commits: Iterable[Commit], kill: Kill, full: float) -> float:
    """Seconds: the longest wait of a survivor between two commits, from its first after the kill to the full world."""
    by_pid: dict[int, list[float]] = defaultdict(list)
    for line in sorted(commits):
        if line.begun > kill.t and line.t <= kill.t + full and line.pid in kill.members:
            by_pid[line.pid].append(line.t)
    return max((b - a for times in by_pid.values() for a, b in itertools.pairwise(times)), default=0.0)


def run(kills: int, spares: int, seed: int, folder: Path) -> list[Row]:
    """Train on `WORLD` ranks of one host and kill them one by one, each once the world is full and `spares` are idle."""
    chance, rows = random.Random(seed), list[Row]()

    def command(folder: Path) -> list[str]:
        return ours.train_command(folder, "train_with_digests", "mlp", WORLD, spares=spares)

    with Running(replace(ours.systems(WORLD)[0], command=command), folder) as running:
        tail, commits = LogTail(folder), list[Commit]()
        while len(rows) < kills:
            steady = _steady(running, spares, tail, commits)
            time.sleep(chance.uniform(0.0, 1.0))
            commits += (new := tail.poll())
            steady.add(new)
            members = steady.members(time.time())
            if members is None:
                continue
            rank = chance.choice(sorted(members))
            kill = Kill(time.time(), members[rank], rank, frozenset(members.values()))
            os.kill(kill.pid, signal.SIGKILL)
            rows.append(_row(running, spares, tail, commits, kill, steady.step_seconds()))
            print(f"  kill {len(rows)}: {rows[-1]}", flush=True)
            del commits[:-2000]
        stop(ours.NAME, folder / "runs")
    return rows


def _row(running: Running, spares: int, tail: LogTail, commits: list[Commit], kill: Kill, step: float) -> Row:
    result = recovery(commits, kill)
    while result.full is None and time.time() < kill.t + LIMIT_SECONDS and running.alive:
        time.sleep(0.02)
        if new := tail.poll():
            commits += new
            result = recovery([line for line in commits if line.t > kill.t - 10], kill)
    if result.full is None:
        kind = f"the world was not full again within {LIMIT_SECONDS:g} s after the kill of rank {kill.rank}"
        raise SystemExit(f"{kind}; see {log_copy(spares)}")
    return Row(result, step, join_pause(commits, kill, result.full))


def _steady(running: Running, spares: int, tail: LogTail, commits: list[Commit]) -> Steady:
    steady, deadline = Steady(WORLD, 30, 3.0), time.time() + 120
    while time.time() < deadline and running.alive:
        commits += (new := tail.poll())
        steady.add(new)
        if steady.members(time.time()) and _idle(running.folder) >= spares:
            return steady
        time.sleep(0.02)
    raise SystemExit(f"no full and steady world; see {log_copy(spares)}")


def _idle(folder: Path) -> int:
    from orchestrator.status import fetch

    answer = fetch(folder / "runs" / ours.NAME)
    return sum(rank["state"] == "idle" for rank in answer["ranks"]) if answer else 0


def digests_agree(folder: Path) -> tuple[int, bool]:
    """How many states were digested by more than one rank, and whether all digests of a state were equal (EP-18)."""
    by_state: dict[str, set[str]] = defaultdict(set)
    count: dict[str, int] = defaultdict(int)
    for line in (folder / "digests.jsonl").read_text().splitlines():
        entry = json.loads(line)
        by_state[entry["state"]].add(entry["digest"])
        count[entry["state"]] += 1
    shared = [state for state, number in count.items() if number > 1]
    return len(shared), all(len(by_state[state]) == 1 for state in shared)


def measure(kills: int, spares: int, seed: int) -> Outcome:
    """One gang, killed `kills` times, then stopped and looked at. Raises UserError as `audit` does."""
    folder = Path(tempfile.mkdtemp(prefix="qk-"))
    try:
        rows = run(kills, spares, seed, folder)
        audited = audit(folder / "runs" / ours.NAME)
        steps = sum(1 for _ in (folder / "runs" / ours.NAME / "steps.jsonl").open())
        return Outcome(spares, rows, steps, *digests_agree(folder), audited.problems)
    finally:
        if (folder / "output.log").exists():
            shutil.copy(folder / "output.log", log_copy(spares))
        shutil.rmtree(folder, ignore_errors=True)


def section(outcome: Outcome) -> list[str]:
    """Every kill of one gang, and the figures the bounds are for, as lines of markdown."""
    idle = "One preloaded idle worker" if outcome.spares else "No idle worker: a new process is started after each kill"
    lines = [
        f"## {idle}",
        "",
        "| kill | rank | step before | every survivor's next commit | minus one step | full world again "
        "| longest pause until then | survivors kept their pid | steps lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for number, row in enumerate(outcome.rows, 1):
        result, survivors = row.recovery, row.recovery.survivors or 0.0
        lines.append(
            f"| {number} | {result.rank} | {row.step:.3f} | {survivors:.3f} | {survivors - row.step:.3f} "
            f"| {result.full:.2f} | {row.pause:.3f} | {result.kept} of {WORLD - 1} | {result.steps_lost} |"
        )
    excess = [row.recovery.survivors - row.step for row in outcome.rows if row.recovery.survivors is not None]
    full = [row.recovery.full for row in outcome.rows if row.recovery.full is not None]
    pauses = [row.pause - row.step for row in outcome.rows]
    return [
        *lines,
        "",
        "| figure | median | worst | bound |",
        "|---|---|---|---|",
        f"| survivors' next commit, less one step | {median(excess):.3f} s | {max(excess):.3f} s "
        "| 0.3 s median, 1 s worst |",
        f"| the world full again, healed | {median(full):.2f} s | {max(full):.2f} s | {4 if outcome.spares else 20} s |",
        f"| pause while the rank comes back, less one step | {median(pauses):.3f} s | {max(pauses):.3f} s | 0.5 s |",
        "",
        f"{outcome.steps} steps committed. {outcome.digested} states were digested (BLAKE2b-128 of parameters, buffers, "
        f"optimizer) by more than one rank: {'all equal' if outcome.digests_equal else 'NOT EQUAL'}. Each sample of each "
        f"epoch in exactly one committed step: {'NO' if outcome.problems else 'yes'} (`quantarion audit`).",
        "",
    ]


def page(outcomes: Sequence[Outcome], command: str) -> str:
    """The results as markdown."""
    lines = [
        "# Recovery from kill -9",
        "",
        f"`kill -9` of a random one of {WORLD} ranks at a random moment, again and again; one host, MLP of 1.29 M "
        "parameters, global batch 256. Seconds from the kill, as logged by the ranks themselves.",
        "",
        *(line for outcome in outcomes for line in section(outcome)),
        made_by(command),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write the page, and fail where a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="with one preloaded idle worker")
    parser.add_argument("--cold-kills", type=int, default=5, help="then, in another gang, without one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    exit_on_signals()
    try:
        outcomes = [
            measure(kills, spares, options.seed) for kills, spares in ((options.kills, 1), (options.cold_kills, 0)) if kills
        ]
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for outcome in outcomes:
        for problem in outcome.problems[:5]:
            print(problem)
    text = page(outcomes, "python -m benchmarks.kills " + " ".join(arguments or sys.argv[1:]))
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(text)
    print(text)
    return 0 if all(outcome.kept_its_promises for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
