"""The recipe `digits`: a multi-layer perceptron on handwritten digits, FP32 first, then quantization-aware."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workers.data.digits import Digits, load_digits
from workers.data.sampler import steps_per_epoch
from workers.qat.convert import convert, fp32_bytes, packed_bytes
from workers.qat.fake_quant import QuantLinear, set_fake_quant
from workers.randomness import SampleDropout
from workers.tasks.learning import make_optimizer, make_schedule

if TYPE_CHECKING:
    from workers.config import TrainingConfig
    from workers.elastic import Job

Prepared = Digits


def preload(config: TrainingConfig) -> Prepared:
    """Load the digits. Raises DataError where they are missing or damaged."""
    return load_digits(config.task.data)


def phase(config: TrainingConfig, epoch: int) -> str:
    """`fp32_warmup` for the first `phases.fp32_epochs` epochs, then `qat`."""
    return "fp32_warmup" if epoch < config.phases.fp32_epochs else "qat"


def build(config: TrainingConfig, num_features: int, num_classes: int) -> nn.Sequential:
    """The network: [B, num_features] to logits [B, num_classes]; its first weights are decided by the seed alone."""
    layers: list[nn.Module] = []
    width = num_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for hidden in config.task.hidden:
            layers += [QuantLinear(width, hidden, bits=config.task.weight_bits), nn.ReLU()]
            if config.task.dropout > 0:
                layers.append(SampleDropout(config.task.dropout))
            width = hidden
        layers.append(QuantLinear(width, num_classes, bits=config.task.weight_bits))
    return nn.Sequential(*layers)


def run(config: TrainingConfig, make_job: Callable[..., Job], prepared: Prepared | None = None) -> dict[str, Any]:
    """Train, then compare the FP32 weights with the integers they become.

    Returns:
        `accuracy` {fp32, int8} of the held-out digits, 0..1, and `bytes` {fp32, int8_packed} of the model. `fp32` is
        the better of the best epoch of the warm-up and the final weights without fake-quantization; `int8` is the
        converted model, whatever its `weight_bits`.
    """
    digits = prepared or preload(config)
    model = build(config, digits.num_features, digits.num_classes)
    optimizer = make_optimizer(config, model.parameters())
    per_epoch = steps_per_epoch(len(digits.train), config.global_batch)
    scheduler = make_schedule(config, optimizer, per_epoch * config.epochs)

    def evaluate(part: int, parts: int) -> dict[str, float]:
        set_fake_quant(model, phase(config, job.epoch) == "qat")
        return count_correct(model, *held_out(digits, part, parts))

    def evaluate_fp32(part: int, parts: int) -> dict[str, float]:
        set_fake_quant(model, False)
        return count_correct(model, *held_out(digits, part, parts))

    def evaluate_converted(part: int, parts: int) -> dict[str, float]:
        return count_correct(convert(model), *held_out(digits, part, parts))

    job = make_job(model, optimizer, digits.train, scheduler=scheduler, evaluate=evaluate, clip_norm=config.clip_norm)
    for x, y in job.batches():
        set_fake_quant(model, phase(config, job.epoch) == "qat")
        job.step(cross_entropy(model(x), y))

    final = accuracy(job.collect("fp32", evaluate_fp32))
    integer = accuracy(job.collect("int8", evaluate_converted))
    warmup = best_until(job.history, per_epoch * config.phases.fp32_epochs)
    return {
        "accuracy": {"fp32": max(final, warmup), "int8": integer},
        "bytes": {"fp32": fp32_bytes(model), "int8_packed": packed_bytes(convert(model))},
    }


def held_out(digits: Digits, part: int, parts: int) -> tuple[Tensor, Tensor]:
    """Part `part` of `parts` of the held-out digits and labels; the parts together are all of them, once."""
    total = len(digits.test_y)
    rows = slice(part * total // parts, (part + 1) * total // parts)
    return digits.test_x[rows], digits.test_y[rows]


def count_correct(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Sums over the digits `x` [M, F] with labels `y` [M]: `correct`, `count`, and `loss` in nats."""
    training = model.training
    model.eval()
    with torch.inference_mode():
        logits = model(x)
        loss = float(cross_entropy(logits, y, reduction="sum"))
        correct = int((logits.argmax(dim=1) == y).sum())
    model.train(training)
    return {"correct": correct, "count": len(y), "loss": loss}


def accuracy(sums: dict[str, float]) -> float:
    """The part that is correct, 0..1."""
    return sums["correct"] / sums["count"]


def best_until(history: list[tuple[int, str, dict[str, float]]], step: int) -> float:
    """The best accuracy of an evaluation after at most `step` steps, the converted model's aside; 0 without one."""
    return max((accuracy(sums) for at, name, sums in history if at <= step and name != "int8"), default=0.0)
