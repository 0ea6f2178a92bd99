"""The converted model stores integers, weighs what it says, and computes what training has seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from workers.observing import StepObserver
from workers.qat.artifact import FORMAT, load_converted, save_converted
from workers.qat.convert import (
    IntegerConv2d,
    IntegerLinear,
    blank,
    convert,
    describe,
    fp32_bytes,
    packed_bytes,
    ratio,
    unquantized,
)
from workers.qat.errors import QuantizationError
from workers.qat.layers import QuantActivation, QuantConv2d, QuantLinear, set_first_layer, set_switches
from workers.qat.packing import packed_columns
from workers.qat.ptq import calibrate
from workers.qat.state_quant import StateQuantizer

BITS = [8, 6, 4, 2]


def network(bits: int, activation_bits: int = 8) -> nn.Sequential:
    """A convolution and two linear layers, each with its activation, calibrated; fake-quantization is on."""
    torch.manual_seed(2)
    layers = [QuantConv2d(1, 3, 3, padding=1, bits=bits), QuantActivation(activation_bits), nn.ReLU(), nn.Flatten()]
    layers += [QuantLinear(48, 31, bits=bits), QuantActivation(activation_bits), nn.ReLU(), QuantLinear(31, 10, bits=bits)]
    model = nn.Sequential(*layers)
    calibrate(model, [torch.randn(8, 1, 4, 4) for _ in range(3)])
    return model


@pytest.mark.parametrize("learned_step", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_the_converted_forward_is_the_fake_quantized_forward_bit_for_bit(bits: int, learned_step: bool) -> None:
    model = network(bits, max(bits, 4))
    if learned_step:
        model[4] = layer = QuantLinear(48, 31, bits=bits, learned_step=True, fake_quant=True)
        assert layer.quantizer.step is not None
        nn.init.constant_(layer.quantizer.step.multiplier, 0.9)
    x = torch.randn(64, 1, 4, 4)
    with torch.no_grad():
        quantized = model(x)
        assert torch.equal(convert(model)(x), quantized)
        set_switches(model, weights=False, activations=False, state=False, observing=False)
        assert not torch.allclose(model(x), quantized, atol=1e-4)


@pytest.mark.parametrize(
    ("bits", "dtype", "columns"), [(8, torch.int8, 48), (6, torch.uint8, 36), (4, torch.uint8, 24), (2, torch.uint8, 12)]
)
def test_qs20_weights_are_stored_as_packed_integers_only(bits: int, dtype: torch.dtype, columns: int) -> None:
    model = network(bits)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    converted = convert(model)
    linear, conv = converted[4], converted[0]  # type: ignore[index]
    assert isinstance(linear, IntegerLinear) and isinstance(conv, IntegerConv2d)
    assert not list(converted.parameters()) and not converted.training
    assert linear.codes.dtype == dtype and linear.codes.shape == (31, columns) and linear.scale.shape == (31,)
    assert not any(isinstance(module, StepObserver) for module in converted.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_qs24_bits_change_the_stored_codes() -> None:
    codes = [convert(network(bits))[4].codes for bits in BITS]  # type: ignore[index]
    assert len({tensor.numpy().tobytes() for tensor in codes}) == 4


def test_the_forward_uses_the_integers() -> None:
    last = convert(network(8))[7]  # type: ignore[index]
    last.codes.zero_()
    assert torch.equal(last(torch.randn(5, 31)), last.bias.expand(5, -1))


@pytest.mark.parametrize(
    ("bits", "size", "least"), [(8, 802_080, 3.9), (6, 603_580, 5.2), (4, 405_080, 7.8), (2, 206_580, 15)]
)
def test_qs20_the_preset_weighs_what_its_bits_allow(bits: int, size: int, least: float) -> None:
    model = nn.Sequential(QuantLinear(784, 1000, bits=bits), nn.ReLU(), QuantLinear(1000, 10, bits=bits))
    converted = convert(model)
    assert fp32_bytes(model) == 4 * 795_010
    assert packed_bytes(converted) == size
    assert least <= ratio(model, converted) < 32 / bits


def test_bytes_leave_out_what_only_training_has() -> None:
    plain = nn.Sequential(QuantLinear(6, 5))
    trained = nn.Sequential(QuantLinear(6, 5, learned_step=True), QuantActivation(learned_step=True))
    assert fp32_bytes(trained) == fp32_bytes(plain) == packed_bytes(plain) == 4 * 35


def test_what_is_shared_stays_shared_and_counts_once() -> None:
    layer = QuantLinear(6, 6)
    converted = convert(nn.Sequential(layer, nn.ReLU(), layer))
    assert converted[0] is converted[2]  # type: ignore[index]
    assert packed_bytes(converted) == packed_bytes(convert(nn.Sequential(layer)))


def test_layers_without_quantizer_are_copied_and_listed() -> None:
    model = nn.Sequential(QuantLinear(4, 4, bias=False, fake_quant=True), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2)))
    converted = convert(model)
    x = torch.randn(3, 4)
    assert torch.equal(converted(x), model.eval()(x))
    assert converted[1] is not model[1]  # type: ignore[index]
    assert unquantized(model) == ["2.0.weight"]


def test_activations_and_state_can_be_left_as_they_are() -> None:
    model = nn.Sequential(QuantLinear(4, 4), QuantActivation(), StateQuantizer(4))
    converted = convert(model, activations=False, state=False)
    assert isinstance(converted[1], nn.Identity) and not converted[2].fake_quant  # type: ignore[index]
    assert list(describe(converted)) == ["0"]


@pytest.mark.parametrize("bits", BITS)
def test_qs29_a_reload_is_bit_identical(bits: int, tmp_path: Path) -> None:
    model, x = network(bits), torch.randn(16, 1, 4, 4)
    converted, empty = convert(model), blank(network_of_other_weights(bits))
    assert not torch.equal(empty(x), converted(x))
    save_file(converted.state_dict(), tmp_path / "state.safetensors")
    empty.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(empty(x), converted(x))
    again = blank(network_of_other_weights(bits))
    again.load_state_dict(converted.state_dict())
    assert torch.equal(again(x), converted(x))


def network_of_other_weights(bits: int) -> nn.Sequential:
    model = network(bits)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def test_qs15_a_file_says_its_bits_and_convention_and_comes_back(tmp_path: Path) -> None:
    model, x = network(4), torch.randn(16, 1, 4, 4)
    model.append(QuantActivation(scale_convention="torch"))
    calibrate(model, [x])
    converted = convert(model)
    save_converted(converted, tmp_path / "model.safetensors")
    assert describe(converted)["8"] == {"bits": 8, "scale_convention": "torch", "kind": "activation", "shape": []}
    loaded = load_converted(blank(model), tmp_path / "model.safetensors")
    assert torch.equal(loaded(x), converted(x))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_equal_models_are_equal_bytes(tmp_path: Path) -> None:
    for number in range(8):
        save_converted(convert(network(8)), tmp_path / str(number))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1


def test_what_is_shared_stands_in_a_file_once_and_comes_back(tmp_path: Path) -> None:
    layer, x = QuantLinear(6, 6), torch.randn(2, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    save_converted(convert(model), tmp_path / "model")
    other = QuantLinear(6, 6)
    loaded = load_converted(blank(nn.Sequential(other, nn.ReLU(), other)), tmp_path / "model")
    assert torch.equal(loaded(x), convert(model)(x)) and loaded[0] is loaded[2]  # type: ignore[index]


def test_a_file_of_another_model_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    save_converted(convert(network(4)), tmp_path / "four")
    save_file({"x": torch.ones(1)}, tmp_path / "foreign")
    save_converted(convert(network(8, 6)), tmp_path / "six")
    whole = convert(network(8))
    parts = {FORMAT: json.dumps(describe(whole), sort_keys=True)}
    some = {name: tensor for name, tensor in whole.state_dict().items() if name != "4.scale"}
    save_file(some, tmp_path / "short", parts)
    save_file(some | {"x": torch.ones(1)}, tmp_path / "long", parts)
    (tmp_path / "torn").write_bytes((tmp_path / "four").read_bytes()[:100])
    model = convert(network(8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, words in [
        ("four", "other layers or bits"),
        ("six", "other layers or bits"),
        ("short", "other layers or bits"),
        ("long", "other layers or bits"),
        ("foreign", "no converted model"),
        ("torn", "cannot be read"),
        ("none", "cannot be read"),
    ]:
        with pytest.raises(QuantizationError, match=words):
            load_converted(model, tmp_path / name)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_converted_is_refused_in_one_sentence() -> None:
    with pytest.raises(QuantizationError, match="no layer to convert"):
        convert(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(QuantizationError, match="the activations 1 have never been observed"):
        convert(nn.Sequential(QuantLinear(2, 2), QuantActivation()))
    layer = QuantLinear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(QuantizationError, match="the weights of 0 are not finite"):
        convert(nn.Sequential(layer))
    reflecting = QuantConv2d(1, 1, 3)
    reflecting.padding_mode = "reflect"
    with pytest.raises(QuantizationError, match="padding_mode 'reflect'"):
        convert(nn.Sequential(reflecting))


@pytest.mark.parametrize("bits", BITS)
def test_ta19_a_first_layer_in_full_precision_is_left_so_and_counted_so(bits: int, tmp_path: Path) -> None:
    model, x = network(bits), torch.randn(16, 1, 4, 4)
    small = packed_bytes(convert(model))
    set_first_layer(model, fp32=True)
    set_switches(model, weights=True, activations=True, state=True, observing=False)
    converted = convert(model)
    with torch.no_grad():
        assert torch.equal(converted(x), model(x))
    first, activation = converted[0], converted[1]  # type: ignore[index]
    assert type(first) is nn.Conv2d and type(activation) is nn.Identity and first.padding == (1, 1)
    assert torch.equal(first.weight, model[0].weight) and unquantized(model) == ["0.weight"]  # type: ignore[arg-type]
    assert set(describe(converted)) == {"4", "5", "7"}
    rows, columns = 3, 9  # scales, and that of the activation, are not needed
    assert packed_bytes(converted) - small == 4 * rows * columns - rows * packed_columns(columns, bits) - 4 * rows - 4
    path = tmp_path / "model.safetensors"
    save_converted(converted, path)
    with torch.no_grad():
        assert torch.equal(load_converted(blank(model), path)(x), converted(x))
    with pytest.raises(QuantizationError, match="of other layers or bits"):
        load_converted(blank(network(bits)), path)


def test_ta19_with_nothing_else_to_quantize_there_is_nothing_to_convert() -> None:
    model = nn.Sequential(QuantLinear(4, 3), nn.ReLU())
    model[0].fp32 = True  # type: ignore[assignment]
    with pytest.raises(QuantizationError, match="has no layer to convert"):
        convert(model)


def test_ta19_a_linear_layer_without_a_bias_is_left_as_it_is() -> None:
    model = nn.Sequential(QuantLinear(4, 3, bias=False), nn.ReLU(), QuantLinear(3, 2))
    set_first_layer(model, fp32=True)
    first = convert(model)[0]  # type: ignore[index]
    assert type(first) is nn.Linear and first.bias is None and torch.equal(first.weight, model[0].weight)
