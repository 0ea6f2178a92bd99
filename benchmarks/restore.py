"""What a resume from the qins tier costs, beside the exact one: `python -m benchmarks.restore`.

The byte transformer is trained in this process. Early and late its whole state is saved in each tier and read again; each
then goes on for 40 steps on the same batches.
"""

from __future__ import annotations

import argparse
import copy
import io
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW

from benchmarks.machine import made_by
from benchmarks.system import ROOT
from workers.checkpoint import load, save
from workers.data import sampler
from workers.data.library import read_library
from workers.data.windows import cut, without
from workers.models.transformer import ByteTransformer, next_token_loss
from workers.state import ReplicatedState

PAGE = ROOT / "docs" / "results" / "restore.md"
BATCH, CONTEXT, RATE, FURTHER = 16, 128, 2e-3, 40
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
    """Of one tier at one step: bytes of the checkpoint, and losses."""

    step: int
    tier: str
    size: int
    at_restore: float
    afterwards: float


def outcomes(training: Training, folder: Path) -> list[Outcome]:
    """Save, read, go on, for each tier from the same state."""
    begin = copy.deepcopy(training)
    rows = []
    for name, (tier, weights) in TIERS.items():
        published = save(
            training.state.capture(),
            folder / name.replace(" ", "-"),
            job="restore",
            step=training.step,
            generation=(1, 1),
            lineage=1,
            world=1,
            fence=lambda: True,
            tier=tier,
            weights=weights,
        )
        resumed = copy.deepcopy(begin)
        resumed.state = ReplicatedState(resumed.model, resumed.optimizer)
        resumed.state.restore(load(published.path))
        at_restore = resumed.loss()
        resumed.go_on(FURTHER)
        rows.append(Outcome(training.step, name, published.bytes, at_restore, resumed.loss()))
        print(rows[-1], flush=True)
    return rows


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
        f"windows when it is restored and after {FURTHER} further steps on the same batches, also relative to exact.",
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
            training.go_on(step - training.step)
            rows += outcomes(training, Path(folder))
    result = page(rows, torch_save_bytes(training), "python -m benchmarks.restore " + " ".join(arguments or sys.argv[1:]))
    options.page.write_text(result)
    print(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
