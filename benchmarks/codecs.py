"""Encode and decode rates of the gradient codecs, one thread, as a share of a warm copy of the same data (CC-16).

    python -m benchmarks.codecs --out codecs.json

A round is a copy, an encode and a decode of each codec one after another, each the best of a few calls into memory that
is there already; a share is the copy's time over encode plus decode of the same round, and the page has the median of all
rounds. A share does not tell how fast the machine is, but it does tell how much of a link's time a codec costs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.machine import made_by
from benchmarks.system import ROOT
from workers.compression.registry import make_codec

BEST_OF = 5
SIZES = (1 << 18, 1 << 21)
"""Elements of the first bucket, and of the others."""


@dataclass(frozen=True)
class Entry:
    """A codec of the table and the share that CC-16 asks of it; no share where none is set."""

    name: str
    parameters: dict[str, float]
    target: float | None

    @property
    def label(self) -> str:
        return " ".join([self.name, *(f"{value:g}" for value in self.parameters.values())])


ENTRIES = (
    Entry("none", {}, None),
    Entry("bf16", {}, 0.20),
    Entry("fp16", {}, 0.20),
    Entry("int8", {}, 0.10),
    Entry("int4", {}, 0.10),
    Entry("sign", {}, 0.10),
    Entry("topk", {"density": 0.01}, 0.05),
    Entry("topk", {"density": 0.001}, 0.05),
    Entry("topk", {"density": 0.25}, 0.05),
    Entry("threshold", {"density": 0.01}, 0.05),
)


@dataclass(frozen=True)
class Case:
    """One codec on one size: seconds of each round, bytes of the payload, and the relative L2 error."""

    codec: str
    elements: int
    target: float | None
    bytes: int
    error: float
    copy: list[float]
    encode: list[float]
    decode: list[float]

    @property
    def share(self) -> float:
        """Median over rounds of copy / (encode + decode)."""
        rounds = zip(self.copy, self.encode, self.decode, strict=True)
        return statistics.median(copy / (encode + decode) for copy, encode, decode in rounds)


def measure(entry: Entry, elements: int, rounds: int) -> Case:
    """Time one codec on normal float32 [elements] of the size of gradients."""
    codec = make_codec(entry.name, **entry.parameters)
    noise = torch.Generator().manual_seed(0)
    x = 1e-3 * torch.randn(elements, generator=noise)
    copied, decoded, payload = torch.empty(elements), torch.empty(elements), codec.encode(x)
    copy, encode, decode = [], [], []
    for _ in range(rounds):
        copy.append(_best(lambda: copied.copy_(x)))
        encode.append(_best(lambda: codec.encode(x, out=payload)))
        decode.append(_best(lambda: codec.decode(payload, elements, out=decoded)))
    return Case(
        codec=entry.label,
        elements=elements,
        target=entry.target,
        bytes=codec.nbytes(elements),
        error=float((decoded.double() - x.double()).norm() / x.double().norm()),
        copy=copy,
        encode=encode,
        decode=decode,
    )


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of `BEST_OF` calls, after one that warms up."""
    call()
    seconds = []
    for _ in range(BEST_OF):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def table(cases: Sequence[Case]) -> str:
    """The markdown table."""
    lines = [
        "| codec | bucket MB | payload / float32 | error | copy GB/s | encode GB/s | decode GB/s | share | asked |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        gigabytes = 4e-9 * case.elements
        rates = [gigabytes / statistics.median(seconds) for seconds in (case.copy, case.encode, case.decode)]
        asked = "" if case.target is None else f"{case.target:.2f} {'✓' if case.share >= case.target else '✗'}"
        cells = [
            case.codec,
            f"{case.elements * 4 / 2**20:g}",
            f"{case.bytes / (4 * case.elements):.4f}",
            f"{case.error:.4f}",
            *(f"{rate:.1f}" for rate in rates),
            f"{case.share:.3f}",
            asked,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(cases: Sequence[Case], command: str) -> str:
    """The results page."""
    return "\n".join(
        [
            "# What the gradient codecs cost",
            "",
            "One thread, plain torch and numpy; rates count the float32 data, 4 bytes an element.",
            "The share is a warm copy's time over encode plus decode, measured in turns; CC-16 asks for the one beside it.",
            "The error is |decoded − x| / |x| of normal numbers in one pass; error feedback returns it in later steps.",
            "`topk 0.25` is the first step of the density ramp (CC-13) and not meant to last.",
            "",
            table(cases),
            "",
            made_by(command),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write the table and the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="rounds per codec and size")
    parser.add_argument("--out", type=Path, help="write the seconds of every round as JSON")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "codecs.md")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds: {options.rounds} measures nothing; write 1 or more")
    torch.set_num_threads(1)
    cases = [measure(entry, elements, options.rounds) for elements in SIZES for entry in ENTRIES]
    print(table(cases))
    if options.out:
        records = [{**asdict(case), "share": case.share} for case in cases]
        options.out.write_text(json.dumps(records, indent=1) + "\n")
    words = ["python", "-m", "benchmarks.codecs", "--rounds", str(options.rounds)]
    words += ["--out", options.out.name] if options.out else []
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(page(cases, shlex.join(words)))


if __name__ == "__main__":
    main()
