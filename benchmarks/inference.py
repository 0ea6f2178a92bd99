"""What it costs to compute from QINS weights and with a QINS attention cache: `python -m benchmarks.inference`.

Each row is a process of its own, so that its memory is what the kernel says of it; the rows of a table take turns, and a
time is the median over all turns. Memory is the growth of the process since before there were weights.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from benchmarks.machine import made_by
from benchmarks.system import ROOT, exit_on_signals
from workers.qins.convert import convert_model_to_projective
from workers.qins.kv_cache import FORMATS, QINSKVCache, VFormat
from workers.qins.linear import CachePolicy, QINSLinear, recently_used

PAGE = ROOT / "docs" / "results" / "inference.md"

WIDTH, DEPTH = 2048, 8
"""Of the layers: 134 MB in float32."""

ROWS = (1, 64)
"""Inputs of a forward pass: of a text that is generated, and of one that is read."""

HEADS, HEAD_DIM, TOKENS = 32, 128, 4096
BLOCK = 256
"""Tokens that come at once while a text is read."""

FP32 = "fp32"
LRU_HALF = "lru of half"
POLICIES = (FP32, "none", LRU_HALF, "lru", "all")
TITLES = {
    FP32: "`nn.Linear`, float32",
    "none": "`none`",
    LRU_HALF: "`lru`, limit half of the decoded weights",
    "lru": "`lru`, 256 MiB",
    "all": "`all`",
}

Figures = dict[str, float]


def layers() -> nn.Sequential:
    """As a trained model's: normally distributed weights."""
    torch.manual_seed(0)
    made = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH)]
    for layer in made:
        nn.init.normal_(layer.weight, std=WIDTH**-0.5)
    return nn.Sequential(*made)


def resident() -> int:
    """Bytes of this process that lie in memory, once what it has freed is given back: glibc keeps what was converted."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def seconds_of(run: Callable[[], object], least: float = 0.5, most: int = 200) -> tuple[float, float]:
    """Of the first call, and the median of those that follow, of which there are `most`, or as many as fill `least`
    seconds."""
    begun = time.perf_counter()
    run()
    first = time.perf_counter() - begun
    taken: list[float] = []
    while (len(taken) < 3 or sum(taken) < least) and len(taken) < most:
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return first, statistics.median(taken)


def measure_policy(policy: str) -> Figures:
    """Bytes per weight, and seconds of a forward pass through all layers."""
    empty = resident()
    model: nn.Module = layers()
    if policy != FP32:
        kind: CachePolicy = "lru" if policy == LRU_HALF else policy  # type: ignore[assignment]
        if policy == LRU_HALF:
            recently_used.limit(DEPTH * WIDTH * WIDTH * 4 // 2)
        model = convert_model_to_projective(model, use_codec=True, cache=kind)
    found: Figures = {}
    with torch.inference_mode():
        for rows in ROWS:
            inputs = torch.randn(rows, WIDTH)
            cold, warm = seconds_of(lambda inputs=inputs: model(inputs))  # type: ignore[misc]
            found[f"warm {rows}"] = warm
            found.setdefault("cold", cold)
    weights = DEPTH * WIDTH * WIDTH
    found["measured"] = (resident() - empty) / weights
    kept = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    kept += sum(layer.cached_bytes for layer in model.modules() if isinstance(layer, QINSLinear))
    found["counted"] = kept / weights
    return found


def measure_cache(v_format: VFormat) -> Figures:
    """Bytes of a full cache, seconds to add to it and to read it, and what became of values and attention."""
    torch.manual_seed(0)
    empty = resident()
    cache = QINSKVCache(1, TOKENS, HEADS, HEAD_DIM, v_format)
    keys, values = (torch.randn(1, HEADS, TOKENS, HEAD_DIM, dtype=torch.float16) for _ in range(2))
    tensors = 2 * keys.nbytes
    read = []
    for start in range(0, TOKENS - BLOCK, BLOCK):
        read.append(_taken(cache, keys[:, :, start : start + BLOCK], values[:, :, start : start + BLOCK]))
    written = []
    for start in range(TOKENS - BLOCK, TOKENS):
        written.append(_taken(cache, keys[:, :, start : start + 1], values[:, :, start : start + 1]))
    found = {"counted": float(cache.nbytes), "measured": float(resident() - empty - tensors)}
    _, got = seconds_of(lambda: cache.get_kv(1))
    _, decoded = cache.get_kv(1)
    query = torch.randn(1, HEADS, 1, HEAD_DIM)
    exact, ours = (nn.functional.scaled_dot_product_attention(query, keys.float(), v.float()) for v in (values, decoded))
    return found | {
        "block": statistics.median(read) / BLOCK,
        "token": statistics.median(written),
        "get": got,
        "values": _error(values, decoded),
        "attention": _error(exact, ours),
    }


def _taken(cache: QINSKVCache, k: Tensor, v: Tensor) -> float:
    begun = time.perf_counter()
    cache.update(k, v)
    return time.perf_counter() - begun


def _error(wanted: Tensor, found: Tensor) -> float:
    """Norm of the error over that of what is wanted."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def in_turns(kind: str, names: Sequence[str], turns: int) -> dict[str, Figures]:
    """The medians of each row's figures."""
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names}
    for turn in range(turns):
        for name in names:
            command = [sys.executable, "-m", "benchmarks.inference", "--one", kind, name]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            for key, value in json.loads(done.stdout).items():
                found[name][key].append(value)
            print(f"turn {turn + 1} of {turns}: {kind} {name}", flush=True)
    return {name: {key: statistics.median(values) for key, values in each.items()} for name, each in found.items()}


def policies_table(found: dict[str, Figures]) -> list[str]:
    """A row for each policy."""
    lines = [
        "| weights | bytes per weight, counted | measured | first pass | "
        + " | ".join(f"{rows} row{'s' * (rows > 1)}" for rows in ROWS)
        + " | "
        + " | ".join(f"× float32, {rows}" for rows in ROWS)
        + " |",
        "|---|---|---|---|" + "---|" * 2 * len(ROWS),
    ]
    for policy, each in found.items():
        times = " | ".join(_ms(each[f"warm {rows}"]) for rows in ROWS)
        ratios = " | ".join(f"{each[f'warm {rows}'] / found[FP32][f'warm {rows}']:.2f}" for rows in ROWS)
        memory = f"{each['counted']:.2f} | {each['measured']:.2f}"
        lines.append(f"| {TITLES[policy]} | {memory} | {_ms(each['cold'])} | {times} | {ratios} |")
    return lines


def caches_table(found: dict[str, Figures]) -> list[str]:
    """A row for each format of the values."""
    lines = [
        "| values | MiB, counted | measured | to read a text, µs a token | to add one token, µs | to decode all, ms "
        "| error of values | of attention |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, each in found.items():
        lines.append(
            f"| `{name}` | {each['counted'] / 2**20:.0f} | {each['measured'] / 2**20:.0f} | {each['block'] * 1e6:.0f} "
            f"| {each['token'] * 1e6:.0f} | {each['get'] * 1e3:.1f} | {each['values']:.2%} | {each['attention']:.2%} |"
        )
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def page(policies: dict[str, Figures], caches: dict[str, Figures], turns: int, command: str) -> str:
    """The results as markdown."""
    ratio = policies["all"][f"warm {ROWS[-1]}"] / policies[FP32][f"warm {ROWS[-1]}"]
    lines = [
        "# Computing from QINS weights",
        "",
        f"Medians of {turns} turns, each row a process of its own, {torch.get_num_threads()} threads.",
        "",
        "## What of the decoded weights is kept (QN-8, QN-9)",
        "",
        f"{DEPTH} layers of {WIDTH} × {WIDTH}, codec v1: 2 bytes for each weight. Counted: buffers and what is kept "
        "decoded. Measured: the growth of the process, once what it has freed is given back. The first pass decodes all.",
        "",
        *policies_table(policies),
        "",
        f"The target for kept weights is 1.05 times float32; here {ratio:.2f} with {ROWS[-1]} rows. Half the memory "
        "and the speed of float32 are not to be had at once: `none` decodes at each call, `all` takes one and a half times "
        "float32's memory.",
        "",
        "## The attention cache (QN-10)",
        "",
        f"One layer, one sample, {HEADS} heads of {HEAD_DIM}, {TOKENS} tokens, full: keys are float16 in each. "
        f"A text is read {BLOCK} tokens at a time. Errors: norm over norm, of normally distributed values, "
        "and of what attention makes of them.",
        "",
        *caches_table(caches),
        "",
        made_by(command),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the page; with `--one` print the figures of one row as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    exit_on_signals()
    if options.one:
        kind, name = options.one
        figures: dict[str, Any] = measure_policy(name) if kind == "policy" else measure_cache(name)
        print(json.dumps(figures))
        return 0
    policies = in_turns("policy", POLICIES, options.turns)
    caches = in_turns("cache", FORMATS, options.turns)
    text = page(policies, caches, options.turns, f"python -m benchmarks.inference --turns {options.turns}")
    options.page.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
