"""What a recipe brings to the way from data to a verified integer model: data, network, loss, evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from workers.data.checks import DataManifest
from workers.data.measurements import Largest
from workers.data.sampler import Ids
from workers.qat.gates import Condition
from workers.rounds import Sums

Split = Literal["validation", "test"]


class Recipe(Protocol):
    """One kind of network on one kind of data; everything is a function of the JobSpec, alike on every rank."""

    @property
    def model(self) -> nn.Module:
        """With `QuantLinear`, `QuantConv2d`, `QuantActivation` and `StateQuantizer` where something is to be quantized."""

    @property
    def train(self) -> Dataset[Any]:
        """Map-style."""

    @property
    def manifest(self) -> DataManifest:
        """Of the training data."""

    @property
    def digest(self) -> int:
        """Of all data, at most 53 bits: every host must have read the same."""

    def parameter_groups(self) -> Iterable[Any]:
        """For the optimizer."""

    def loss(self, batch: Any, epoch: int) -> Tensor:
        """The mean loss of a micro-batch of `train`."""

    def check(self, part: int, parts: int, largest: Largest) -> Sums:
        """Measurements of this part of the data, as `workers.data.checks.judge` reads them."""

    def evaluate(self, model: nn.Module, split: Split, part: int, parts: int) -> Sums:
        """Sums over this part of a split, for `model` as it is switched: `correct`, `count`, `loss` in nats, `not_finite`
        (outputs that are not). Of the same sample it is always the same."""

    def answer_random(self, model: nn.Module) -> Tensor:
        """What `model` answers, in evaluation mode, to random input of the data's shape and range: of the JobSpec alone."""

    def observe(self, ids: Ids) -> None:
        """Run the training samples `ids`, int64 [n], through the model in evaluation mode; n may be 0."""

    def compare(self, part: int, parts: int) -> Sums:
        """Sums over this part of what is measured of the network's inside with and without quantization; {} for nothing."""

    def conditions(self) -> Sequence[Condition]:
        """What the integer model must keep to, beyond its accuracy."""

    def measured(self, compared: Sums, full: Sums, quantized: Sums) -> Sums:
        """What `conditions` names: from the sums of `compare`, and of `evaluate` without and with quantization."""
