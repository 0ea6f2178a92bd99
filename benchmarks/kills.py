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

from benchmarks.machine import describe
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


@dataclass(frozen=True)
class Row:
    """One kill: what it cost, the median step before it, and the longest pause of a survivor until the world was full."""

    recovery: Recovery
    step: float
    pause: float


def join_pause(commits: Iterable[Commit], kill: Kill, full: float) -> float:
    """Seconds: the longest wait of a survivor between two commits, from its first after the kill to the full world."""
    by_pid: dict[int, list[float]] = defaultdict(list)
    for line in sorted(commits):
        if line.begun > kill.t and line.t <= kill.t + full and line.pid in kill.members:
            by_pid[line.pid].append(line.t)
    return max((b - a for times in by_pid.values() for a, b in itertools.pairwise(times)), default=0.0)


def run(kills: int, seed: int, folder: Path) -> list[Row]:
    """Train on `WORLD` ranks of one host and kill them one by one."""
    chance, rows = random.Random(seed), list[Row]()
    system = replace(ours.systems(WORLD)[0], command=lambda f: ours.train_command(f, "train_with_digests", "mlp", WORLD))
    with Running(system, folder) as running:
        tail, commits = LogTail(folder), list[Commit]()
        while len(rows) < kills:
            steady = _steady(running, tail, commits)
            time.sleep(chance.uniform(0.0, 1.0))
            commits += (new := tail.poll())
            steady.add(new)
            members = steady.members(time.time())
            if members is None:
                continue
            rank = chance.choice(sorted(members))
            kill = Kill(time.time(), members[rank], rank, frozenset(members.values()))
            os.kill(kill.pid, signal.SIGKILL)
            rows.append(_row(running, tail, commits, kill, steady.step_seconds()))
            print(f"  kill {len(rows)}: {rows[-1]}", flush=True)
            del commits[:-2000]
        stop(ours.NAME, folder / "runs")
    return rows


def _row(running: Running, tail: LogTail, commits: list[Commit], kill: Kill, step: float) -> Row:
    result = recovery(commits, kill)
    while result.full is None and time.time() < kill.t + LIMIT_SECONDS and running.alive:
        time.sleep(0.02)
        if new := tail.poll():
            commits += new
            result = recovery([line for line in commits if line.t > kill.t - 10], kill)
    if result.full is None:
        raise SystemExit(f"the world was not full again within {LIMIT_SECONDS:g} s after the kill of rank {kill.rank}")
    return Row(result, step, join_pause(commits, kill, result.full))


def _steady(running: Running, tail: LogTail, commits: list[Commit]) -> Steady:
    steady, deadline = Steady(WORLD, 30, 3.0), time.time() + 120
    while time.time() < deadline and running.alive:
        commits += (new := tail.poll())
        steady.add(new)
        if steady.members(time.time()) and _spare_is_idle(running.folder):
            return steady
        time.sleep(0.02)
    raise SystemExit("no full and steady world; see " + str(running.folder / "output.log"))


def _spare_is_idle(folder: Path) -> bool:
    from orchestrator.status import fetch

    answer = fetch(folder / "runs" / ours.NAME)
    return answer is not None and any(rank["state"] == "idle" for rank in answer["ranks"])


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


def page(rows: Sequence[Row], digests: tuple[int, bool], each_once: bool, steps: int, command: str) -> str:
    """The results as markdown."""
    lines = [
        "# Recovery from kill -9",
        "",
        f"{len(rows)} times `kill -9` of a random one of {WORLD} ranks at a random moment; one host, one preloaded idle "
        "worker, MLP of 1.29 M parameters, global batch 256. Seconds from the kill, as logged by the ranks themselves.",
        "",
        "| kill | rank | step before | every survivor's next commit | minus one step | full world again "
        "| longest pause until then | survivors kept their pid | steps lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for number, row in enumerate(rows, 1):
        result, survivors = row.recovery, row.recovery.survivors or 0.0
        lines.append(
            f"| {number} | {result.rank} | {row.step:.3f} | {survivors:.3f} | {survivors - row.step:.3f} "
            f"| {result.full:.2f} | {row.pause:.3f} | {result.kept} of {WORLD - 1} | {result.steps_lost} |"
        )
    excess = [row.recovery.survivors - row.step for row in rows if row.recovery.survivors is not None]
    full = [row.recovery.full for row in rows if row.recovery.full is not None]
    pauses = [row.pause - row.step for row in rows]
    lines += [
        "",
        "| figure | median | worst | bound |",
        "|---|---|---|---|",
        f"| survivors' next commit, less one step | {median(excess):.3f} s | {max(excess):.3f} s "
        "| 0.3 s median, 1 s worst |",
        f"| the world full again, healed | {median(full):.2f} s | {max(full):.2f} s | 4 s |",
        f"| pause while the rank comes back, less one step | {median(pauses):.3f} s | {max(pauses):.3f} s | 0.5 s |",
        "",
        f"{steps} steps committed. {digests[0]} states were digested (BLAKE2b-128 of parameters, buffers, optimizer) by "
        f"more than one rank: {'all equal' if digests[1] else 'NOT EQUAL'}. Each sample of each epoch in exactly one "
        f"committed step: {'yes' if each_once else 'NO'} (`quantarion audit`).",
        "",
        f"Made by\n\n```\n{command}\n```\n\non {describe()}",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write the page, and fail where a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    exit_on_signals()
    folder = Path(tempfile.mkdtemp(prefix="qk-"))
    try:
        rows = run(options.kills, options.seed, folder)
        audited = audit(folder / "runs" / ours.NAME)
        digests = digests_agree(folder)
        steps = sum(1 for _ in (folder / "runs" / ours.NAME / "steps.jsonl").open())
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        shutil.copy(folder / "output.log", Path(tempfile.gettempdir()) / "kills.log")
        shutil.rmtree(folder, ignore_errors=True)
    for problem in audited.problems[:5]:
        print(problem)
    text = page(
        rows, digests, audited.each_once, steps, "python -m benchmarks.kills " + " ".join(arguments or sys.argv[1:])
    )
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(text)
    print(text)
    return 0 if digests[1] and audited.each_once and all(row.recovery.kept == WORLD - 1 for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
