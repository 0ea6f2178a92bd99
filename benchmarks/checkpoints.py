"""Checkpoints of one training, ours and others', in one run: `python -m benchmarks.checkpoints`.

A transformer trains for some steps, so its weights and moments are those of a training. Then its whole state is saved and
read again in each way, in turns, and trains for a step between two rounds. Every byte goes to the disk: a save counts until
all is synced, and before each reading the kernel forgets what it has cached, which needs the superuser. With `--rate` the
kernel lets this process write and read only so many MB/s there, as a shared store would, with control groups of version 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse
from torch.optim import AdamW

from benchmarks.machine import made_by
from benchmarks.system import ROOT
from workers.checkpoint import load, save
from workers.checkpoint.chain import Chain
from workers.checkpoint.lossy import INT6, INT8, LOG7, LOG8, LOG8U, LOSSY, V1
from workers.models.transformer import ByteTransformer, next_token_loss
from workers.staging import Staging
from workers.state import ReplicatedState

PAGE = ROOT / "docs" / "results" / "checkpoints.md"
GROUP = Path("/sys/fs/cgroup/blkio/quantarion-benchmark")
CHAIN = 8
RATE_TARGETS = {"encode": 0.10, "decode": 0.20}
BLOCKED_TARGET = 0.1
"""Seconds for each GB of the state."""

SIZE_TARGETS = {"whole": 4.2, "chain": 8.0}
BEST_OF = 5


class Training:
    """A transformer of about 38 million parameters, and AdamW."""

    def __init__(self, width: int, depth: int) -> None:
        torch.manual_seed(0)
        self.model = ByteTransformer(context=64, width=width, depth=depth, heads=8)
        self.optimizer = AdamW(self.model.parameters(), lr=3e-4)
        self.state = ReplicatedState(self.model, self.optimizer)
        self._draws = torch.Generator().manual_seed(1)
        self.steps = 0

    def go_on(self, steps: int) -> None:
        """On words that are drawn; what is learned does not matter here."""
        for _ in range(steps):
            words = torch.randint(97, 123, (8, 65), generator=self._draws)
            self.optimizer.zero_grad()
            next_token_loss(self.model(words[:, :-1]), words[:, 1:]).backward()
            self.optimizer.step()
            self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """As users of torch save it."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def flat(self) -> dict[str, torch.Tensor]:
        """The same tensors in one dictionary."""
        moments = enumerate(self.optimizer.state.values())
        entries = {f"optimizer.{index}.{key}": each for index, of in moments for key, each in of.items()}
        return {**{f"model.{name}": each for name, each in self.model.state_dict().items()}, **entries}

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.flat().values())


@dataclass
class Outcome:
    """Of one way, a number for each round: seconds, bytes."""

    blocked: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    size: list[int] = field(default_factory=list)


class Way(Protocol):
    """One way of saving. `save` calls `free` as soon as training could go on; `load` gives all tensors by name, or None
    where they are not those that were saved."""

    name: str
    ours: bool

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None: ...

    def load(self, training: Training, folder: Path) -> dict[str, torch.Tensor] | None: ...


class TorchSave:
    name, ours = "torch.save", False

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None:
        torch.save(training.state_dict(), folder / "state.pt")
        free()

    def load(self, training: Training, folder: Path) -> dict[str, torch.Tensor]:
        return _flattened(torch.load(folder / "state.pt", weights_only=True))


class Safetensors:
    name, ours = "safetensors", False

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None:
        save_file(training.flat(), folder / "state.safetensors")
        free()

    def load(self, training: Training, folder: Path) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in load_file(folder / "state.safetensors").items()}


class Distributed:
    """torch.distributed.checkpoint, of one process."""

    name, ours = "DCP save", False

    def __init__(self, kind: str = "") -> None:
        self.kind = kind
        self.name = {"": "DCP save", "async": "DCP async_save", "zstd": "DCP save, zstd"}[kind]

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None:
        state = training.flat()
        match self.kind:
            case "async":
                pending = dcp.async_save(state, checkpoint_id=folder, no_dist=True)
                free()
                if isinstance(pending, AsyncSaveResponse):
                    pending = pending.upload_completion
                pending.result()
            case "zstd":
                from torch.distributed.checkpoint._extension import ZStandard

                dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, _extensions=[ZStandard()]), no_dist=True)
                free()
            case _:
                dcp.save(state, checkpoint_id=folder, no_dist=True)
                free()

    def load(self, training: Training, folder: Path) -> dict[str, torch.Tensor]:
        found = {name: torch.empty_like(tensor) for name, tensor in training.flat().items()}
        dcp.load(found, checkpoint_id=folder, no_dist=True)
        return found


class BitsAndBytes:
    """Weights and moments in its dynamic 8-bit code, blocks of 256, by torch.save."""

    name, ours = "bitsandbytes 8-bit", False

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None:
        from bitsandbytes.functional import quantize_blockwise

        coded: dict[str, Any] = {}
        for name, tensor in training.flat().items():
            if tensor.numel() < 256:
                coded[name] = tensor
                continue
            codes, how = quantize_blockwise(tensor.detach(), blocksize=256)
            coded[name] = codes, how.absmax, how.code, tensor.shape
        torch.save(coded, folder / "state.pt")
        free()

    def load(self, training: Training, folder: Path) -> None:
        from bitsandbytes.functional import dequantize_blockwise

        for entry in torch.load(folder / "state.pt", weights_only=True).values():
            if isinstance(entry, tuple):
                codes, absmax, code, _ = entry
                dequantize_blockwise(codes, absmax=absmax, code=code, blocksize=256)


class Ours:
    """`ReplicatedState.capture` blocks; the rest is done beside training."""

    ours = True

    def __init__(self, tier: str, chained: bool = False) -> None:
        self.tier, self.chain = tier, Chain() if chained else None
        self.name = f"ours, {tier}" + (", difference" if chained else "")
        self._staging = Staging()

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None:
        captured = training.state.capture(copy=self._staging.copy)
        free()
        root = folder.parent / "ours-chain" if self.chain is not None else folder
        save(
            captured,
            root,
            job="benchmark",
            step=training.steps,
            generation=(1, 1),
            lineage=1,
            world=1,
            fence=lambda: True,
            tier=self.tier,
            chain=self.chain,
            whole_every=CHAIN if self.chain is not None else 1,
        )
        self._staging.take_back(captured.tensors)
        if self.chain is not None:  # what is new, for whoever counts bytes
            folder.symlink_to(max(root.iterdir(), key=lambda each: each.stat().st_mtime_ns))

    def load(self, training: Training, folder: Path) -> dict[str, torch.Tensor] | None:
        path = folder.resolve() if folder.is_symlink() else next(each for each in folder.iterdir())
        tensors = load(path).tensors
        return {_ours_to_flat(training, name): tensor for name, tensor in tensors.items()} if self.tier == "exact" else None


def _ours_to_flat(training: Training, name: str) -> str:
    kind, _, rest = name.partition(".")
    if kind != "optimizer":
        return f"model.{rest}"
    owner, _, key = rest.partition("|")
    return f"optimizer.{list(training.state.parameters).index(owner)}.{key}"


def _flattened(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    entries = {
        f"optimizer.{index}.{key}": each for index, of in state["optimizer"]["state"].items() for key, each in of.items()
    }
    return {**{f"model.{name}": each for name, each in state["model"].items()}, **entries}


@contextmanager
def throttled(folder: Path, rate: float) -> Iterator[None]:
    """This process reads and writes at most `rate` MB/s on the disk of `folder`."""
    device = folder.stat().st_dev
    limit = f"{os.major(device)}:{os.minor(device)} {int(rate * 1e6)}"
    try:
        GROUP.mkdir(exist_ok=True)
        for direction in ("read", "write"):
            (GROUP / f"blkio.throttle.{direction}_bps_device").write_text(limit)
        (GROUP / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise SystemExit(f"--rate cannot be kept here ({error.strerror}: {error.filename}); leave it out") from None
    try:
        yield
    finally:
        (GROUP.parent / "cgroup.procs").write_text(str(os.getpid()))
        GROUP.rmdir()


def sync(folder: Path) -> int:
    """Everything below it onto the disk; its bytes."""
    folder, total = folder.resolve(), 0
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        total += path.stat().st_size if path.is_file() else 0
    return total


def measure(way: Way, training: Training, folder: Path, outcome: Outcome) -> None:
    """One round of one way."""
    if not isinstance(way, Ours):
        folder.mkdir()
    seconds: list[float] = []
    started = time.perf_counter()
    way.save(training, folder, lambda: seconds.append(time.perf_counter() - started))
    size = sync(folder)
    outcome.durable.append(time.perf_counter() - started)
    outcome.blocked.append(seconds[0])
    outcome.size.append(size)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    started = time.perf_counter()
    found = way.load(training, folder)
    outcome.restore.append(time.perf_counter() - started)
    if found is not None:
        expected = training.flat()
        wrong = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
        if wrong or len(found) != len(expected):
            raise SystemExit(f"{way.name} gave back another state: {wrong[:3] or sorted(set(found) ^ set(expected))[:3]}")


@dataclass(frozen=True)
class CodecRate:
    """Of one codec on one thread, without zstd, in shares of the rate of a warm copy of the same float32 numbers."""

    codec: str
    encode: float
    decode: float


def codec_rates(elements: int) -> Iterator[CodecRate]:
    """Of each codec of the qins tier."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    normal = 0.02 * torch.randn(elements, generator=torch.Generator().manual_seed(0))
    target = torch.empty_like(normal)
    for codec in (INT8, INT6, V1, LOG7, LOG8, LOG8U):
        values = normal.square() if codec == LOG8U else normal
        copy = _best(lambda: target.copy_(normal))
        pack, unpack = LOSSY[codec].pack, LOSSY[codec].unpack
        raw = np.frombuffer(b"".join(pack("t", values, elements)), np.uint8)
        encode = _best(partial(_used_up, partial(pack, "t", values, elements)))
        decode = _best(partial(unpack, raw, elements))
        yield CodecRate(codec, copy / encode, copy / decode)
    torch.set_num_threads(threads)


def _used_up(action: Callable[[], Iterator[object]]) -> None:
    for _ in action():
        pass


def _best(action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(BEST_OF):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def page(
    outcomes: dict[str, Outcome], rates: Sequence[CodecRate], training: Training, rate: float | None, command: str
) -> str:
    """The results as markdown."""
    gigabytes, plain = training.bytes / 1e9, statistics.median(outcomes["torch.save"].size)
    store = f"kept to {rate:g} MB/s in both directions" if rate else "as fast as it is"
    lines = [
        "# Checkpoints, ours and others'",
        "",
        f"A transformer of {sum(p.numel() for p in training.model.parameters()) / 1e6:.1f} M parameters with AdamW after "
        f"{training.steps} steps: {training.bytes / 1e6:.0f} MB of tensors. All ways save the same state in turns, with a "
        f"step of training between two rounds; median of {len(outcomes['torch.save'].size)}. The store is this machine's "
        f"disk, {store}. *Blocked*: until training could go on; *durable*: until all bytes are synced; *restore*: until "
        "all tensors are in memory, read from the disk. What comes back was compared bit for bit, but of those that round.",
        "",
        "| | MB | torch.save = 1 | blocked s | per GB | durable s | restore s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in outcomes.items():
        size, blocked = statistics.median(each.size), statistics.median(each.blocked)
        lines.append(
            f"| {name} | {size / 1e6:.1f} | 1 / {plain / size:.2f} | {blocked:.3f} | {blocked / gigabytes:.2f} "
            f"| {statistics.median(each.durable):.2f} | {statistics.median(each.restore):.2f} |"
        )
    lines += ["", *_verdicts(outcomes, gigabytes, plain), "", "## Codecs", ""]
    lines += [
        "One thread, without zstd, in shares of the rate of a warm copy of the same float32 numbers.",
        "",
        f"| codec | encode (at least {RATE_TARGETS['encode']:g}) | decode (at least {RATE_TARGETS['decode']:g}) |",
        "|---|---|---|",
    ]
    lines += [f"| {each.codec} | {each.encode:.3f} | {each.decode:.3f} |" for each in rates]
    return "\n".join([*lines, "", made_by(command)]) + "\n"


def _verdicts(outcomes: dict[str, Outcome], gigabytes: float, plain: float) -> list[str]:
    """A line for each target of the table."""
    whole, chain, exact = outcomes["ours, qins"], outcomes["ours, qins, difference"], outcomes["ours, exact"]
    others = {name: each for name, each in outcomes.items() if not name.startswith("ours")}
    mean = (statistics.median(whole.size) + (CHAIN - 1) * statistics.median(chain.size)) / CHAIN
    durable = min(statistics.median(each.durable) for each in others.values())
    restore = statistics.median(others["DCP save"].restore)
    ours = {name: each for name, each in outcomes.items() if name.startswith("ours")}
    found = [
        (
            "size of a whole one in the qins tier",
            plain / statistics.median(whole.size),
            SIZE_TARGETS["whole"],
            True,
            "1 / {:.2f}",
        ),
        (f"mean size of a chain of {CHAIN}", plain / mean, SIZE_TARGETS["chain"], True, "1 / {:.2f}"),
        ("blocked, s per GB", statistics.median(exact.blocked) / gigabytes, BLOCKED_TARGET, False, "{:.3f}"),
    ]
    for name, each in ours.items():
        found.append((f"durable, {name}, s", statistics.median(each.durable), durable, False, "{:.2f}"))
        found.append((f"restore, {name}, s", statistics.median(each.restore), restore, False, "{:.2f}"))
    lines = ["| target | found | asked | |", "|---|---|---|---|"]
    for what, number, target, is_least, form in found:
        met = number >= target if is_least else number <= target
        lines.append(f"| {what} | {form.format(number)} | {form.format(target)} | {'met' if met else 'MISSED'} |")
    lines += ["", "A save is asked to be as fast as the fastest of the others, a restore as DCP's."]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, save, read, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="before the first round")
    parser.add_argument("--rounds", type=int, default=CHAIN - 1)
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
    rates = list(codec_rates(1 << 23))
    words = shlex.join(["python", "-m", "benchmarks.checkpoints", *(arguments or sys.argv[1:])])
    result = page(outcomes, rates, training, options.rate, words)
    options.page.write_text(result)
    print(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
