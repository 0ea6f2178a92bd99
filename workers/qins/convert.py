"""From a float model to one whose linear layers hold QINS codes (QN-11, QN-13)."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from workers.qins.fidelity import Fidelity, fidelity
from workers.qins.linear import CachePolicy, ProjectiveLinear, QINSLinear, recently_used

VARIABLE = "QINS_CODEC_AT_REST"
"""`1`, or not set: decode before computing. `0`: legacy layers that compute on codes."""

FLOOR = 1e-4
"""Of a conversion. On a trained transformer it takes a third off the range that a layer's weights share, and every figure
gets better. A larger one lowers the KL to the float model further, and raises the mean relative error (docs/qins.md)."""

Mode = Literal["at-rest", "legacy"]


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did to `layers`; `skipped` has the reason by the name of each other linear layer.

    Bytes are of parameters and buffers, what is shared counted once. `cached_bytes` come to them at most, as the layers are
    used, by the policy `cache`. `quality` is of the encoded weights.
    """

    mode: Mode
    layers: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    cache: CachePolicy
    cached_bytes: int
    quality: Fidelity
    skipped: Mapping[str, str] = field(default_factory=dict)


def convert_model_to_projective(
    model: nn.Module,
    use_codec: bool | None = None,
    *,
    skip: Collection[str] = (),
    cache: CachePolicy = "lru",
    floor: float = FLOOR,
) -> nn.Module:
    """`model` with its `nn.Linear` layers replaced by `QINSLinear`, and the report as its attribute `qins_report`.

    Embeddings, norms, layers with a forward of their own, tied weights and what QINS refuses for its equal magnitudes
    stay as they are and are listed. A layer that stands in several places is converted once. Returns `model` itself,
    or its replacement where it is a linear layer.

    Args:
        model: changed in place, at the very end, or not at all.
        use_codec: False takes the legacy `ProjectiveLinear`; None reads the variable QINS_CODEC_AT_REST.
        skip: names of layers that stay.
        cache: of the new layers.
        floor: of `QINSCodec.encode`; 0 keeps the relative error of each weight, however small, within QN-5's bound.

    Raises:
        ValueError: a weight holds NaN or Inf or is float64; the variable is neither 0 nor 1; `skip` names no linear layer;
            the floor is not within 0 to 0.1.
    """
    at_rest = codec_at_rest() if use_codec is None else use_codec
    kind = QINSLinear if at_rest else ProjectiveLinear
    layers = linear_layers(model)
    if unknown := sorted(set(skip) - {name for names in layers.values() for name in names}):
        raise ValueError(f"skip names {unknown[0]!r}, which is no linear layer of the model; write one of its names")
    skipped = _skipped(model, layers, skip)
    new: dict[nn.Linear, QINSLinear] = {
        layer: kind.from_linear(layer, name=f"{names[0]}.weight" if names[0] else "weight", cache=cache, floor=floor)
        for layer, names in layers.items()
        if names[0] not in skipped
    }
    quality = fidelity((layer.weight, coded.weight) for layer, coded in new.items())
    for coded in new.values():
        coded.invalidate_cache()
    names, before = tuple(layers[layer][0] for layer in new), stored_bytes(model)
    converted = _swapped(model, new)
    mode: Mode = "at-rest" if at_rest else "legacy"
    decoded = 0 if cache == "none" else sum(4 * coded.stored.numel() for coded in new.values())
    cached = min(decoded, recently_used.limit_bytes) if cache == "lru" else decoded
    report = ConversionReport(mode, names, before, stored_bytes(converted), cache, cached, quality, skipped)
    converted.qins_report = report  # type: ignore[assignment]
    return converted


def report_of(model: nn.Module) -> ConversionReport:
    """The report that a conversion attached to `model`. Raises ValueError where there was none."""
    report = getattr(model, "qins_report", None)
    if not isinstance(report, ConversionReport):
        raise ValueError("this model was not converted; call convert_model_to_projective(model) first")
    return report


def codec_at_rest() -> bool:
    """What QINS_CODEC_AT_REST says. Raises ValueError for another value than 0 or 1."""
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{VARIABLE} is {value!r}; write 1 to decode before computing, or 0 for the legacy layers")
    return value == "1"


def linear_layers(model: nn.Module) -> dict[nn.Linear, list[str]]:
    """The linear layers of `model`, each with every name that it has there."""
    found: dict[nn.Linear, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            found.setdefault(module, []).append(name)
    return found


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of `model`; what is shared counts once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def _skipped(model: nn.Module, layers: Mapping[nn.Linear, list[str]], skip: Collection[str]) -> dict[str, str]:
    owners = _owners(model)
    reasons = ((names[0], _reason(model, layer, names, owners, skip)) for layer, names in layers.items())
    return {name: reason for name, reason in reasons if reason is not None}


def _reason(
    model: nn.Module, layer: nn.Linear, names: list[str], owners: Mapping[int, list[str]], skip: Collection[str]
) -> str | None:
    """Why `layer` stays a float layer, or None."""
    if not set(names).isdisjoint(skip):
        return "it is in the skip list"
    parents = [model.get_submodule(name.rpartition(".")[0]) for name in names if name]
    if any(isinstance(parent, nn.MultiheadAttention) for parent in parents):
        return "nn.MultiheadAttention reads its weight without calling it"
    if type(layer).forward is not nn.Linear.forward and getattr(layer, "fake_quant", True):
        return f"{type(layer).__name__} computes otherwise than nn.Linear (where it fake-quantizes, turn that off first)"
    others = [owner for owner in owners[id(layer.weight)] if owner.rpartition(".")[0] not in names]
    if others:
        return f"its weight is tied to {others[0]}"
    magnitudes = layer.weight.detach().abs()
    if magnitudes.numel() and bool(torch.isfinite(magnitudes).all()) and magnitudes.min() == magnitudes.max():
        return "all magnitudes of its weight are equal, which QINS cannot encode"
    return None


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Every name of every parameter, by its id."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return owners


def _swapped(model: nn.Module, new: Mapping[nn.Linear, QINSLinear]) -> nn.Module:
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, nn.Linear) and child in new:
                module._modules[name] = new[child]
    return new.get(model, model) if isinstance(model, nn.Linear) else model
