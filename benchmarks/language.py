"""The byte transformer: quantization-aware training against FP32, and what QINS, bfloat16 and linear INT8 do to its
weights: `python -m benchmarks.language`.

One `quantarion train` of a JobSpec; then the master weights of its last checkpoint go through each codec.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.system import ROOT, exit_on_signals
from orchestrator.qins_commands import table
from workers.checkpoint import list_checkpoints
from workers.data.library import read_library
from workers.data.windows import cut
from workers.models.transformer import ByteTransformer
from workers.qins.metrics import GREEDY_STEPS, Row, compare
from workers.qins.sources import open_model

PAGE = ROOT / "docs" / "results" / "language.md"
NAME = "bytes"
WINDOWS = 128
PROMPTS = (
    "import os\nimport sys\n\ndef main(argv=None):\n    ",
    "class Queue:\n    def __init__(self, maxsize=0):\n        ",
    'def parse(text):\n    """Return the ',
    "for name in sorted(",
)


def train(job: Path, storage: Path) -> dict[str, Any]:
    """Result and report of the job. Raises SystemExit where it ends otherwise than well."""
    sets = ["--set", f"storage={storage}", "--set", f"name={NAME}"]
    command = [sys.executable, "-m", "orchestrator", "train", str(job), *sets]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout.splitlines()[-1], flush=True)
    if not (storage / NAME / "result.json").exists():
        raise SystemExit(done.stdout)
    return {kind: json.loads((storage / NAME / f"{kind}.json").read_text()) for kind in ("result", "report")}


def codecs(model: ByteTransformer, limit: int) -> list[Row]:
    """QN-15's figures on held-out text and the fixed prompts."""
    held_out = cut(read_library(limit).held_out, model.context)
    prompts = [torch.tensor(list(prompt.encode())) for prompt in PROMPTS]
    return compare(model, held_out[:: max(1, len(held_out) // WINDOWS)][:WINDOWS], prompts)


def distinct(model: ByteTransformer) -> list[int]:
    """Of each prompt: how many different bytes the greedy text has; few mean that it repeats itself."""
    prompts = (torch.tensor(list(prompt.encode())) for prompt in PROMPTS)
    return [len(set(model.generate(prompt, GREEDY_STEPS))) for prompt in prompts]


def page(trained: dict[str, Any], rows: Sequence[Row], different: Sequence[int], job: Path, command: str) -> str:
    """The results as markdown."""
    result, report = trained["result"], trained["report"]
    full, quantized = (math.exp(result["loss"][key]) for key in ("fp32", "int8"))
    passed = all(gate["passed"] for gate in result["gates"])
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
        f"The 13 linear layers of the final master weights; {WINDOWS} windows of held-out text; {GREEDY_STEPS} tokens "
        f"generated greedily after each of {len(PROMPTS)} fixed prompts; the texts have "
        f"{', '.join(map(str, different))} different bytes.",
        "",
        "```",
        table(list(rows)),
        "```",
        "",
        "Equal greedy tokens: "
        + "; ".join(f"{row.codec} {', '.join(map(str, row.agreement.greedy))}" for row in rows)
        + ".",
        "",
        f"Made by\n\n```\n{command}\n```\n\non {describe()}",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language", description=__doc__)
    parser.add_argument("--job", type=Path, default=Path("examples/bytes.yaml"))
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    exit_on_signals()
    with tempfile.TemporaryDirectory(prefix="ql-") as folder:
        trained = train(options.job, Path(folder))
        newest = list_checkpoints(Path(folder) / NAME / "checkpoints")[0]
        limit = json.loads((Path(folder) / NAME / "job.json").read_text())["task"]["text"]["limit"]
        model, _ = open_model(newest.path)
        assert isinstance(model, ByteTransformer)
        rows, different = codecs(model, limit), distinct(model)
    text = page(
        trained, rows, different, options.job, "python -m benchmarks.language " + " ".join(arguments or sys.argv[1:])
    )
    options.page.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
