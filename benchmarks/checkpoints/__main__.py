"""Checkpoints of one training, ours and others', in one run: `python -m benchmarks.checkpoints`.

A transformer trains for some steps, so its weights and moments are those of a training. Then its whole state is saved and
read again in each way, in turns, and trains for a step between two rounds. Every byte goes to the disk: a save counts until
all is synced, and before each reading the kernel forgets what it has cached, which needs the superuser. With `--rate` the
kernel lets this process write and read only so many MB/s there, as a shared store would, with control groups of version 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from benchmarks.checkpoints import shares
from benchmarks.checkpoints.measure import Outcome, measure
from benchmarks.checkpoints.page import page
from benchmarks.checkpoints.rates import codec_rates
from benchmarks.checkpoints.store import throttled
from benchmarks.checkpoints.training import Training
from benchmarks.checkpoints.ways import CHAIN, BitsAndBytes, Distributed, Ours, Safetensors, TorchSave, Way
from benchmarks.system import ROOT

PAGE = ROOT / "docs" / "results" / "checkpoints.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, save, read, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="before the first round")
    parser.add_argument("--rounds", type=int, default=CHAIN - 1)
    parser.add_argument("--share-rounds", type=int, default=3, help="of the state that several write")
    parser.add_argument("--rate", type=float, help="MB/s that the store takes and gives")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    training = Training(options.width, options.depth)
    training.go_on(options.steps)
    peers: list[Way] = [TorchSave(), Safetensors(), Distributed(), Distributed("async"), Distributed("zstd")]
    if importlib.util.find_spec("bitsandbytes") is not None:
        peers.append(BitsAndBytes())
    ways: list[Way] = [*peers, Ours("exact"), Ours("qins"), Ours("qins", chained=True)]
    outcomes = {way.name: Outcome() for way in ways}
    with tempfile.TemporaryDirectory(prefix="qc-", dir=Path.cwd()) as name:
        folder = Path(name)
        for index in range(-1, options.rounds):  # the first one warms up, and begins the chain
            with throttled(folder, options.rate) if options.rate else nullcontext():
                for way in ways[index % len(ways) :] + ways[: index % len(ways)]:
                    target = folder / f"{ways.index(way)}-{index}"
                    measure(way, training, target, outcomes[way.name] if index >= 0 else Outcome())
                    print(f"round {index}: {way.name}", flush=True)
                    if not target.is_symlink():
                        shutil.rmtree(target)
            training.go_on(1)
        with throttled(folder, options.rate) if options.rate else nullcontext():
            together = shares.measure(folder, ("exact", "qins"), options.share_rounds)
    rates = list(codec_rates(1 << 23))
    words = shlex.join(["python", "-m", "benchmarks.checkpoints", *(arguments or sys.argv[1:])])
    result = page(outcomes, rates, together, training, options.rate, words)
    options.page.write_text(result)
    print(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
