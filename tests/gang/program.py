"""What the gangs of these tests train: a small network with everything that is easily lost (BatchNorm, dropout, a learning
rate that moves, moments of AdamW), and a digest of the state every few steps.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from workers import elastic
from workers.collectives.exchange import Abandoned, ExchangeError
from workers.collectives.shared import Layout
from workers.data import sampler
from workers.elastic import Job, Largest
from workers.engine import Engine
from workers.observing import StepObserver
from workers.rank import Rank

SAMPLES = 256
ROWS_AT_ONCE = 16
DIGEST_EVERY = 8
WIDE = 1000
QUIET_STEPS = 18
LINGERING_STEPS = 24
QUIET_SECONDS, PACE_SECONDS, LINGER_SECONDS = 0.01, 0.05, 1.0
"""A step takes at least this long until the test is in a hurry: at first, while nothing happens; then, while faults and
recoveries fall into the training; and in the last LINGERING_STEPS, for machines on which a recovery takes long."""


SPIKE = 50.0
"""Times as large is the loss while the test wants it to be."""

LAME_SECONDS = 0.1
"""More for a micro-batch on a host that is lame."""


def learning_rate(step: int) -> float:
    """Of the step after `step` committed ones."""
    return 0.01 / (1.0 + 0.01 * step)


class Ranges(StepObserver):
    """Moving average of the smallest and the largest value that all ranks have seen in a step."""

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self) -> None:
        super().__init__(2)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.saw(torch.stack([-x.min(), x.max()]))
        return x.clamp(self.low - 8.0, self.high + 8.0)

    def take(self, reduced: torch.Tensor) -> None:
        for buffer, value in ((self.low, -reduced[0]), (self.high, reduced[1])):
            if value.isfinite():
                buffer.lerp_(value, 0.1)


def train() -> None:
    noise = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 12, generator=noise)
    targets = (inputs[:, :3] + 0.3 * torch.randn(SAMPLES, 3, generator=noise)).argmax(dim=1)
    binding = elastic._binding
    assert binding is not None
    if (binding.rank.folder / "own-seeds").exists():
        torch.manual_seed(os.getpid())  # a model of its own on every rank
    want_too_much(binding.rank)
    model = nn.Sequential(
        nn.Linear(12, 24),
        Ranges(),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Dropout(0.2),
        *hidden(binding.rank),
        nn.ReLU(),
        nn.Linear(24, 3),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step) / 0.01)

    def units(part: int, parts: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The same rows together in any number of parts: what a row gives depends on its batch in the last bit."""
        mine = sampler.whole_units(SAMPLES, ROWS_AT_ONCE, parts, part)
        return list(zip(inputs[mine].split(ROWS_AT_ONCE), targets[mine].split(ROWS_AT_ONCE), strict=True))

    def correct(part: int, parts: int) -> dict[str, float]:
        model.eval()
        hits = [model(x).argmax(dim=1) == y for x, y in units(part, parts)]
        return {"correct": float(sum(int(each.sum()) for each in hits)), "count": float(sum(map(len, hits)))}

    def observed(part: int, parts: int) -> dict[str, float]:
        return {"seen": float(sum(len(model(x)) for x, _ in units(part, parts)))}

    def after_round(name: str, results: dict[str, float]) -> None:
        if name == "evaluate":
            if results["correct"] >= max([r["correct"] for _, n, r in job.history if n == name], default=0.0):
                job.keep_weights()
        if name == "best":
            job.put_back_weights()

    job = Job(
        model,
        optimizer,
        TensorDataset(inputs, targets),
        scheduler=scheduler,
        evaluate=correct,
        after_round=after_round,
    )
    log, greetings = DigestLog(job), Greetings(job)
    data = job.collect(
        "data", lambda part, parts: {"rows": len(inputs[part::parts]), "top": Largest(inputs[part::parts].max())}
    )
    assert data == {"rows": SAMPLES, "top": float(inputs.max())}
    for x, y in job.batches():
        log.note()
        greetings.note()
        dawdle(job)
        lose_device(job)
        job.step(SPIKE * cross_entropy(model(x), y) if (job.folder / "spike").exists() else cross_entropy(model(x), y))
    if (job.folder / "odd-rounds").exists():
        job.collect("odd", lambda part, parts: {f"part{part}": 1.0})  # a bug: other keys on every rank
    job.collect("first", lambda part, parts: {"parts": float(part == 0)})
    job.collect("best", lambda part, parts: {})
    job.collect("ranges", observed, observe=True)
    log.note(final=True)


def hidden(rank: Rank) -> list[nn.Module]:
    """One layer of 24; where a link is to matter, a million parameters."""
    if (rank.folder / "wide").exists():
        return [nn.Linear(24, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, 24)]
    return [nn.Linear(24, 24)]


def want_too_much(rank: Rank) -> None:
    """More shared memory than there is, on a host that is to be without."""
    engine: Any = Engine
    if (rank.folder / f"{rank.host}.full").exists():
        engine.shared_layout = property(lambda self: Layout(1 << 44, 1))


def lose_device(job: Job) -> None:
    """Once, on the rank and in the step that a file names."""
    mark = job.folder / f"device-{job._rank.number}-{job.committed}.lost"
    if mark.exists():
        mark.unlink()
        error = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        vars(error)["error_code"] = 214  # cudaErrorECCUncorrectable
        raise error


def dawdle(job: Job) -> None:
    """Wait the share of a step's time that belongs to a micro-batch, or until the test is in a hurry."""
    seconds = QUIET_SECONDS if job.committed < QUIET_STEPS else PACE_SECONDS
    if job.committed >= job.total_steps - LINGERING_STEPS:
        seconds = LINGER_SECONDS
    deadline = time.monotonic() + seconds / 2
    assert isinstance(job._rank, Rank)
    if (job.folder / f"{job._rank.host}.lame").exists():
        deadline += LAME_SECONDS
    while time.monotonic() < deadline and not (job.folder / "hurry").exists():
        time.sleep(min(0.025, seconds / 2))


class DigestLog:
    """`digests/<worker>.jsonl`: the digest and the id of the same state (EP-18)."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._last: object = None
        folder = job.folder / "digests"
        folder.mkdir(exist_ok=True)
        self._path = folder / f"{job._rank.worker}.jsonl"

    def note(self, *, final: bool = False) -> None:
        """At the first micro-batch of a step nothing has touched the state yet."""
        state = self._job._machine.state
        if final or (state.step % DIGEST_EVERY == 0 and state != self._last):
            self._last = state
            line = {"state": [state.step, state.round, *state.generation, state.lineage], "digest": self._job.digest}
            with self._path.open("a") as file:
                file.write(json.dumps({**line, "final": final}) + "\n")


class Greetings:
    """`greetings/<worker>.jsonl`, if there is such a folder: who shares memory in a generation, found out through it."""

    def __init__(self, job: Job) -> None:
        assert isinstance(job._rank, Rank)
        self._rank = job._rank
        self._folder = job.folder / "greetings"
        self._greets = self._folder.exists()
        self._last: object = None

    def note(self) -> None:
        """At the first micro-batch of a generation: the sum of the numbers of the host's ranks, null without memory."""
        rank, generation = self._rank, self._rank.machine.generation
        if not self._greets or generation == self._last:
            return
        self._last = generation
        number, world = torch.tensor([float(rank.number)]), None
        if rank.host_exchange is not None:
            world = rank.host_exchange.world
            try:
                rank.host_exchange.all_reduce(number).wait(rank.must_stop)
            except (Abandoned, ExchangeError):
                return
        line = {"generation": list(generation), "rank": rank.number, "host": rank.host, "world": world}
        with (self._folder / f"{rank.worker}.jsonl").open("a") as file:
            file.write(json.dumps({**line, "sum": float(number) if world else None}) + "\n")


if __name__ == "__main__":
    train()
