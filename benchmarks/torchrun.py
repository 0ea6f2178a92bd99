"""A script of plain torchrun over shaped links, with our communication hook and with its peers: CC-25, CC-28.

    python -m benchmarks.torchrun
    python -m benchmarks.torchrun --rates 100 --hosts 2 --ranks-per-host 2 --out torchrun.json

Every host of the lab runs torchrun itself, on `benchmarks/torchrun_script.py`. All methods do the same steps on the same
words; those after the first `--settle` count.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, quantiles

from rich.progress import Progress

from benchmarks.lab import Lab, LabError
from benchmarks.lab.ranks import MASTER_PORT
from benchmarks.machine import made_by
from benchmarks.system import ROOT, exit_on_signals
from benchmarks.torchrun_script import METHODS

SCRIPT = Path(__file__).with_name("torchrun_script.py")
PAGE = ROOT / "docs" / "results" / "torchrun.md"
LABELS = {
    "ddp-fp32": "DDP fp32",
    "ddp-fp16": "DDP fp16 hook",
    "torch-powersgd": "torch PowerSGD hook, rank 4",
    "ours": "**ours, two lines**",
}
LIMIT_SECONDS = 900.0


class Failed(Exception):
    """A run ended otherwise than it should, in a sentence."""


@dataclass(frozen=True)
class Run:
    """One run of the script: the seconds of each step that counts, the accuracy on their words, bytes per step and host."""

    rate: float
    method: str
    number: int
    seconds: list[float]
    accuracy: float
    payload: float


def run(lab: Lab, ranks: int, rate: float, method: str, number: int, steps: int, settle: int) -> Run:
    """Start torchrun on every host and wait for it. Raises Failed with the last line that it wrote."""
    lab.set_rate(rate)
    hosts = lab.hosts
    script = [str(SCRIPT), "--method", method, "--steps", str(steps)]
    before = lab.traffic()
    started = [
        host.popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--nnodes",
                    str(len(hosts)),
                    "--node-rank",
                    str(host.index),
                ),
                *("--nproc-per-node", str(ranks), "--master-addr", hosts[0].address, "--master-port", str(MASTER_PORT)),
                *script,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for host in hosts
    ]
    said = []
    for process in started:
        try:
            said.append(process.communicate(timeout=LIMIT_SECONDS)[0].decode(errors="replace"))
        except subprocess.TimeoutExpired:
            raise Failed(f"{method} at {rate:g} Mbit/s: not done after {LIMIT_SECONDS:g} s") from None
    after = lab.traffic()
    if any(process.returncode for process in started):
        last = (
            next(text for process, text in zip(started, said, strict=True) if process.returncode).strip().splitlines()[-1:]
        )
        raise Failed(f"{method} at {rate:g} Mbit/s: torchrun ended with an error; its last line: {''.join(last)[:200]}")
    found = json.loads(next(line for line in said[0].splitlines() if line.startswith('{"seconds"')))
    payload = fmean(b.sent_payload - a.sent_payload for a, b in zip(before, after, strict=True)) / steps
    return Run(rate, method, number, found["seconds"][settle:], fmean(found["accuracies"][settle:]), payload)


def page(runs: Sequence[Run], hosts: int, ranks: int, settle: int, command: str) -> str:
    """The results as markdown."""
    lines = [
        "# A script of torchrun",
        "",
        f"`torchrun` on {hosts} hosts of a lab with {ranks} rank{'s' if ranks > 1 else ''} each, links shaped with tbf, "
        "one thread per rank. The script is `benchmarks/torchrun_script.py`: a GRU of 1.5 M parameters, Adam, and the two "
        f"lines of [comm.md](../comm.md). The first {settle} steps count for no method; the table has the median and the "
        "95th percentile of the others over all rounds, as rank 0 took them. *kB* are the payload of TCP on a host's "
        "interface per step, over all steps, with the start of the processes in it. Accuracy is that on the words of rank "
        "0 in the steps that count.",
        "",
        "| Mbit/s | method | steps | ms | p95 | × DDP fp16 | kB | accuracy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rate in sorted({each.rate for each in runs}, reverse=True):
        at_rate = [each for each in runs if each.rate == rate]
        half = [second for each in at_rate if each.method == "ddp-fp16" for second in each.seconds]
        for method in METHODS:
            mine = [each for each in at_rate if each.method == method]
            if mine:
                seconds = [second for each in mine for second in each.seconds]
                ratio = f"{median(seconds) / median(half):.2f}" if half else "–"
                lines.append(
                    f"| {rate:g} | {LABELS[method]} | {len(seconds)} | {median(seconds) * 1000:.1f} "
                    f"| {quantiles(seconds, n=20)[-1] * 1000:.1f} | {ratio} | {fmean(e.payload for e in mine) / 1e3:.0f} "
                    f"| {fmean(e.accuracy for e in mine):.1%} |"
                )
    return "\n".join([*lines, "", made_by(command), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the page; 1 where a run failed, 2 where there can be no lab."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.torchrun", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--rates", default="1000,100", help="Mbit/s, separated by commas (1000,100)")
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--steps", type=int, default=200, help="of each run (200)")
    parser.add_argument("--settle", type=int, default=120, help="of these, that do not count (120)")
    parser.add_argument("--rounds", type=int, default=2, help="in which everything is measured (2)")
    parser.add_argument("--out", type=Path, help="raw measurements, JSON")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    methods, rates = options.methods.split(","), [float(rate) for rate in options.rates.split(",")]
    if unknown := sorted(set(methods) - set(METHODS)):
        parser.error(f"--methods: there is no {unknown[0]!r}; choose from {', '.join(METHODS)}")
    if not 0 <= options.settle < options.steps - 1:
        parser.error(f"--settle: {options.settle} leaves too few of {options.steps} steps")
    exit_on_signals()
    runs, failed = list[Run](), list[str]()
    cells = [(rate, method, number) for number in range(options.rounds) for rate in rates for method in methods]
    try:
        with Lab(options.hosts) as lab, Progress() as progress:
            bar = progress.add_task("", total=len(cells))
            for rate, method, number in cells:
                progress.update(bar, description=f"{method} at {rate:g} Mbit/s")
                try:
                    runs.append(run(lab, options.ranks_per_host, rate, method, number, options.steps, options.settle))
                    progress.console.print(f"{method} at {rate:g} Mbit/s: {median(runs[-1].seconds) * 1000:.1f} ms")
                except Failed as error:
                    failed.append(str(error))
                    progress.console.print(str(error))
                progress.advance(bar)
    except LabError as error:
        print(f"benchmarks.torchrun: {error}", file=sys.stderr)
        return 2
    if options.out:
        options.out.write_text(json.dumps([asdict(each) for each in runs], indent=1))
    words = [word for word in arguments or sys.argv[1:] if word]
    text = page(
        runs,
        options.hosts,
        options.ranks_per_host,
        options.settle,
        shlex.join(["python", "-m", "benchmarks.torchrun", *words]),
    )
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(text)
    print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
