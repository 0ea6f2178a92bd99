"""What a resume from the qins tier costs, beside the exact one: `python -m benchmarks.restore`.

The byte transformer is trained in this process. Early and late its whole state is saved in each tier and read again; each
then goes on for 40 steps on the same batches. In the qins tier it is also the last of a chain of eight checkpoints, of
which all but the first are differences to the one before.
"""

from __future__ import annotations

import argparse
import copy
import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW

from benchmarks.machine import made_by
from benchmarks.system import ROOT
from workers.checkpoint import Published, load, save
from workers.checkpoint.chain import Chain
from workers.data import sampler
from workers.data.library import read_library
from workers.data.windows import cut, without
from workers.models.transformer import ByteTransformer, next_token_loss
from workers.state import ReplicatedState

PAGE = ROOT / "docs" / "results" / "restore.md"
BATCH, CONTEXT, RATE, FURTHER = 16, 128, 2e-3, 40
CHAIN = 8
TIERS = {"exact": ("exact", "int8"), "qins, int8 weights": ("qins", "int8"), "qins, v1 weights": ("qins", "v1")}


class Training:
    """A network, its optimizer, and how far it is."""

    def __init__(self, train: Tensor, held_out: Tensor) -> None:
        torch.manual_seed(0)
        self.model = ByteTransformer(context=CONTEXT)
        self.optimizer = AdamW(self.model.parameters(), lr=RATE)
        self.state = ReplicatedState(self.model, self.optimizer)
        self.train, self.held_out, self.step = train, held_out, 0

    def go_on(self, steps: int) -> None:
        """Train; a step's batch depends on its number alone."""
        per_epoch = sampler.steps_per_epoch(len(self.train), BATCH)
        for _ in range(steps):
            epoch, index = sampler.position(self.step, per_epoch)
            rows = self.train[torch.tensor(sampler.batch(0, epoch, index, len(self.train), BATCH))].long()
            self.optimizer.zero_grad()
            next_token_loss(self.model(rows[:, :-1]), rows[:, 1:]).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1

    @torch.no_grad()
    def loss(self) -> float:
        """Mean over the held-out windows, in nats."""
        parts = [next_token_loss(self.model(w[:, :-1].long()), w[:, 1:].long(), "sum") for w in self.held_out.split(32)]
        return float(torch.stack(parts).sum()) / self.held_out[:, 1:].numel()


@dataclass(frozen=True)
class Outcome:
    """Of one tier at one step: bytes of the checkpoint, or the mean of its chain, and losses."""

    step: int
    tier: str
    size: float
    at_restore: float
    afterwards: float


def saved(training: Training, root: Path, tier: str, weights: str, chain: Chain | None = None) -> Published:
    """Its whole state."""
    return save(
        training.state.capture(),
        root,
        job="restore",
        step=training.step,
        generation=(1, 1),
        lineage=1,
        world=1,
        fence=lambda: True,
        tier=tier,
        weights=weights,
        chain=chain,
        whole_every=CHAIN,
    )


def chained(training: Training, root: Path, until: int) -> list[Published]:
    """Train until that step, and save eight times on the way, the last time there."""
    chain, every = Chain(), max(1, until // 10)
    found = []
    for left in reversed(range(CHAIN)):
        training.go_on(until - left * every - training.step)
        found.append(saved(training, root, "qins", "int8", chain))
        print(f"step {training.step}: {found[-1].bytes} bytes, a difference to {found[-1].base}", flush=True)
    return found


def outcomes(training: Training, folder: Path, chain: Sequence[Published]) -> list[Outcome]:
    """Save, read, go on, for each tier from the same state; and from the last one of the chain."""
    found = {name: saved(training, folder / name.replace(" ", "-"), *tier) for name, tier in TIERS.items()}
    sizes: dict[str, float] = {name: published.bytes for name, published in found.items()}
    every = chain[1].path.name.split("-")[1], chain[0].path.name.split("-")[1]
    name = f"qins, int8 weights, the last of {CHAIN} that are {int(every[0]) - int(every[1])} steps apart"
    found[name], sizes[name] = chain[-1], sum(each.bytes for each in chain) / len(chain)
    return [_outcome(training, name, found[name].path, sizes) for name in found]


def _outcome(training: Training, name: str, path: Path, sizes: Mapping[str, float]) -> Outcome:
    resumed = copy.deepcopy(training)
    resumed.state = ReplicatedState(resumed.model, resumed.optimizer)
    resumed.state.restore(load(path))
    at_restore = resumed.loss()
    resumed.go_on(FURTHER)
    outcome = Outcome(training.step, name, sizes[name], at_restore, resumed.loss())
    print(outcome, flush=True)
    return outcome


def torch_save_bytes(training: Training) -> int:
    """What `torch.save` of the same state takes."""
    file = io.BytesIO()
    torch.save({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}, file)
    return file.tell()


def page(rows: Sequence[Outcome], plain: int, command: str) -> str:
    """The results as markdown."""
    lines = [
        "# A resume from the qins tier",
        "",
        f"The byte transformer (AdamW, learning rate {RATE:g}, batch {BATCH}, context {CONTEXT}); mean loss on held-out "
        f"windows when it is restored and after {FURTHER} further steps on the same batches, also relative to exact. The "
        f"size of the last of a chain is the mean of the chain; all but its first are differences to the one before.",
        "",
        "| step | tier | size, torch.save = 1 | loss at restore | relative | after 40 steps | relative |",
        "|---|---|---|---|---|---|---|",
    ]
    exact = {row.step: row for row in rows if row.tier == "exact"}
    for row in rows:
        base = exact[row.step]
        lines.append(
            f"| {row.step} | {row.tier} | 1 / {plain / row.size:.2f} | {row.at_restore:.5f} "
            f"| {row.at_restore / base.at_restore - 1:+.1e} | {row.afterwards:.5f} "
            f"| {row.afterwards / base.afterwards - 1:+.1e} |"
        )
    lines += ["", made_by(command)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restore", description=__doc__)
    parser.add_argument("--steps", default="50,500", help="when to save, separated by commas")
    parser.add_argument("--windows", type=int, default=256, help="held-out windows")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    text = read_library(1_500_000)
    train = cut(text.train, CONTEXT)
    held_out = without(cut(text.held_out, CONTEXT), train)
    training = Training(train, held_out[:: max(1, len(held_out) // options.windows)][: options.windows])
    rows: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="qr-") as folder:
        for step in map(int, options.steps.split(",")):
            chain = chained(training, Path(folder) / f"chain-{step}", step)
            rows += outcomes(training, Path(folder), chain)
    result = page(rows, torch_save_bytes(training), "python -m benchmarks.restore " + " ".join(arguments or sys.argv[1:]))
    options.page.write_text(result)
    print(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
