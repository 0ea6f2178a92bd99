"""The real coordinator and governor against simulated hosts over real gRPC: what they cost, and how fast they act.

    python -m benchmarks.fleet --hosts 888
    python -m benchmarks.fleet --hosts 10000 --leaders

Each run replaces its own part of --out; the page is made of all that stands there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.fleet.fleet import FleetError
from benchmarks.fleet.page import page
from benchmarks.fleet.records import read, replaced
from benchmarks.fleet.scenario import measure
from benchmarks.fleet.settings import Settings
from benchmarks.machine import made_by
from benchmarks.system import ROOT, exit_on_signals


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=888, help="simulated hosts (888)")
    parser.add_argument("--leaders", action="store_true", help="one stream for each group, instead of one for each host")
    parser.add_argument("--generators", type=int, default=1, help="processes that simulate hosts (1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the quiet while (60)")
    parser.add_argument("--deaths", type=int, default=6, help="hosts to kill, every other one silently (6)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for anything to happen (300)")
    parser.add_argument("--logs", type=Path, help="folder that keeps the job's folder")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "fleet.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "fleet.md")
    options = parser.parse_args(arguments)
    if options.hosts <= 2 * (options.deaths + 1):
        parser.error(f"--hosts is {options.hosts}, of which {options.deaths + 1} are lost; write more than twice as many")
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    exit_on_signals()
    settings = Settings(options.hosts, "", leaders=options.leaders, generators=options.generators, seed=options.seed)
    with tempfile.TemporaryDirectory(prefix="quantarion-fleet-") as temporary:
        storage = options.logs or Path(temporary)
        try:
            result = measure(settings, storage, seconds=options.seconds, deaths=options.deaths, patience=options.patience)
        except FleetError as error:
            sys.exit(str(error))
    print(result, flush=True)
    results = replaced(read(options.out), result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(each) for each in results], indent=2) + "\n")
    commands = "\n".join(_command(each.hosts, leaders=each.leaders) for each in results)
    options.page.write_text(page(results, made_by(commands)))


def _command(hosts: int, *, leaders: bool) -> str:
    return f"python -m benchmarks.fleet --hosts {hosts}{' --leaders' if leaders else ''}"


if __name__ == "__main__":
    main()
