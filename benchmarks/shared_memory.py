"""All-reduce among the ranks of one host: shared memory against gloo, and against a copy of the bytes.

    python -m benchmarks.shared_memory --blocks 12 --out shared_memory.json

The ranks of a case are started once. They do a block of each way in turns, so that whatever else the machine does hits all
alike; the order changes from block to block. A block counts as the time of its slowest rank, per all-reduce;
ratios are over the blocks of one round. Every way's result is compared with the sum before it is measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.machine import made_by
from benchmarks.ratio import Ratio, ratio_with_interval
from benchmarks.system import ROOT, environment, exit_on_signals
from workers.collectives.shared import HostExchange, HostMemory, Layout
from workers.identity import Generation

BLOCK_SECONDS = 0.25
LEAST_OPERATIONS = 3
START_SECONDS = 120.0
WAYS = {
    "ours": "the bucket is copied into shared memory and back",
    "lent": "ours too, where gradients are put into shared memory from the beginning",
    "gloo": "gloo's all-reduce over loopback, as DDP uses it on a CPU",
    "copy": "all ranks copy as many bytes once, each within its own memory",
}


@dataclass(frozen=True)
class Case:
    """One size on one number of ranks: seconds per operation, of each way and block."""

    mebibytes: float
    ranks: int
    operations: int
    seconds: Mapping[str, list[float]]

    def against(self, way: str, other: str) -> Ratio:
        return ratio_with_interval(self.seconds[way], self.seconds[other])


class Rank:
    """A rank's process: every way over one bucket."""

    def __init__(self, folder: Path, index: int, world: int, elements: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=world)
        paths = [folder / f"{rank}.memory" for rank in range(world)]
        memory = HostMemory(paths[index], Layout(elements, 1, (elements,)))
        dist.barrier()
        self.index, self.world = index, world
        self.exchange = HostExchange(memory, paths, Generation(1, 1))
        self.bucket, self.copied = torch.zeros(elements), torch.zeros(elements)

    def operation(self, way: str) -> Callable[[], object]:
        """What one round of that way calls."""
        exchange, bucket = self.exchange, self.bucket
        return {
            "ours": lambda: exchange.all_reduce(bucket).wait(_never),
            "lent": lambda: exchange.all_reduce(exchange.lend(0, _never)).wait(_never),
            "gloo": lambda: dist.all_reduce(bucket),
            "copy": lambda: self.copied.copy_(bucket),
        }[way]

    def measure(self, way: str, operations: int) -> float:
        """Seconds per operation."""
        operation = self.operation(way)
        dist.barrier()
        begun = time.perf_counter()
        for _ in range(operations):
            operation()
        return (time.perf_counter() - begun) / operations

    def check(self) -> None:
        """Whether each way sums. Leaves zeros, of which no number of sums overflows."""
        for way in ("ours", "lent", "gloo"):
            target = self.exchange.lend(0, _never) if way == "lent" else self.bucket
            torch.arange(len(target), out=target).remainder_(1000).mul_(self.index + 1)
            self.operation(way)()
            wanted = torch.arange(len(target), dtype=torch.float32).remainder_(1000) * (self.world * (self.world + 1) // 2)
            if not torch.equal(target, wanted):
                raise RuntimeError(f"{way} does not sum")
            dist.barrier()
            target.zero_()


def _never() -> bool:
    return False


def serve(folder: Path, index: int, world: int, elements: int, pipe: Connection) -> None:
    """Measure what the pipe asks for until it closes."""
    torch.set_num_threads(1)
    rank = Rank(folder, index, world, elements)
    rank.check()
    pipe.send(None)
    while True:
        try:
            way, operations = pipe.recv()
        except EOFError:
            return
        pipe.send(rank.measure(way, operations))


def measure(mebibytes: float, ranks: int, blocks: int) -> Case:
    """Start the ranks, run `blocks` blocks of each way after a warm-up, and end them."""
    folder = Path(tempfile.mkdtemp(prefix="qb-", dir="/dev/shm"))
    context = get_context("spawn")
    pipes, processes = [], []
    try:
        for index in range(ranks):
            pipe, theirs = context.Pipe()
            arguments = (folder, index, ranks, round(mebibytes * 2**18), theirs)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            pipes.append(pipe)
            processes.append(process)
        _answers(pipes)
        return _blocks(pipes, mebibytes, blocks)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.kill()
            process.join()
        shutil.rmtree(folder)


def _blocks(pipes: Sequence[Connection], mebibytes: float, blocks: int) -> Case:
    slowest = max(_block(pipes, way, LEAST_OPERATIONS) for _ in range(2) for way in WAYS)
    operations = max(LEAST_OPERATIONS, round(BLOCK_SECONDS / slowest))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    order = list(WAYS)
    for number in range(blocks):
        for way in order[number % len(order) :] + order[: number % len(order)]:
            seconds[way].append(_block(pipes, way, operations))
    return Case(mebibytes, len(pipes), operations, seconds)


def _block(pipes: Sequence[Connection], way: str, operations: int) -> float:
    for pipe in pipes:
        pipe.send((way, operations))
    return max(_answers(pipes))


def _answers(pipes: Sequence[Connection]) -> list[float]:
    """One of each rank. Raises RuntimeError when one ends or hangs instead."""
    try:
        if all(pipe.poll(START_SECONDS) for pipe in pipes):
            return [pipe.recv() for pipe in pipes]
    except EOFError:
        pass
    raise RuntimeError("a rank ended by itself or hangs; its own words stand above")


def table(cases: Sequence[Case]) -> str:
    """The markdown table."""
    lines = [
        "| MiB | ranks | blocks of operations | ours ms | lent ms | gloo ms | copy ms | ours : gloo (95 %) | lent : gloo "
        "| ours : copy |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        blocks = len(case.seconds["ours"])
        cells = [f"{case.mebibytes:g}", str(case.ranks), f"{blocks} of {case.operations}"]
        cells += [f"{statistics.median(case.seconds[way]) * 1000:.2f}" for way in WAYS]
        cells += [
            _text(case.against("ours", "gloo")),
            _text(case.against("lent", "gloo")),
            _text(case.against("ours", "copy")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def page(cases: Sequence[Case], command: str, note: str) -> str:
    """The results page."""
    lines = [
        "# All-reduce among the ranks of one host",
        "",
        "One float32 bucket, one thread per rank; all ranks and all ways live throughout and take turns.",
        "Milliseconds per all-reduce are the median over blocks of a block's mean on its slowest rank.",
        "",
        *[f"- *{way}*: {meaning}" for way, meaning in WAYS.items()],
        "",
        table(cases),
        "",
        *([note, ""] if note else []),
        made_by(command),
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write the table and the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_memory", description=__doc__.split("\n\n")[0])
    parser.add_argument("--mebibytes", default="1,8,32", help="sizes of the bucket, separated by commas")
    parser.add_argument("--ranks", default="2,4", help="numbers of ranks, separated by commas")
    parser.add_argument("--blocks", type=int, default=12, help="blocks of each way per case; two or more")
    parser.add_argument("--note", default="", help="a sentence for the page, on what else the machine did")
    parser.add_argument("--out", type=Path, help="write the time of every block as JSON")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "shared-memory.md")
    options = parser.parse_args(arguments)
    if options.blocks < 2:
        parser.error(f"--blocks: {options.blocks} gives no interval; write 2 or more")
    exit_on_signals()
    os.environ.update(environment())  # for the ranks
    cases = []
    for ranks, size in itertools.product(map(int, options.ranks.split(",")), map(float, options.mebibytes.split(","))):
        cases.append(measure(size, ranks, options.blocks))
        print(table(cases[-1:]).splitlines()[-1], flush=True)
    print(table(cases))
    if options.out:
        options.out.write_text(json.dumps([asdict(case) for case in cases], indent=1) + "\n")
    words = ["python", "-m", "benchmarks.shared_memory", "--mebibytes", options.mebibytes, "--ranks", options.ranks]
    words += ["--blocks", str(options.blocks), *(["--out", options.out.name] if options.out else [])]
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(page(cases, shlex.join(words), options.note))


if __name__ == "__main__":
    main()
