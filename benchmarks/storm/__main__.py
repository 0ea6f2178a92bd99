"""A storm of real faults on a job, and what the job kept of its pace.

    python -m benchmarks.storm --minutes 10 --rate 6 --seed 1 --ranks 8
    python -m benchmarks.storm --minutes 2 --faults kill,cut,flip
    python -m benchmarks.storm --minutes 5 --peers torchrun,ray-train

Hosts are network namespaces, so it needs root. The faults, their moments and whom they befall follow from the seed. Pace
is compared with that of the same job before the storm and after it. --out holds the job's folder, faults.jsonl (what was
done), detected.jsonl (what the job noticed of it) and summary.json. With --peers kills alone are also done to ours and
the peers, on one host; with --no-lab that is all.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gang.gang import InVain
from benchmarks.lab import LabError
from benchmarks.storm import peers
from benchmarks.storm.kinds import Kind
from benchmarks.storm.lab import Setting, blow, write_summary
from benchmarks.storm.page import page
from benchmarks.storm.picture import draw
from benchmarks.storm.schedule import schedule
from benchmarks.storm.show import Screen
from benchmarks.storm.summary import Run, kept_its_promises, summarise
from benchmarks.system import ROOT, exit_on_signals
from orchestrator.errors import UserError

LEAST_HOSTS = 3
"""A majority that holds other bytes than one host needs as many."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Exits with 2 where it cannot work."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ",".join(Kind)
    parser.add_argument("--minutes", type=float, default=10.0, help="of the storm itself (10)")
    parser.add_argument("--rate", type=float, default=6.0, metavar="PER_MINUTE", help="faults a minute (6)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=8, help="in all (8)")
    parser.add_argument("--ranks-per-host", type=int, default=2, help="(2)")
    parser.add_argument("--faults", default=kinds, metavar="A,B", help=f"kinds; all where left out: {kinds}")
    parser.add_argument("--quiet", type=float, default=45.0, metavar="SECONDS", help="before and after the storm (45)")
    parser.add_argument("--peers", default="", metavar="A,B", help="kills alone, to ours and these: torchrun, ray-train")
    parser.add_argument("--no-lab", action="store_true", help="only what --peers asks for")
    parser.add_argument("--out", type=Path, default=Path("runs/storm"), help="folder of the records (runs/storm)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "storm.md")
    options = parser.parse_args(arguments)
    options.command = command_of(parser, options)
    options.out = options.out.absolute()
    try:
        options.kinds = [Kind(name) for name in dict.fromkeys(options.faults.split(","))]
    except ValueError as error:
        parser.error(f"--faults: {error}; choose from {kinds}")
    options.peers = [name for name in options.peers.split(",") if name]
    known = peers.known_systems(options.ranks)
    for name in options.peers:
        if name not in known:
            parser.error(f"--peers: there is no {name!r}; choose from {', '.join(known)}")
    if options.no_lab and not options.peers:
        parser.error("--no-lab leaves nothing to do; name --peers")
    if options.minutes <= 0 or options.rate <= 0 or options.quiet <= 0:
        parser.error("--minutes, --rate and --quiet are numbers above zero")
    if options.ranks_per_host < 1 or options.ranks % options.ranks_per_host:
        parser.error(f"--ranks: {options.ranks} is no multiple of --ranks-per-host, which is {options.ranks_per_host}")
    if not options.no_lab and options.ranks // options.ranks_per_host < LEAST_HOSTS:
        least = LEAST_HOSTS * options.ranks_per_host
        parser.error(f"--ranks: {options.ranks} are on fewer than {LEAST_HOSTS} hosts; write {least} or more")
    return options


def command_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The command line for the foot of the page, with no path of this machine."""
    words = ["python", "-m", "benchmarks.storm"]
    for name in ("minutes", "rate", "seed", "ranks"):
        words += [f"--{name}", f"{getattr(options, name):g}"]
    for name in ("ranks_per_host", "faults", "quiet", "peers"):
        if (value := getattr(options, name)) != parser.get_default(name):
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join([*words, *(["--no-lab"] if options.no_lab else [])])


def storm(options: argparse.Namespace, screen: Screen) -> Run:
    """In the lab."""
    hosts = options.ranks // options.ranks_per_host
    hosts_min = hosts - hosts // 2
    plan = schedule(options.seed, options.minutes, options.rate, options.kinds, hosts, options.ranks_per_host, hosts_min)
    setting = Setting(options.seed, hosts, options.ranks_per_host, hosts_min, options.minutes, options.quiet, options.out)
    return blow(setting, plan, screen)


def compare(options: argparse.Namespace, screen: Screen) -> list[peers.KillRun]:
    """Kills alone, of ours and the peers."""
    if not options.peers:
        return []
    plan = peers.kills(options.seed, options.minutes, options.rate, options.ranks)
    found = []
    for system in peers.ours_and(options.peers, options.ranks):
        screen.note(f"{system.label}, {system.settings}")
        found.append(peers.measure(system, plan, options.ranks, options.minutes, options.quiet, screen.note))
        screen.note(f"  {found[-1]}")
    return found


def write(options: argparse.Namespace, run: Run | None, kills: list[peers.KillRun]) -> dict[str, Any]:
    """Summary, page and picture; the summary."""
    summary = (summarise(run) if run is not None else {}) | {"kills": [asdict(each) for each in kills]}
    options.out.mkdir(parents=True, exist_ok=True)
    write_summary(options.out / "summary.json", summary | {"command": options.command})
    options.page.parent.mkdir(parents=True, exist_ok=True)
    picture = options.page.with_suffix(".png")
    if run is not None and importlib.util.find_spec("matplotlib") is not None:
        draw(run, picture)
    elif run is not None:
        print("no picture: install matplotlib with: pip install 'quantarion[picture]'", file=sys.stderr)
    name = picture.name if run is not None and picture.exists() else None
    options.page.write_text(page(run, summary, kills, options.command, name))
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Blow, write, and fail where a promise is broken: 1; 2 where there can be no storm."""
    options = parse(arguments)
    exit_on_signals()
    try:
        with Screen() as screen:
            run = None if options.no_lab else storm(options, screen)
            kills = compare(options, screen)
    except (LabError, InVain, UserError) as error:
        print(f"benchmarks.storm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    summary = write(options, run, kills)
    if run is None:
        return 0
    for name in ("throughput_kept", "step_efficiency", "goodput", "each_once", "digests_equal", "false_evictions"):
        print(f"{name}: {summary[name]}")
    print(f"faults: {summary['faults']['done']} done, {summary['late']} noticed late; see {options.page}")
    return 0 if kept_its_promises(summary) else 1


if __name__ == "__main__":
    raise SystemExit(main())
