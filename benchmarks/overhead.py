"""Step time without failures: `quantarion train` against plain DDP on gloo, in interleaved blocks.

    python -m benchmarks.overhead --blocks 12 --out overhead.json

For each model and number of ranks both gangs are started once and stay alive; they train in turns, a block of steps
each, so that whatever else the machine does hits both alike. Which of the two goes first alternates. A block's time is
the median of its steps on rank 0, commit to commit, its first step left out; the ratio is over pairs of blocks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gate import open_gate, take_block
from benchmarks.machine import made_by
from benchmarks.model import WIDTHS
from benchmarks.peers import ddp, ours
from benchmarks.ratio import Ratio, ratio_with_interval
from benchmarks.system import ROOT, Running, System, exit_on_signals

BOUND = 1.08
FIRST_BLOCK = 20
BLOCK_SECONDS = 2.5
BLOCK_STEPS = (15, 80)
START_SECONDS = 120.0
SETTLE_SECONDS = 0.1


@dataclass(frozen=True)
class Case:
    """One model on one number of ranks: seconds per step of each block, ours and DDP's, in pairs."""

    model: str
    ranks: int
    reproducible: bool
    steps_per_block: int
    ours: list[float]
    ddp: list[float]
    ours_mean: list[float]
    ddp_mean: list[float]

    @property
    def ratio(self) -> Ratio:
        """Of the medians."""
        return ratio_with_interval(self.ours, self.ddp)

    @property
    def ratio_of_means(self) -> Ratio:
        """Of the means, which see the slow steps too."""
        return ratio_with_interval(self.ours_mean, self.ddp_mean)


class Gang:
    """A started system that trains a block when told to."""

    def __init__(self, running: Running, label: str) -> None:
        self._running, self._label, self._block = running, label, 0

    def train(self, steps: int) -> list[float]:
        """Run a block; seconds of each of its steps. Raises RuntimeError when the system ends or hangs instead."""
        open_gate(self._running.folder, self._block, steps)
        deadline = time.monotonic() + START_SECONDS
        while (seconds := take_block(self._running.folder, self._block)) is None:
            if not self._running.alive or time.monotonic() > deadline:
                what = "did no block in time" if self._running.alive else "ended by itself"
                output = (self._running.folder / "output.log").read_text(errors="replace")
                raise RuntimeError(f"{self._label} {what}; the end of its output:\n{output[-2000:]}")
            time.sleep(0.01)
        self._block += 1
        time.sleep(SETTLE_SECONDS)
        return seconds


def measure(model: str, ranks: int, blocks: int, *, reproducible: bool = False) -> Case:
    """Start both gangs, run `blocks` pairs of blocks after a warm-up, and end them."""
    with ExitStack() as stack:
        systems = ours.gated(model, ranks, reproducible=reproducible), ddp.system(model, ranks)
        first, second = (Gang(_start(stack, system), system.label) for system in systems)
        steps = _steps_per_block([first.train(FIRST_BLOCK), second.train(FIRST_BLOCK)])
        for gang in (first, second):
            gang.train(steps)
        pairs = []
        for number in range(blocks):
            if number % 2:
                theirs, mine = second.train(steps), first.train(steps)
            else:
                mine, theirs = first.train(steps), second.train(steps)
            pairs.append((mine[1:], theirs[1:]))
    return Case(
        model=model,
        ranks=ranks,
        reproducible=reproducible,
        steps_per_block=steps,
        ours=[statistics.median(mine) for mine, _ in pairs],
        ddp=[statistics.median(theirs) for _, theirs in pairs],
        ours_mean=[statistics.fmean(mine) for mine, _ in pairs],
        ddp_mean=[statistics.fmean(theirs) for _, theirs in pairs],
    )


def _start(stack: ExitStack, system: System) -> Running:
    folder = Path(tempfile.mkdtemp(prefix="qb-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return stack.enter_context(Running(system, folder))


def _steps_per_block(warm: Sequence[Sequence[float]]) -> int:
    """Steps that take about `BLOCK_SECONDS`: long enough to measure, short enough for the other gang to wait."""
    slowest = max(statistics.median(seconds) for seconds in warm)
    return min(max(round(BLOCK_SECONDS / slowest), BLOCK_STEPS[0]), BLOCK_STEPS[1])


def table(cases: Sequence[Case]) -> str:
    """The markdown table."""
    lines = [
        "| model | ranks | blocks of steps | ours ms | DDP ms | ratio (95 % interval) | of the means |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        cells = [
            f"{case.model} ({_parameters(case.model) / 1e6:.2f} M){', reproducible' if case.reproducible else ''}",
            str(case.ranks),
            f"2 × {len(case.ours)} of {case.steps_per_block}",
            f"{statistics.median(case.ours) * 1000:.1f}",
            f"{statistics.median(case.ddp) * 1000:.1f}",
            _ratio_text(case.ratio),
            _ratio_text(case.ratio_of_means),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio_text(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _parameters(model: str) -> int:
    widths = WIDTHS[model]
    return sum(a * b + b for a, b in itertools.pairwise(widths))


def page(cases: Sequence[Case], command: str) -> str:
    """The results page."""
    return "\n".join(
        [
            "# Step time without failures, against plain DDP on gloo",
            "",
            "SGD with momentum, global batch 256, one thread per rank, all ranks on one host, data in memory.",
            "Both gangs live throughout and train in turns.",
            "Milliseconds are the median over blocks of a block's median.",
            f"The bound on the interval's upper end is {BOUND}.",
            "With `reproducible: true` the bits of the result do not depend on the number of ranks, and the exchange does",
            "not overlap with the backward pass; no bound is set for that.",
            "",
            table(cases),
            "",
            made_by(command),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write the table and the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default=",".join(WIDTHS), help="names, separated by commas")
    parser.add_argument("--ranks", default="2,4", help="numbers of ranks, separated by commas")
    parser.add_argument("--blocks", type=int, default=12, help="pairs of blocks per case; two or more")
    parser.add_argument("--out", type=Path, help="write the time of every block as JSON")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "overhead.md")
    options = parser.parse_args(arguments)
    models = options.models.split(",")
    for model in models:
        if model not in WIDTHS:
            parser.error(f"--models: there is no model {model!r}; choose from {', '.join(WIDTHS)}")
    if options.blocks < 2:
        parser.error(f"--blocks: {options.blocks} gives no interval; write 2 or more")
    exit_on_signals()
    cases = []
    for reproducible, model in itertools.product((False, True), models):
        for ranks in map(int, options.ranks.split(",")):
            cases.append(measure(model, ranks, options.blocks, reproducible=reproducible))
            print(table(cases[-1:]).splitlines()[-1], flush=True)
    print(table(cases))
    if options.out:
        records = [{**asdict(c), "ratio": asdict(c.ratio), "ratio_of_means": asdict(c.ratio_of_means)} for c in cases]
        options.out.write_text(json.dumps(records, indent=1) + "\n")
    words = ["python", "-m", "benchmarks.overhead", "--models", options.models, "--ranks", options.ranks]
    words += ["--blocks", str(options.blocks), *(["--out", options.out.name] if options.out else [])]
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(page(cases, shlex.join(words)))


if __name__ == "__main__":
    main()
