"""What there is to verify about a quantized model, as measurements; the gates judge them (QS-29).

Plain floats by name. Where the docstring says sums, they are of one rank's shard and are added over ranks; the others
are of the model alone and the same on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from workers.qat.convert import FrozenActivation, PackedWeight
from workers.qat.fake_quant import fake_quantize
from workers.qat.layers import QuantActivation, QuantizedLayer, WeightQuantizer
from workers.qat.observers import range_observers
from workers.qat.scales import SMALLEST_SCALE, TYPICAL_MULTIPLIER, best_multiplier, code_limits


@torch.no_grad()
def quantizers(model: nn.Module) -> dict[str, float]:
    """Of a model in training: how many quantizers there are and act, what observes, what has seen nothing.

    Of what stays in full precision none is asked for. `zero_point` is the largest number that a quantizer makes out of 0.
    """
    every = [m for m in model.modules() if isinstance(m, QuantizedLayer) and not m.fp32]
    layers = [m for m in every if m.fake_quant]
    activations = [m for m in model.modules() if isinstance(m, QuantActivation) and not m.fp32]
    observers = range_observers(model).values()
    zeros = [fake_quantize(torch.zeros(()), m.scale(), m.bits) for m in activations]
    zeros += [layer.quantizer(layer.weight)[layer.weight == 0].abs().sum() for layer in layers]
    return {
        "layers": float(len(every)),
        "activations": float(len(activations)),
        "weight_quantizers": float(len(layers)),
        "activation_quantizers": float(sum(m.fake_quant and m.observer.ready for m in activations)),
        "misplaced_quantizers": float(len(misplaced(model))),
        "zero_point": max((float(zero) for zero in zeros), default=0.0),
        "observing": float(sum(observer.observing for observer in observers)),
        "blind_observers": float(sum(not observer.ready for observer in observers)),
    }


def misplaced(model: nn.Module) -> list[str]:
    """The names of the activation quantizers that stand inside neurons, surrogates or losses, by the tree of modules.

    A neuron is what has a place for a `state_quant`; only that may quantize there.
    """
    from workers.spiking.surrogates import Surrogate

    found = []
    for name, module in model.named_modules():
        if isinstance(module, _Loss | Surrogate) or hasattr(module, "state_quant"):
            found += [f"{name}.{inner}" for inner, m in module.named_modules() if isinstance(m, _ACTIVATIONS)]
    return found


_ACTIVATIONS = (QuantActivation, FrozenActivation)


@torch.no_grad()
def activity(model: nn.Module, run: Callable[[], Any]) -> dict[str, float]:
    """What the quantizers do while `run` calls `model`: 0 or 1 each, of which the larger over the ranks counts.

    Returns:
        `weight.{name}` and `activation.{name}`: the output was not the input; of an activation also `one.{name}`, it met
        a 1, and `other.{name}`, it met what is neither 0 nor 1.
    """
    kinds = {name: "activation" for name, module in model.named_modules() if isinstance(module, _ACTIVATIONS)}
    found = {f"{kind}.{name}": 0.0 for name in kinds for kind in ("activation", "one", "other")}
    for name, module in model.named_modules():
        if isinstance(module, WeightQuantizer):
            kinds[name] = "weight"
            found[f"weight.{name}"] = 0.0

    def look(name: str, x: Tensor, y: Tensor) -> None:
        met = {kinds[name]: not torch.equal(x, y)}
        if kinds[name] == "activation":
            met |= {"one": bool((x == 1).any()), "other": bool(((x != 0) & (x != 1)).any())}
        for kind, value in met.items():
            found[f"{kind}.{name}"] = max(found[f"{kind}.{name}"], float(value))

    with _watched(model, look, (*_ACTIVATIONS, WeightQuantizer)):
        run()
    return found


def acting(found: Mapping[str, float]) -> dict[str, float]:
    """Counts, from `activity` over all ranks: `weights_changed` and `activations_changed`, the quantizers whose output was
    not their input, and `spikes_quantized`, those that met ones, and nothing but zeros beside them."""
    kinds = [(kind, name, value) for key, value in found.items() for kind, _, name in [key.partition(".")]]
    changed = {each: sum(value for kind, _, value in kinds if kind == each) for each in ("weight", "activation")}
    spikes = sum(value > found[f"other.{name}"] for kind, name, value in kinds if kind == "one")
    return {
        "weights_changed": float(changed["weight"]),
        "activations_changed": float(changed["activation"]),
        "spikes_quantized": float(spikes),
    }


@torch.no_grad()
def noise(model: nn.Module, run: Callable[[], Any]) -> dict[str, float]:
    """Sums for the signal-to-noise ratio of quantization, float64, of the inputs that `run` makes each activation see.

    Returns:
        `signal.{name}`, Σ x², and `noise.{name}`, Σ (x - q(x))², of every quantizer, whether it acts or not.
    """
    named = {name: m for name, m in model.named_modules() if isinstance(m, QuantActivation)}
    sums = {f"{kind}.{name}": 0.0 for name in named for kind in ("signal", "noise")}

    def look(name: str, x: Tensor, y: Tensor) -> None:
        error = x - fake_quantize(x, named[name].scale().to(x.dtype), named[name].bits)
        sums[f"signal.{name}"] += float(x.double().square().sum())
        sums[f"noise.{name}"] += float(error.double().square().sum())

    with _watched(model, look, _ACTIVATIONS):
        run()
    return sums


def sqnr(sums: Mapping[str, float], name: str) -> float:
    """Signal-to-noise ratio of quantization in dB, from `noise` added over ranks; infinite without noise."""
    signal, noise = sums[f"signal.{name}"], sums[f"noise.{name}"]
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


@torch.no_grad()
def scale_error(model: nn.Module, converted: nn.Module) -> dict[str, float]:
    """How far the scales of `converted` are from QS-15 with the ranges and weights of `model`, relative, float64.

    Returns:
        By name; infinite where a scale is not finite, or where `converted` has no scale for a quantizer of `model`.
    """
    parts = dict(converted.named_modules())
    errors = {}
    for name, module in model.named_modules():
        if isinstance(module, (*QuantizedLayer, QuantActivation)) and not module.fp32:
            part = parts.get(name)
            expected = _expected_scale(module)
            actual = part.scale.double() if isinstance(part, PackedWeight | FrozenActivation) else torch.full((), math.inf)
            worst = float(((actual - expected) / expected).abs().max())
            errors[name] = worst if math.isfinite(worst) else math.inf
    return errors


def _expected_scale(module: nn.Module) -> Tensor:
    """c · max_abs / (2^(b-1) - 1), at least 2^-23, in float64: [] or [rows]; times a learned multiplier."""
    if isinstance(module, QuantActivation):
        bits, step = module.bits, module.step
        max_abs = torch.maximum(module.observer.low.double().abs(), module.observer.high.double().abs())
        multiplier = torch.tensor(TYPICAL_MULTIPLIER[bits], dtype=torch.float64)
    else:
        quantizer: Any = module.quantizer
        weight: Any = module.weight
        bits, step = quantizer.bits, quantizer.step
        rows = weight.flatten(1) if quantizer.per_channel else weight.reshape(1, -1)
        largest = rows.abs().amax(dim=1, keepdim=True)
        multiplier = torch.ones((), dtype=torch.float64)
        if bits <= 4:
            multiplier = best_multiplier(rows, largest, bits, quantizer.scale_convention).double().squeeze(1)
        max_abs, module = largest.double().squeeze(1), quantizer
    steps = (2**bits - 1) / 2 if module.scale_convention == "torch" else code_limits(bits)[1]
    scale = (multiplier * max_abs / steps).clamp_min(SMALLEST_SCALE)
    return scale if step is None or bits > 4 else (scale * step.multiplier.double()).clamp_min(SMALLEST_SCALE)


def accuracy_drop(full: Mapping[str, float], quantized: Mapping[str, float]) -> float:
    """How much less of the samples is correct after quantization, 0..1, from `correct` and `count` added over ranks."""
    return full["correct"] / full["count"] - quantized["correct"] / quantized["count"]


def not_finite(*outputs: Tensor) -> float:
    """How many numbers are NaN or infinite; a sum."""
    return float(sum(int((~output.isfinite()).sum()) for output in outputs))


def differences(first: Tensor, second: Tensor) -> float:
    """How many numbers of two tensors of one shape are not the same bits; a sum."""
    pairs = (tensor.contiguous().reshape(-1, 1).view(torch.uint8) for tensor in (first, second))
    return float(torch.ne(*pairs).any(dim=1).sum())


@contextmanager
def _watched(
    model: nn.Module, look: Callable[[str, Tensor, Tensor], None], kinds: tuple[type[nn.Module], ...]
) -> Iterator[None]:
    """Inside, `look` is called with the name, input and output of each quantizer, of one of `kinds`, that is used."""
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, kinds):

            def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                look(name, inputs[0], output)

            handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
