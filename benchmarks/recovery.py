"""Recovery after `kill -9` of one of four ranks on one host: Quantarion and its peers, one after the other, in one run.

    python -m benchmarks.recovery --kills 5 --systems ours,torchrun-50,torchft-tuned --out recovery.json

Every system trains the same model on the same data with one thread per rank. When the full world has run undisturbed
for at least 30 steps and 3 seconds, a rank is killed at a random moment, rank 0 and others in turn; the next kill
follows when the world is full and steady again. A system that is not full again within the limit is started anew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.machine import made_by
from benchmarks.measure import Kill, Recovery, Steady, recovery, spread
from benchmarks.peers import horovod_elastic, ours, ray_train, torchft_replica, torchrun_elastic
from benchmarks.steplog import Commit, LogTail
from benchmarks.system import ROOT, Running, System, exit_on_signals

WORLD = 4
STEADY_STEPS = 30
STEADY_SECONDS = 3.0
RANDOM_SECONDS = 2.0
POLL_SECONDS = 0.05


@dataclass
class Row:
    """All kills of one system; `problem` says why there are fewer than asked for."""

    system: System
    kills: list[Recovery] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    problem: str | None = None


class NotSteady(Exception):
    """The system did not reach a full, steady world within the limit, or ended by itself."""


def all_systems(horovod_python: str | None) -> list[System]:
    """Every row the table can have, in its order."""
    return [
        *ours.systems(WORLD),
        *torchrun_elastic.systems(WORLD),
        *ray_train.systems(WORLD),
        *torchft_replica.systems(WORLD),
        *horovod_elastic.systems(WORLD, horovod_python),
    ]


def measure(system: System, kills: int, limit: float, chance: random.Random, keep: Path | None) -> Row:
    """Start `system` and kill one rank `kills` times; one not full again within `limit` seconds is started anew."""
    row = Row(system, problem=system.missing())
    while row.problem is None and len(row.kills) < kills:
        folder = Path(tempfile.mkdtemp(prefix="qb-"))
        try:
            with Running(system, folder) as running:
                _kill_until_broken(running, row, kills, limit, chance)
        except NotSteady as error:
            row.problem = str(error)
        finally:
            if keep:
                ignore = shutil.ignore_patterns("ray", "tmp", "storage")
                shutil.copytree(folder, keep / f"{system.key}-{folder.name}", ignore=ignore)
            shutil.rmtree(folder, ignore_errors=True)
    return row


def _kill_until_broken(running: Running, row: Row, kills: int, limit: float, chance: random.Random) -> None:
    tail, commits = LogTail(running.folder), list[Commit]()
    while len(row.kills) < kills:
        steady = _wait_until_steady(running, tail, commits, limit)
        row.step_seconds.append(steady.step_seconds())
        time.sleep(chance.uniform(0, RANDOM_SECONDS))
        new = tail.poll()
        commits += new
        steady.add(new)
        members = steady.members(time.time())
        if members is None:
            continue
        rank = 0 if len(row.kills) % 2 else chance.choice([rank for rank in members if rank])
        kill = Kill(time.time(), members[rank], rank, frozenset(members.values()))
        os.kill(kill.pid, signal.SIGKILL)
        result = _wait_until_full(running, tail, commits, kill, limit)
        row.kills.append(result)
        print(f"  {row.system.key}: rank {rank} killed: {result}", flush=True)
        if result.full is None:
            return
        del commits[:-1000]


def _wait_until_steady(running: Running, tail: LogTail, commits: list[Commit], limit: float) -> Steady:
    steady, deadline = Steady(WORLD, STEADY_STEPS, STEADY_SECONDS), time.time() + limit
    while time.time() < deadline and running.alive:
        new = tail.poll()
        commits += new
        steady.add(new)
        if steady.members(time.time()):
            return steady
        time.sleep(POLL_SECONDS)
    what = f"no full and steady world within {limit:g} s" if running.alive else "ended by itself"
    last = (running.folder / "output.log").read_text(errors="replace").strip().splitlines()[-1:]
    raise NotSteady(f"{what}; its last line: {''.join(last)[:200]}")


def _wait_until_full(running: Running, tail: LogTail, commits: list[Commit], kill: Kill, limit: float) -> Recovery:
    result = recovery(commits, kill)
    while result.full is None and time.time() < kill.t + limit and running.alive:
        time.sleep(POLL_SECONDS)
        if new := tail.poll():
            commits += new
            result = recovery([line for line in commits if line.t > kill.t - 60], kill)
    return result


def table(rows: Sequence[Row], limit: float) -> str:
    """The markdown table."""
    lines = [
        "| system | settings | step ms | kills | next new step s | by all survivors s | full world s "
        "| steps lost | survivors kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not row.kills:
            lines.append(f"| {row.system.label} | {row.system.settings} | – | 0 | {row.problem} | – | – | – | – |")
            continue
        cells = [
            row.system.label,
            row.system.settings,
            f"{statistics.median(row.step_seconds) * 1000:.0f}",
            str(len(row.kills)),
            spread([kill.first for kill in row.kills], limit),
            spread([kill.survivors for kill in row.kills], limit),
            spread([kill.full for kill in row.kills], limit),
            _counts([kill.steps_lost for kill in row.kills]),
            f"{_counts([kill.kept for kill in row.kills])} of {WORLD - 1}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _counts(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{statistics.median(values):g} ({low} to {high})"


def page(rows: Sequence[Row], limit: float, command: str) -> str:
    """The results page: the table, what its columns mean, the command and the machine."""
    problems = [f"- {row.system.label} ({row.system.settings}): {row.problem}" for row in rows if row.problem and row.kills]
    notes = ["", "Not all kills were done:", "", *problems] if problems else []
    return "\n".join(
        [
            "# Recovery after kill -9 of one of four ranks on one host",
            "",
            "MLP 784-1000-500-10 (1.29 M parameters), SGD with momentum, global batch 256, one thread per rank, gloo.",
            "Times are median (minimum to maximum), counted from the kill.",
            "",
            table(rows, limit),
            *notes,
            "",
            "- *next new step*: the first step committed anywhere that began after the kill.",
            "- *by all survivors*: as many processes as survived have each committed such a step, every survivor that",
            "  the system kept among them.",
            f"- *full world*: {WORLD} distinct processes have committed one such step of a full world.",
            "- *steps lost*: committed before the kill and computed again after it.",
            "- *survivors kept*: processes that went on under the same pid.",
            f"- The limit per kill is {limit:g} s. Victims are other ranks and rank 0 in turn.",
            "",
            made_by(command),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write the table and the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=5, help="kills per system")
    parser.add_argument(
        "--systems", default="all", help="rows, separated by commas; a name without suffix takes all of its rows"
    )
    parser.add_argument("--limit", type=float, default=120.0, help="seconds until a kill counts as not recovered")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write every kill as JSON")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "recovery-peers.md")
    parser.add_argument("--keep", type=Path, help="copy the logs of every run to this folder")
    parser.add_argument("--horovod-python", help="the interpreter of an environment that holds Horovod")
    options = parser.parse_args(arguments)
    chosen = select(all_systems(options.horovod_python), options.systems)
    exit_on_signals()
    rows = []
    for number, system in enumerate(chosen):
        print(f"{system.key}: {system.label}, {system.settings}", flush=True)
        rows.append(measure(system, options.kills, options.limit, random.Random(options.seed + number), options.keep))
        if rows[-1].problem:
            print(f"  {rows[-1].problem}", flush=True)
    print(table(rows, options.limit))
    if options.out:
        options.out.write_text(json.dumps([_record(row) for row in rows], indent=1) + "\n")
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(page(rows, options.limit, _command(options)))


def select(systems: Sequence[System], names: str) -> list[System]:
    """The systems named; `torchrun` means every row whose key is `torchrun` or begins with `torchrun-`.

    Exits with a sentence when a name fits no row.
    """
    if names == "all":
        return list(systems)
    wanted = names.split(",")
    for name in wanted:
        if not any(_fits(system.key, name) for system in systems):
            sys.exit(f"--systems: no system is called {name!r}; choose from {', '.join(system.key for system in systems)}")
    return [system for system in systems if any(_fits(system.key, name) for name in wanted)]


def _fits(key: str, name: str) -> bool:
    return key == name or key.startswith(name + "-")


def _command(options: argparse.Namespace) -> str:
    words = ["python", "-m", "benchmarks.recovery", "--kills", str(options.kills), "--systems", options.systems]
    words += ["--limit", f"{options.limit:g}", "--seed", str(options.seed)]
    if options.out:
        words += ["--out", options.out.name]
    if options.horovod_python:
        words += ["--horovod-python", "VENV/bin/python"]
    return shlex.join(words)


def _record(row: Row) -> dict[str, object]:
    return {
        "system": row.system.key,
        "label": row.system.label,
        "settings": row.system.settings,
        "step_seconds": row.step_seconds,
        "kills": [asdict(kill) for kill in row.kills],
        "problem": row.problem,
    }


if __name__ == "__main__":
    main()
