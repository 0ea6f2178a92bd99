"""How curved the loss is along each weight: Hessian traces by Hutchinson's method, and bits chosen from them (QS-26).

tr(H) ≈ mean over probes v of vᵀ(H·v), entries of v ±1 (Hutchinson 1990; Dong et al., "HAWQ-V2", 2020). It is taken with
fake-quantization off: the straight-through estimator has no second derivative worth the name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from workers.randomness import sample_key_tensor, uniform

_STREAM = 0x4E55
"""Tells these numbers apart from others of the same seed."""


def probe(seed: int, number: int, position: int, like: Tensor) -> Tensor:
    """Entries ±1 of the shape and dtype of `like`: of (seed, number of the probe, position of the parameter) alone."""
    keys = sample_key_tensor(seed, _STREAM, torch.tensor([number]))
    draws = uniform(keys, like.numel(), position)[0].reshape(like.shape)
    return torch.where(draws < 0.5, -1.0, 1.0).to(like)


def trace_part(
    losses: Sequence[Callable[[], Tensor]],
    parameters: Mapping[str, Tensor],
    *,
    probes: int = 32,
    part: int = 0,
    parts: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """What the probes `part`, `part + parts`, … say of the trace of each parameter; sums, to be added over ranks.

    Args:
        losses: one function per fixed batch, the same on every rank, that returns a scalar; the Hessian is their mean's.
        parameters: by name, in an order that is the same on every rank; they require gradients.

    Returns:
        `{name}/sum` and `{name}/squares` of the vᵀ(H·v) of the parts of v, and `probes`. Keys are the same on every rank,
        which may have no probe at all.
    """
    named = dict(parameters)
    sums = {f"{name}/{kind}": 0.0 for name in named for kind in ("sum", "squares")}
    numbers = range(part, probes, parts)
    products = {name: [0.0] * len(numbers) for name in named}
    for loss in losses if len(numbers) else ():
        for index, values in enumerate(_products(loss(), list(named.values()), seed, numbers)):
            for name, value in zip(named, values, strict=True):
                products[name][index] += value / len(losses)
    for name, values in products.items():
        sums[f"{name}/sum"] = sum(values)
        sums[f"{name}/squares"] = sum(value * value for value in values)
    return sums | {"probes": float(len(numbers))}


def _products(loss: Tensor, parameters: list[Tensor], seed: int, numbers: range) -> list[list[float]]:
    """vᵀ(H·v) of each probe, one number per parameter, summed in float64."""
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    results = []
    for number in numbers:
        probes = [probe(seed, number, position, p) for position, p in enumerate(parameters)]
        slope = sum(((g * v).sum() for g, v in zip(gradients, probes, strict=True)), torch.zeros(()))
        if slope.requires_grad:
            curved = torch.autograd.grad(slope, parameters, retain_graph=True, materialize_grads=True)
            results.append([float((h.double() * v).sum()) for h, v in zip(curved, probes, strict=True)])
        else:
            results.append([0.0] * len(parameters))
    return results


def traces(sums: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """From `trace_part` added over all ranks: the trace of each parameter and its standard error."""
    count = sums["probes"]
    result = {}
    for key in sums:
        if key.endswith("/sum"):
            mean = sums[key] / count
            variance = max(0.0, sums[key.removesuffix("sum") + "squares"] / count - mean * mean)
            result[key.removesuffix("/sum")] = (mean, (variance / max(1.0, count - 1)) ** 0.5)
    return result


def sensitivities(trace: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Trace per weight, negative ones as 0, divided by the largest of them: 0..1, all 0 where no trace is positive."""
    per_weight = {name: max(0.0, value) / counts[name] for name, value in trace.items()}
    largest = max(per_weight.values(), default=0.0)
    return {name: value / largest if largest > 0.0 else 0.0 for name, value in per_weight.items()}


def allocate(sensitivity: Mapping[str, float]) -> dict[str, int]:
    """Bits by sensitivity, for `workers.qat.layers.set_bits`: above 0.7 8 bits, above 0.4 6, else 4."""
    return {name: 8 if value > 0.7 else 6 if value > 0.4 else 4 for name, value in sensitivity.items()}
