"""The recipe `spiking`: leaky integrate-and-fire neurons on handwritten digits that have become spikes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workers.qat import gates
from workers.qat.fidelity import correlation, rate_change, spike_sums
from workers.qat.gates import Condition
from workers.qat.layers import set_switches
from workers.qat.phases import FP32, QUANTIZED, Switches
from workers.qat.state_quant import StateQuantizer
from workers.rounds import Sums
from workers.spiking.encoders import Encoding
from workers.spiking.lif import LIF
from workers.spiking.losses import SpikingLoss
from workers.spiking.networks import SpikingMLP, SpikingOutput, parameter_groups
from workers.spiking.surrogates import Learnable, make_surrogate
from workers.tasks.digits import EVALUATION_EPOCH, DigitsRecipe, Rows, Splits, preload
from workers.tasks.learning import NO_DECAY, OWN_RATE
from workers.tasks.pipeline import Pipeline
from workers.tasks.quantized import quant_activation, quant_linear

if TYPE_CHECKING:
    from workers.config import TrainingConfig
    from workers.elastic import Job

__all__ = ["SpikingRecipe", "build", "preload", "run"]


def build(config: TrainingConfig, num_features: int, num_classes: int) -> SpikingMLP:
    """The network; its first weights are decided by the seed alone."""
    wanted, qat = config.task.spiking, config.qat

    def make_lif() -> LIF:
        slope = wanted.slope
        settings = {} if slope is None else {"w": 1.0 / slope} if wanted.surrogate == "rectangular" else {"k": slope}
        return LIF(
            surrogate=make_surrogate(wanted.surrogate, **settings),
            beta=wanted.decay,
            state_quant=None if qat.state_bits is None else StateQuantizer(qat.state_bits),
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return SpikingMLP(
            (num_features, *config.task.hidden, num_classes),
            readout="counts" if wanted.readout == "count" else "membrane",
            make_lif=make_lif,
            make_linear=partial(quant_linear, config),
            wrap_current=partial(quant_activation, config),
        )


class SpikingRecipe(DigitsRecipe):
    """`Recipe` for a spiking network."""

    model: SpikingMLP

    def __init__(self, config: TrainingConfig, splits: Splits) -> None:
        super().__init__(config, splits, build(config, splits.digits.num_features, splits.digits.num_classes))
        wanted = config.task.spiking
        low, high = splits.digits.bounds
        method = None if wanted.encoding == "current" else wanted.encoding
        self._encoding = None if method is None else Encoding(method, wanted.num_steps, low, high)
        self._scale = (low, high)
        self._loss = SpikingLoss(
            rate=wanted.rate_weight,
            temporal=wanted.temporal_weight,
            energy=wanted.energy_weight,
            latency=wanted.latency_weight,
        )
        self.layers = [f"layers.{n}" for n, layer in enumerate(self.model.layers) if isinstance(layer.neurons, LIF)]

    def parameter_groups(self) -> Iterable[Any]:
        weights, *others = parameter_groups(self.model, self.config.optimizer.lr, self.config.optimizer.weight_decay)
        learns = any(isinstance(module, Learnable) for module in self.model.modules())
        return [weights, *({**g, NO_DECAY: True, OWN_RATE: learns and g is others[-1]} for g in others)]

    def output(self, model: nn.Module, rows: Rows, epoch: int) -> SpikingOutput:
        """What the network answers."""
        num_steps = self.config.task.spiking.num_steps
        if self._encoding is None:
            low, high = self._scale
            answer: SpikingOutput = model((rows.x - low) / (high - low), num_steps)
        else:
            answer = model(self._encoding.encode(rows.x, rows.ids, self.config.seed, epoch))
        return answer

    def logits(self, model: nn.Module, rows: Rows, epoch: int) -> Tensor:
        return self.output(model, rows, epoch).logits

    def loss(self, batch: Sequence[Tensor], epoch: int) -> Tensor:
        rows = Rows(*batch)
        return self._loss(self.output(self.model, rows, epoch), rows.y).total

    def compare(self, part: int, parts: int) -> Sums:
        """QS-30: the spikes of every layer with and without fake-quantization, for this part of the test digits."""
        sums: Sums = {}
        self.model.eval()
        for chunk in self.splits.test.part(part, parts).chunks():
            on, off = (self._spikes(chunk, switches) for switches in (QUANTIZED, FP32))
            for key, value in spike_sums(on, off).items():
                sums[key] = sums.get(key, 0.0) + value
        return sums or dict.fromkeys(spike_sums(*([{layer: torch.zeros(1, 1, 1) for layer in self.layers}] * 2)), 0.0)

    def _spikes(self, rows: Rows, switches: Switches) -> dict[str, Tensor]:
        weights, activations, state, observing = switches
        set_switches(self.model, weights=weights, activations=activations, state=state, observing=observing)
        return dict(zip(self.layers, self.output(self.model, rows, EVALUATION_EPOCH).spikes, strict=True))

    def conditions(self) -> Sequence[Condition]:
        return gates.spiking(self.config.qat, self.layers)

    def measured(self, compared: Sums, full: Sums, quantized: Sums) -> Sums:
        rates = {f"rate_change.{layer}": rate_change(compared, layer) for layer in self.layers}
        return rates | {f"correlation.{layer}": correlation(compared, layer) for layer in self.layers}


def run(config: TrainingConfig, make_job: Callable[..., Job], prepared: Splits | None = None) -> dict[str, Any]:
    """Train, quantize, verify; see `Pipeline.run`."""
    return Pipeline(config, SpikingRecipe(config, prepared or preload(config)), make_job).run()
