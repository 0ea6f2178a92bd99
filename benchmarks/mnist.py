"""The demo's network on full MNIST, in FP32, INT8 and INT4, against the targets: `python -m benchmarks.mnist --folder F`.

A job for each number of bits; what the table says of an integer model is measured on the file that the job has written,
loaded into a process that knows nothing else of it. A job that stands finished below `--storage` is not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import made_by
from benchmarks.system import ROOT, exit_on_signals
from orchestrator.jobspec import JobSpec, load
from workers.config import TrainingConfig
from workers.qat.artifact import load_converted
from workers.qat.convert import blank
from workers.tasks.digits import EVALUATION_EPOCH, Rows
from workers.tasks.pipeline import accuracy
from workers.tasks.spiking import SpikingRecipe, preload

PAGE = ROOT / "docs" / "results" / "mnist.md"
JOB = Path("examples/mnist.yaml")
FP32_TARGET, INTEGER_TARGETS = 0.980, {8: 0.971, 4: 0.969}
SIZE_TARGETS = {8: 3.9, 4: 7.8}
"""QS section 12: accuracies, and how many times smaller than FP32 a packed model is at least."""

WARM_UP, MEASURED = 5, 100


@dataclass(frozen=True)
class Measured:
    """A finished job; `accuracy` and the like are of its integer model, read from the file."""

    bits: int
    digits: tuple[int, ...]
    """That train, choose the best epoch, and test."""
    result: dict[str, Any]
    report: dict[str, Any]
    last_loss: float
    accuracy: float
    spike_rates: list[float]
    milliseconds: list[float]
    """For one sample, from pixels to logits, on one thread."""


def train(storage: Path, bits: int, data: Path | None) -> Path:
    """The folder of the job. Raises SystemExit where it fails."""
    name = f"mnist-int{bits}"
    settings = {"name": name, "storage": storage, "qat.weight_bits": bits}
    settings |= {} if data is None else {"task.data.folder": data}
    changes = [f"{key}={value}" for key, value in settings.items()]
    if not finished(storage / name, load(ROOT / JOB, changes)):
        sets = [part for change in changes for part in ("--set", change)]
        subprocess.run([sys.executable, "-m", "orchestrator", "train", str(JOB), *sets], cwd=ROOT, check=False)
        if not (storage / name / "result.json").exists():
            raise SystemExit(f"{name} has no result")
    return storage / name


def finished(folder: Path, spec: JobSpec) -> bool:
    """Whether a job of that JobSpec has a result there. Raises SystemExit where it is another job's."""
    if not (folder / "result.json").exists():
        return False
    known = TrainingConfig.from_job_json(json.loads((folder / "job.json").read_text()))
    if known.model_dump() != spec.model_dump(include=set(TrainingConfig.model_fields)):
        raise SystemExit(f"{folder} holds a job with other settings than {JOB}; name another --storage")
    return True


def measure(folder: Path) -> Measured:
    """Load what the job has written, and look at it."""
    config = TrainingConfig.from_job_json(json.loads((folder / "job.json").read_text()))
    result, report = (json.loads((folder / f"{kind}.json").read_text()) for kind in ("result", "report"))
    recipe = SpikingRecipe(config, preload(config))
    bits = config.qat.weight_bits
    model = load_converted(blank(recipe.model), folder / "model" / f"int{bits}.safetensors").eval()
    torch.set_num_threads(1)
    with torch.inference_mode():
        found = recipe.evaluate(model, "test", 0, 1)
        rates = spike_rates(recipe, model)
        milliseconds = latencies(recipe, model)
    digits = tuple(len(rows.y) for rows in (recipe.splits.train, recipe.splits.validation, recipe.splits.test))
    lines = (folder / "steps.jsonl").read_text().splitlines()
    last = statistics.fmean(json.loads(line)["loss"] for line in lines[-100:])
    return Measured(bits, digits, result, report, last, accuracy(found), rates, milliseconds)


def spike_rates(recipe: SpikingRecipe, model: nn.Module) -> list[float]:
    """Of each layer: spikes per neuron and step, over the first thousand test digits."""
    rows = Rows(*(column[:1000] for column in recipe.splits.test))
    return [float(spikes.mean()) for spikes in recipe.output(model, rows, EVALUATION_EPOCH).spikes]


def latencies(recipe: SpikingRecipe, model: nn.Module) -> list[float]:
    """Milliseconds of single samples, ascending."""
    seconds = []
    for number in range(WARM_UP + MEASURED):
        row = Rows(*(column[number : number + 1] for column in recipe.splits.test))
        begun = time.perf_counter()
        recipe.output(model, row, EVALUATION_EPOCH)
        seconds.append(time.perf_counter() - begun)
    return sorted(1000 * each for each in seconds[WARM_UP:])


def against(value: float, target: float) -> str:
    return "met" if value >= target else "MISSED"


def page(runs: Sequence[Measured], command: str) -> str:
    """The results as markdown."""
    first = runs[0]
    full = first.result["accuracy"]["fp32"]
    training, choosing, testing = first.digits
    lines = [
        "# Full MNIST",
        "",
        f"`{JOB}`: 784-1000-10 spiking neurons, 25 steps, rate-coded; {training:,} digits train, {choosing:,} choose the "
        f"best epoch, {testing:,} test. FP32 is the better of the best epoch of the warm-up and the final weights without "
        "fake-quantization, on the same spikes. What stands beside an integer model is measured on its file.",
        "",
        "| | test accuracy | target | bytes | times smaller | target |",
        "|---|---|---|---|---|---|",
        f"| FP32 | {full:.2%} | {FP32_TARGET:.1%}, {against(full, FP32_TARGET)} | {first.result['bytes']['fp32']:,} | | |",
    ]
    for run in runs:
        size = run.result["bytes"][f"int{run.bits}_packed"]
        smaller = run.result["bytes"]["fp32"] / size
        target, least = INTEGER_TARGETS[run.bits], SIZE_TARGETS[run.bits]
        lines.append(
            f"| INT{run.bits} | {run.accuracy:.2%} | {target:.1%}, {against(run.accuracy, target)} | {size:,} "
            f"| {smaller:.2f} | {least}, {against(smaller, least)} |"
        )
    lines += [
        "",
        "| | FP32 of the same job | the job's own figure | gates | spike rates | loss of the last 100 steps "
        "| one sample, ms: median, 95 % | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        failed = [gate["gate"] for gate in run.result["gates"] if not gate["passed"]]
        lines.append(
            f"| INT{run.bits} | {run.result['accuracy']['fp32']:.2%} | {run.result['accuracy'][f'int{run.bits}']:.2%} "
            f"| {'all passed' if not failed else 'failed: ' + ', '.join(failed)} "
            f"| {', '.join(f'{rate:.1%}' for rate in run.spike_rates)} | {run.last_loss:.4f} "
            f"| {statistics.median(run.milliseconds):.1f}, {run.milliseconds[round(0.95 * MEASURED) - 1]:.1f} "
            f"| {run.report['seconds']['total'] / 60:.0f} |"
        )
    lines += [
        "",
        "The forward of an integer model emulates: codes are unpacked and computed with in float32.",
        "",
        made_by(command),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is not trained yet, measure, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mnist", description=__doc__)
    parser.add_argument("--folder", type=Path, help="with MNIST's four IDX files; the user's cache folder where left out")
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    exit_on_signals()
    runs = [measure(train(options.storage.absolute(), bits, options.folder)) for bits in INTEGER_TARGETS]
    text = page(runs, "python -m benchmarks.mnist" + (" --folder MNIST" if options.folder else ""))
    options.page.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
