"""Post-training quantization: observers on a trained model, calibration, conversion (QS-24)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from typing import Literal

import torch
from torch import Tensor, nn

from workers.observing import Observers
from workers.qat.convert import convert
from workers.qat.errors import QuantizationError
from workers.qat.layers import QuantActivation, QuantConv2d, QuantLinear, set_switches, set_weight_bits
from workers.qat.observers import range_observers
from workers.qat.replace import replaced

BATCHES = 64


def attach(
    model: nn.Module, bits: int = 8, activation_bits: int = 8, *, where: Literal["output", "input"] = "output"
) -> nn.Module:
    """A copy of `model` whose `nn.Linear` and `nn.Conv2d` are quantized layers, each with a quantizer for activations.

    Subclasses of these two are left alone. What was shared stays shared; a root that is one of them is replaced too.

    Args:
        bits, activation_bits: of weights and of activations.
        where: the activation is a layer's `output`, a spiking layer's currents, or its `input`.

    Raises:
        ValueError: bits that do not exist.
    """

    def make(module: nn.Module) -> nn.Module | None:
        layer = _quantized(module, bits)
        if layer is None:
            return None
        activation = QuantActivation(activation_bits)
        return nn.Sequential(layer, activation) if where == "output" else nn.Sequential(activation, layer)

    return replaced(model, make)


def _quantized(module: nn.Module, bits: int) -> nn.Module | None:
    """The quantized layer with the weights of `module`, where there is one for it."""
    layer: QuantLinear | QuantConv2d
    if type(module) is nn.Linear:
        layer = QuantLinear(module.in_features, module.out_features, bits=bits)
    elif type(module) is nn.Conv2d and module.padding_mode == "zeros":
        kernel, padding = (module.kernel_size[0], module.kernel_size[1]), module.padding
        shape = (module.stride, padding, module.dilation, module.groups)
        layer = QuantConv2d(module.in_channels, module.out_channels, kernel, *shape, bits=bits)  # type: ignore[arg-type]
    else:
        return None
    layer.weight, layer.bias = module.weight, module.bias
    return layer.train(module.training)


def start_calibration(model: nn.Module) -> None:
    """Let all observers begin anew, as calibration wants it, with fake-quantization off. Between two steps, on every rank.

    Raises:
        QuantizationError: there are no observers.
    """
    if not range_observers(model):
        raise QuantizationError(
            "the model has no observers to calibrate: build it with QuantActivation, or call attach(model)"
        )
    set_switches(model, weights=False, activations=False, state=False, observing=True)
    for observer in range_observers(model).values():
        observer.restart(calibrating=True)


def end_calibration(model: nn.Module) -> None:
    """Freeze all observers and turn all fake-quantization on."""
    for observer in range_observers(model).values():
        observer.calibrating.fill_(False)
    set_switches(model, weights=True, activations=True, state=True, observing=False)


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor], num_batches: int = BATCHES) -> int:
    """Run up to `num_batches` batches of training inputs through `model`, in evaluation mode, in this process alone.

    A gang calibrates through its steps instead: `start_calibration`, the batches, `end_calibration`.

    Returns:
        How many batches there were.

    Raises:
        QuantizationError: no observers, or no batch.
    """
    chosen = iter(islice(batches, num_batches))
    first = next(chosen, None)
    if first is None:
        raise QuantizationError("calibration got no batch: give it batches of the training data")
    start_calibration(model)
    observers, training, count = Observers(model), model.training, 0
    model.eval()
    for batch in chain([first], chosen):
        observers.forget()
        model(batch)
        observers.take(observers.seen())
        count += 1
    model.train(training)
    end_calibration(model)
    return count


def quantize_after_training(
    model: nn.Module, batches: Iterable[Tensor], *, bits: int | None = None, num_batches: int = BATCHES
) -> nn.Module:
    """Calibrate and convert; `model` is left calibrated, with observers frozen and fake-quantization on.

    Args:
        model: with observers, see `attach`.
        bits: of the weights; else as the layers have them.

    Raises:
        QuantizationError: no observers, no batch, or what `convert` raises.
    """
    if bits is not None:
        set_weight_bits(model, bits)
    calibrate(model, batches, num_batches)
    return convert(model)


def file_name(bits: int) -> str:
    """What the export of a model of `bits`-bit weights is called."""
    return f"quantarion_snn_{bits}bit_ptq.safetensors"
