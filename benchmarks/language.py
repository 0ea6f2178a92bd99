"""The byte transformer: quantization-aware training against FP32, and what QINS, bfloat16 and INT8 do to its weights:
`python -m benchmarks.language`.

One `quantarion train` of a JobSpec; then the master weights of its last checkpoint go through each codec. The greedy texts
are those after the prompts in `prompts.json`; `--choose` takes new ones from a pool.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.greedy import CUT, CUT_BYTES, WRITTEN, Fixed, Pool, choose, num_new, prompts_of, survey, write
from benchmarks.machine import made_by
from benchmarks.system import ROOT, exit_on_signals
from workers.data.library import read_library
from workers.data.windows import cut
from workers.models.transformer import ByteTransformer
from workers.qins.convert import FLOOR
from workers.qins.metrics import GATES, GREEDY_STEPS, Row, agreement, compare, ratio_gate
from workers.qins.recoding import CODECS, TIERS, recode, v1
from workers.qins.sources import open_model

PAGE = ROOT / "docs" / "results" / "language.md"
NAME = "bytes"
WINDOWS = 128
FLOORS = (0.0, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
GATED = ("v1", "v1_floor")
BITSANDBYTES = "bitsandbytes"
TITLES = {
    "v1": "v1",
    "v1_floor": f"v1, floor {FLOOR:g}",
    **{tier: f"tier {tier.removeprefix('tier_')}" for tier in TIERS},
    "bf16": "bf16",
    "int8": "int8 per row",
    BITSANDBYTES: "bitsandbytes 8-bit",
}
ASKED = "def main("
"""Of the chat."""


@dataclass(frozen=True)
class Measured:
    """Of one trained model: QN-15's figures by codec, greedy texts after the pool of prompts and after the fixed ones."""

    rows: Sequence[Row]
    floors: Sequence[Row]
    pool: Pool
    fixed: Fixed
    texts: Sequence[bytes]
    num_parameters: int
    num_layers: int


def train(job: Path, storage: Path) -> Path:
    """The folder of the job, trained. Raises SystemExit where it ends otherwise than well."""
    sets = ["--set", f"storage={storage}", "--set", f"name={NAME}"]
    command = [sys.executable, "-m", "orchestrator", "train", str(job), *sets]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout.splitlines()[-1], flush=True)
    if not (storage / NAME / "result.json").exists():
        raise SystemExit(done.stdout)
    return storage / NAME


def ended(job: Path) -> dict[str, Any]:
    """Result and report of a job that has ended, from its folder."""
    return {kind: json.loads((job / f"{kind}.json").read_text()) for kind in ("result", "report")}


def figures(model: ByteTransformer, held_out: bytes, fixed: Fixed) -> list[Row]:
    """QN-15's, on held-out text and after the fixed prompts."""
    prompts = [torch.tensor(list(prompt)) for prompt in fixed.as_bytes()]
    others = {BITSANDBYTES: bitsandbytes} if importlib.util.find_spec("bitsandbytes") is not None else {}
    codecs = [codec for codec in TITLES if codec in {*CODECS, *TIERS, *others}]
    return compare(model, spread(held_out, model.context), prompts, codecs, others=others)


def bitsandbytes(weight: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """Its dynamic 8-bit code, blocks of 256."""
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    codes, how = quantize_blockwise(weight.contiguous(), blocksize=256)
    decoded = dequantize_blockwise(codes, absmax=how.absmax, code=how.code, blocksize=256)
    return {"codes": codes, "absmax": how.absmax, "code": how.code, "": decoded.view_as(weight)}


def spread(held_out: bytes, context: int) -> torch.Tensor:
    """Windows from all over the text."""
    windows = cut(held_out, context)
    return windows[:: max(1, len(windows) // WINDOWS)][:WINDOWS]


def floor_rows(model: ByteTransformer, held_out: bytes) -> list[Row]:
    """v1 with each of `FLOORS`, which stands in `Row.codec`; without greedy text."""
    text, rows = spread(held_out, model.context), []
    for floor in FLOORS:
        other = recode(model, partial(v1, floor=floor))
        rows.append(Row(f"{floor:g}", agreement(model, other.model, text, []), other.fidelity, other.ratio))
    return rows


def measure(model: ByteTransformer, limit: int, fixed: Fixed | None) -> Measured:
    """Put `model` through every codec, on held-out text and after prompts; without fixed ones, choose them."""
    held_out = read_library(limit).held_out
    pool = survey(model, prompts_of(held_out), tuple(CODECS))
    fixed = fixed or choose(pool, GATED, f"{datetime.now(UTC):%Y-%m-%d}")
    rows = figures(model, held_out, fixed)
    texts = [write(model, prompt) for prompt in fixed.as_bytes()]
    layers = recode(model, v1).num_layers
    return Measured(
        rows, floor_rows(model, held_out), pool, fixed, texts, sum(each.numel() for each in model.parameters()), layers
    )


def chat(job: Path, folder: Path) -> str:
    """What `quantarion qins` prints when the job's model is converted and asked for what follows `ASKED`."""
    lines = []
    for words in (
        ["convert", "--model", str(job), "--output", str(folder)],
        ["chat", "--model", str(folder), "--prompt", ASKED, "--max-tokens", "200"],
    ):
        command = [sys.executable, "-m", "orchestrator", "qins", *words]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        lines += [f"$ quantarion qins {shlex.join(words)}", done.stdout.rstrip()]
    return "\n".join(lines).replace(str(job), f"runs/{NAME}").replace(str(folder), folder.name)


def gates(measured: Measured) -> list[str]:
    """QN-15's table: what is asked, and each codec's figures, marked where v1 misses."""
    num_encoded = measured.rows[0].fidelity.num_weights
    asked = [*GATES, ratio_gate(measured.num_parameters, num_encoded, measured.num_layers)]
    rest = {"nrmse": "error norm over weight norm", "perplexity": "perplexity"}
    titles = [*(gate.measurement.replace("_", " ") for gate in asked), *rest.values()]
    limits = [*(f"{gate.relation} {SHOWN[gate.measurement](gate.limit)}" for gate in asked), *("" for _ in rest)]
    lines = [
        f"| codec | {' | '.join(titles)} |",
        "|---|" + "---|" * len(titles),
        f"| gate of v1 | {' | '.join(limits)} |",
    ]
    for row in measured.rows:
        cells = []
        for gate in asked:
            missed = row.codec in GATED and not gate.holds(row.figures())
            cells.append(_shown(gate.measurement, row) + (" **missed**" if missed else ""))
        lines.append(f"| {TITLES[row.codec]} | {' | '.join([*cells, *(_shown(key, row) for key in rest)])} |")
    return lines


def _percent(digits: int) -> Callable[[float], str]:
    return lambda value: f"{100 * value:.{digits}f} %"


SHOWN: dict[str, Callable[[float], str]] = {
    "greedy": lambda share: f"{share * GREEDY_STEPS:.0f} of {GREEDY_STEPS}",
    "top1": _percent(2),
    "top10": _percent(2),
    "kl": lambda value: f"{value:.1e}",
    "perplexity_delta": _percent(3),
    "sign_preservation": _percent(2),
    "mean_relative_error": _percent(2),
    "nrmse": _percent(2),
    "perplexity": lambda value: f"{value:.4f}",
    "ratio": lambda value: f"{value:.3f}",
}


def _shown(metric: str, row: Row) -> str:
    if metric == "greedy":
        return ", ".join(map(str, row.agreement.greedy))
    return SHOWN[metric](row.figures()[metric])


def floors(measured: Measured) -> list[str]:
    """What a floor does, from none to too much."""
    metrics = ("top1", "top10", "kl", "perplexity_delta", "mean_relative_error", "nrmse")
    lines = [
        "| floor | " + " | ".join(metric.replace("_", " ") for metric in metrics) + " |",
        "|---|" + "---|" * len(metrics),
    ]
    lines += [f"| {row.codec} | {' | '.join(_shown(metric, row) for metric in metrics)} |" for row in measured.floors]
    return lines


def distribution(pool: Pool) -> list[str]:
    """Of each codec: how many texts it reproduces whole, and where it leaves the others."""
    lines = [
        f"| codec | whole, of {len(pool.texts)} | first other byte: a tenth of the texts before | a quarter | half |",
        "|---|---|---|---|---|",
    ]
    for codec, agreed in pool.agreed.items():
        tenths = statistics.quantiles(agreed, n=20, method="inclusive")
        shown = (tenths[i] for i in (1, 4, 9))
        lines.append(
            f"| {TITLES[codec]} | {pool.number_whole(codec)} | " + " | ".join(f"{each:.0f}" for each in shown) + " |"
        )
    return lines


def fixed_prompts(measured: Measured) -> list[str]:
    """Of each fixed prompt: how much of its text is new, and how many of its bytes each codec gives."""
    lines = [
        "| prompt | new bytes | different bytes | " + " | ".join(TITLES[row.codec] for row in measured.rows) + " |",
        "|---|---|---|" + "---|" * len(measured.rows),
    ]
    for i, (prompt, text) in enumerate(zip(measured.fixed.prompts, measured.texts, strict=True)):
        equal = " | ".join(str(row.agreement.greedy[i]) for row in measured.rows)
        cell = repr(prompt).replace("|", "\\|")
        lines.append(f"| `{cell}` | {num_new(text)} | {len(set(text))} | {equal} |")
    return lines


def page(trained: dict[str, Any], measured: Measured, context: int, talk: str, job: Path) -> str:
    """The results as markdown."""
    result, report, pool, fixed = trained["result"], trained["report"], measured.pool, measured.fixed
    full, quantized = (math.exp(result["loss"][key]) for key in ("fp32", "int8"))
    passed = all(gate["passed"] for gate in result["gates"])
    new = statistics.quantiles([num_new(text) for text in pool.texts], n=4, method="inclusive")
    best = max(range(len(measured.texts)), key=lambda i: num_new(measured.texts[i]))
    sample = fixed.prompts[best] + measured.texts[best].decode(errors="replace").replace("\0", "␀").rstrip()
    lines = [
        "# The byte transformer",
        "",
        f"`{job}`: held-out source text of Python's standard library. FP32 is the lowest loss of the warm-up's epochs and "
        "of the final weights without fake-quantization; INT8 is the converted model, weights and activations.",
        "",
        "| | FP32 | INT8 | change |",
        "|---|---|---|---|",
        f"| perplexity per byte | {full:.4f} | {quantized:.4f} | {100 * (quantized / full - 1):+.2f} % |",
        f"| next byte right | {result['accuracy']['fp32']:.1%} | {result['accuracy']['int8']:.1%} | |",
        f"| bytes of the weights | {result['bytes']['fp32']:,} | {result['bytes']['int8_packed']:,} "
        f"| {result['bytes']['fp32'] / result['bytes']['int8_packed']:.2f} times smaller |",
        "",
        f"{report['steps']['committed']} steps, {report['seconds']['total']:.0f} s; gates: "
        f"{'all passed' if passed else 'NOT all passed'}.",
        "",
        "## What codecs do to its weights (QN-15)",
        "",
        f"The {measured.num_layers} linear layers of the final master weights; {WINDOWS} windows of held-out text. The "
        "gates are those of v1; tiers are those of checkpoints and `quantarion qins encode`, compressed with zstd. With "
        f"the floor, which `quantarion qins convert` takes by default, weights below {FLOOR:g} of their layer's largest "
        "are stored as that; the format is the same. Greedy: equal bytes of "
        f"{GREEDY_STEPS}, after each of the fixed prompts below.",
        "",
        *gates(measured),
        "",
        "A larger floor takes more off the range that all weights of a layer share, and lifts more weights to it:",
        "",
        *floors(measured),
        "",
        "## Greedy text",
        "",
        f"After {len(pool.texts)} prompts: {CUT} of {CUT_BYTES} bytes, cut evenly from the held-out text, and "
        f"{len(WRITTEN)} written by hand. One near-tie decides the rest of a text. The model sees {context} bytes, and its "
        f"greedy text soon goes in circles: in half of the texts {new[1]:.0f} of {GREEDY_STEPS} bytes or fewer come before "
        f"it only repeats itself, in a quarter {new[2]:.0f} or more. Texts that are in the same circle seldom part again.",
        "",
        *distribution(pool),
        "",
        f"The fixed prompts were chosen among these on {fixed.chosen}: of those after which v1 wrote the whole text, with "
        f"and without the floor, the {len(fixed.prompts)} with the most new bytes. They show whether the codec still does "
        "what it did; how often a text comes out whole, the pool shows.",
        "",
        *fixed_prompts(measured),
        "",
        "The one of these with the most new bytes, with its prompt and without the blanks at its end:",
        "",
        "```python",
        sample,
        "```",
        "",
        "## Talking to it",
        "",
        "```",
        talk,
        "```",
        "",
        made_by(f"python -m benchmarks.language --job {job}"),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language", description=__doc__)
    parser.add_argument("--job", type=Path, default=Path("examples/bytes.yaml"))
    parser.add_argument("--trained", type=Path, help="the folder of this job, trained before; without it, train")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--choose", action="store_true", help="take new fixed prompts from the pool, and write them down")
    options = parser.parse_args(arguments)
    exit_on_signals()
    with tempfile.TemporaryDirectory(prefix="ql-") as folder:
        job: Path = options.trained or train(options.job, Path(folder))
        limit = json.loads((job / "job.json").read_text())["task"]["text"]["limit"]
        model, _ = open_model(job)
        assert isinstance(model, ByteTransformer)
        measured = measure(model, limit, None if options.choose else Fixed.read())
        if options.choose:
            measured.fixed.write()
        talk = chat(job, Path(folder) / "my-model")
        text = page(ended(job), measured, model.context, talk, options.job)
    options.page.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
