"""Engines that merge, without a network: the test adds up what they would exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from workers.collectives.exchange import Abandoned
from workers.compression.finite import NonFiniteError
from workers.compression.gradients import GradientCompression
from workers.engine import Engine
from workers.faults import Faults
from workers.identity import GENESIS, Generation
from workers.observing import StepObserver
from workers.outer.config import SyncConfig
from workers.protocol import RankMachine, RankState
from workers.transfer import Commit

FIRST = Generation(1, 1)
Batch = tuple[Tensor, Tensor]


def sgd(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.1)


def adamw(parameters: Any) -> Optimizer:
    return AdamW(parameters, lr=0.02, weight_decay=0.1)


def rate(step: int) -> float:
    """By which the learning rate of the step after `step` others is multiplied."""
    return 1.0 / (1.0 + 0.1 * step)


def never() -> bool:
    return False


class Nowhere:
    """An exchange that leaves the summing to the test."""

    def all_reduce(self, buffer: Tensor, *, largest: bool = False) -> Nowhere:
        return self

    def wait(self, stop: Callable[[], bool]) -> None:
        if stop():
            raise Abandoned


class Gathered:
    """A reducer without a codec that leaves the summing to the test: what a rank owes is added to what it sends."""

    def __init__(self, compression: GradientCompression) -> None:
        self._compression = compression
        self.sent: dict[int, Tensor] = {}

    def begin(self) -> None:
        self.sent.clear()

    def sum_bucket(self, bucket: int, gradient: Tensor) -> Nowhere:
        try:
            self._compression.memory.compensate(bucket, gradient)
        except NonFiniteError as error:
            self._compression.refused(error)
            gradient.zero_()
        self._compression.memory.settle_all(bucket)
        self._compression.encoded(bucket)
        self.sent[bucket] = gradient.clone()
        return Nowhere()

    def sum_exactly(self, values: Tensor, *, largest: bool = False) -> Nowhere:
        return Nowhere()

    def progress(self) -> bool:
        return False

    def backward_ended(self) -> None: ...

    def abandon(self) -> None: ...


class Largest(StepObserver):
    """Remembers the largest magnitude of a step, and lets it show in the forward pass."""

    most: Tensor

    def __init__(self) -> None:
        super().__init__(1)
        self.register_buffer("most", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.saw(x.abs().amax().reshape(1))
        return x * (1.0 + 0.1 * self.most)

    def take(self, reduced: Tensor) -> None:
        if reduced[0].isfinite():
            self.most.copy_(reduced[0])


def plain_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def rich_model() -> nn.Module:
    """With statistics that the forward pass changes."""
    return nn.Sequential(nn.Linear(3, 8), Largest(), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


class OneRank:
    """An engine in a running generation."""

    def __init__(
        self,
        *,
        model: Callable[[], nn.Module] = rich_model,
        optimizer: Callable[[Any], Optimizer] = adamw,
        clip_norm: float | None = None,
        **sync: Any,
    ) -> None:
        torch.manual_seed(0)
        self.model = model()
        self.optimizer = optimizer(self.model.parameters())
        self.scheduler = LambdaLR(self.optimizer, rate)
        self.machine = RankMachine(state=GENESIS, generation=FIRST, promised=FIRST, healed=True, phase=RankState.TRAINING)
        self.engine = Engine(
            self.model,
            self.optimizer,
            machine=self.machine,
            faults=Faults([], Path(), dict),
            scheduler=self.scheduler,
            clip_norm=clip_norm,
            sync=SyncConfig(every=4, **sync),
        )
        self.reducer = Gathered(self.engine.compression) if "staleness" in sync else None

    def begin(self) -> None:
        self.engine.begin_step(Nowhere(), never, None, self.reducer)  # type: ignore[arg-type]

    def inner_step(self, batch: Batch, pieces: int = 1) -> None:
        """This rank alone, on its share of an inner batch, which may be empty."""
        x, y = batch
        for piece in range(pieces if len(x) else 0):
            inputs, targets = x.tensor_split(pieces)[piece], y.tensor_split(pieces)[piece]
            self.engine.backward(mse_loss(self.model(inputs), targets), len(inputs), len(x), last=False)
        assert self.engine.outer is not None
        self.engine.outer.inner_step(None, never)

    def compute(self, share: Sequence[Batch], samples: int) -> None:
        """A round up to its exchange; it has `samples` over all ranks."""
        self.begin()
        self.began = {name: tensor.detach().double() for name, tensor in self.model.named_parameters()}
        for done, batch in enumerate(share, 1):
            self.inner_step(batch)
            if done < len(share):
                self.engine.stream(done, len(share), sum(len(x) for x, _ in share) / samples)
        self.engine.finish_exchange(samples)

    @property
    def digest(self) -> str:
        return self.engine.replica.digest()

    @property
    def bits(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything, this rank's own part too."""
        captured = self.engine.replica.capture()
        return captured.tensors, captured.meta


def commit(ranks: Sequence[OneRank], inner_steps: int) -> list[Commit]:
    """What the network would do: every rank ends with the sum, and with the largest of what was observed, and commits."""
    for buckets in zip(*(rank.engine.staging.buckets for rank in ranks), strict=True):
        total = torch.stack(buckets).sum(dim=0)
        for bucket in buckets:
            bucket.copy_(total)
    largest = torch.stack([rank.engine.staging.observed for rank in ranks])
    for rank in ranks:
        if largest.numel():
            rank.engine.staging.observed.copy_(largest.amax(dim=0))
    meta = {"kind": "step", "inner_steps": inner_steps}
    return [rank.engine.apply_step(dict(meta), FIRST) for rank in ranks]


def merge(ranks: Sequence[OneRank], shares: Sequence[Sequence[Batch]]) -> list[Commit]:
    """A whole round; `shares[r]` are the inner batches of rank r."""
    samples = sum(len(x) for share in shares for x, _ in share)
    for rank, share in zip(ranks, shares, strict=True):
        rank.compute(share, samples)
    return commit(ranks, len(shares[0]))


def equal(ours: tuple[dict[str, Tensor], Any], theirs: tuple[dict[str, Tensor], Any]) -> bool:
    """Bit for bit."""
    names = ours[0].keys() == theirs[0].keys()
    return names and all(torch.equal(t, theirs[0][name]) for name, t in ours[0].items()) and ours[1] == theirs[1]
