"""What a spiking network is trained to do: classify, and to spike rarely, smoothly, cheaply and early if asked to.

Every term is a mean over the samples of a number of each sample alone. So the loss of a batch is the mean of the losses of
its parts, weighted by their numbers of samples, and the reduced gradient of many ranks is that of one (QS-14). The square
of a mean over the whole batch would not add up in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from workers.spiking.distillation import Distillation
from workers.spiking.networks import SpikingOutput
from workers.spiking.traces import DECAY, first_spike_times, traces


class LossTerms(NamedTuple):
    """The weighted sum and the terms before weighting, float32 []; a term with weight 0 is not computed and is None."""

    total: Tensor
    classification: Tensor | None
    rate: Tensor | None
    temporal: Tensor | None
    energy: Tensor | None
    latency: Tensor | None


@dataclass(frozen=True)
class SpikingLoss:
    """The loss of a spiking classifier: a sum of terms, each with its weight.

    Args:
        classification: weight of the cross-entropy of the logits, or of what `distillation` puts in its place.
        rate: weight of (mean spike rate - `target_rate`)^2.
        temporal: weight of the mean squared difference of successive spike traces, which fade by `trace_decay`.
        energy: weight of the mean |membrane| before the reset.
        latency: weight of ((mean first-spike time - `target_time`) / T)^2.
        distillation: how much a teacher counts; None for no teacher.

    Each of the last four is the mean over the layers. Usual weights are 1 and, for those that are wanted, 0.01.

    Raises:
        ValueError: a weight is negative.

    >>> loss = SpikingLoss(rate=0.01)
    >>> job.step(loss(model(spikes), labels).total)
    """

    classification: float = 1.0
    rate: float = 0.0
    temporal: float = 0.0
    energy: float = 0.0
    latency: float = 0.0
    target_rate: float = 0.1
    target_time: float = 10.0
    trace_decay: float = DECAY
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        for name in ("classification", "rate", "temporal", "energy", "latency"):
            if getattr(self, name) < 0:
                raise ValueError(f"the weight of the {name} loss must be at least 0, not {getattr(self, name)}")

    def __call__(self, output: SpikingOutput, labels: Tensor, teacher: SpikingOutput | None = None) -> LossTerms:
        """The terms for the `labels`, int64 [B]; `teacher` is the output of the frozen network for the same spikes.

        Raises:
            ValueError: there is a teacher without `distillation`, or the other way round.
        """
        if (teacher is None) != (self.distillation is None):
            raise ValueError(
                "a distillation needs both: SpikingLoss(distillation=Distillation(...)) and loss(..., teacher)"
            )
        spikes, membranes = output.spikes, output.membranes
        values: dict[str, Callable[[], Tensor]] = {
            "classification": lambda: self._classify(output, labels, teacher),
            "rate": lambda: over_layers(lambda s: rate_loss(s, self.target_rate), spikes),
            "temporal": lambda: over_layers(lambda s: temporal_loss(s, self.trace_decay), spikes),
            "energy": lambda: over_layers(energy_loss, membranes),
            "latency": lambda: over_layers(lambda s: latency_loss(s, self.target_time), spikes),
        }
        terms = {name: value() for name, value in values.items() if getattr(self, name) > 0}
        weighted = [getattr(self, name) * term for name, term in terms.items()]
        total = torch.stack(weighted).sum() if weighted else output.logits.sum() * 0
        return LossTerms(total, *(terms.get(name) for name in values))

    def _classify(self, output: SpikingOutput, labels: Tensor, teacher: SpikingOutput | None) -> Tensor:
        if self.distillation is None or teacher is None:
            return cross_entropy(output.logits, labels)
        return self.distillation(output, teacher, labels)


def over_layers(term: Callable[[Tensor], Tensor], layers: Sequence[Tensor]) -> Tensor:
    """The mean of `term` over the spikes or membranes [T, B, N] of the layers."""
    return torch.stack([term(layer) for layer in layers]).mean()


def rate_loss(spikes: Tensor, target: float = 0.1) -> Tensor:
    """Mean over the samples of (mean rate of the sample - target)^2, for `spikes` [T, B, N]."""
    return (spikes.mean(dim=(0, 2)) - target).square().mean()


def temporal_loss(spikes: Tensor, decay: float = DECAY) -> Tensor:
    """Mean over t >= 1 of the mean squared difference between the traces of t and t - 1, for `spikes` [T, B, N]."""
    return traces(spikes, decay).diff(dim=0).square().mean() if len(spikes) > 1 else spikes.sum() * 0


def energy_loss(membranes: Tensor) -> Tensor:
    """Mean |u| of the `membranes` before the reset, [T, B, N]."""
    return membranes.abs().mean()


def latency_loss(spikes: Tensor, target: float = 10.0) -> Tensor:
    """Mean over the samples of ((mean first-spike time of the sample - target) / T)^2, for `spikes` [T, B, N]."""
    return ((first_spike_times(spikes).mean(dim=1) - target) / len(spikes)).square().mean()
