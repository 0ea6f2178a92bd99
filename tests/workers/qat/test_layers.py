"""QS-16, QS-18 and QS-23: layers with switches of their own, and how many bits they have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from workers.qat.errors import QuantizationError
from workers.qat.fake_quant import fake_quantize
from workers.qat.layers import (
    QuantActivation,
    QuantConv2d,
    QuantLinear,
    first_layer,
    quantized_names,
    set_bits,
    set_fake_quant,
    set_first_layer,
    set_switches,
    set_weight_bits,
)
from workers.qat.observers import RangeObserver
from workers.qat.scales import weight_scale
from workers.qat.state_quant import StateQuantizer


def committed(activation: QuantActivation, x: Tensor) -> None:
    """A step of one rank that sees `x`."""
    activation.observer.seen.fill_(-float("inf"))
    activation(x)
    activation.observer.take(activation.observer.seen)


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("kind", [QuantLinear, QuantConv2d])
def test_qs18_fake_quantization_changes_weights(kind: type[QuantLinear] | type[QuantConv2d], bits: int) -> None:
    torch.manual_seed(0)
    layer: QuantLinear | QuantConv2d
    plain: nn.Linear | nn.Conv2d
    if kind is QuantLinear:
        layer, plain, x = QuantLinear(6, 4, bits=bits), nn.Linear(6, 4), torch.randn(3, 6)
    else:
        layer, plain, x = QuantConv2d(3, 4, 3, padding=1, bits=bits), nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 5, 5)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))
    layer.fake_quant = True
    assert not torch.allclose(layer(x), plain(x))
    with torch.no_grad():
        plain.weight.copy_(fake_quantize(plain.weight, weight_scale(plain.weight, bits), bits))
    assert torch.equal(layer(x), plain(x))


def test_qs18_fake_quantization_changes_currents() -> None:
    activation, x = QuantActivation(8, fake_quant=True), torch.randn(5, 4, 3)
    committed(activation, x)
    assert not torch.equal(activation(x), x)
    assert torch.equal(activation(x), fake_quantize(x, x.abs().max() / 127, 8))
    assert float((activation(x) - x).abs().max()) <= 0.5001 * float(activation.scale())


def test_qs17_an_activation_acts_from_the_step_after_its_first_update() -> None:
    activation, x = QuantActivation(4, fake_quant=True), torch.randn(20)
    assert activation(x) is x
    activation.observer.take(activation.observer.seen)
    assert activation(x) is not x


def test_qs18_observer_and_fake_quantization_have_separate_switches() -> None:
    activation, x = QuantActivation(8), torch.randn(20)
    committed(activation, x)
    assert activation(x) is x and activation.observer.ready
    activation.fake_quant, activation.observer.observing = True, False
    before = activation.observer.low.clone()
    committed(activation, 10 * x)
    assert torch.equal(activation.observer.low, before)
    assert not torch.equal(activation(x), x)


def test_qs18_evaluation_mode_switches_nothing() -> None:
    activation = QuantActivation(8, fake_quant=True).eval()
    committed(activation, torch.randn(20))
    assert activation.observer.ready and activation.fake_quant and activation.observer.observing


def test_qs18_an_activation_has_an_observer_of_its_own() -> None:
    assert QuantActivation().observer is not QuantActivation().observer


def test_qs17_the_scale_is_of_what_was_committed_before() -> None:
    activation = QuantActivation(8, fake_quant=True)
    committed(activation, torch.tensor([-1.0, 1.27]))
    assert torch.allclose(activation(torch.tensor([0.014, 5.0])), torch.tensor([0.01, 1.27]))


def test_the_switches_reach_everything_and_each_its_own() -> None:
    model = nn.Sequential(QuantLinear(2, 2), QuantActivation(), StateQuantizer(8), nn.Sequential(QuantConv2d(1, 1, 1)))
    parts = list(model.modules())
    for chosen in range(4):
        on = [number == chosen for number in range(4)]
        set_switches(model, weights=on[0], activations=on[1], state=on[2], observing=on[3])
        assert [m.fake_quant for m in parts if isinstance(m, QuantLinear | QuantConv2d)] == [on[0], on[0]]
        assert [m.fake_quant for m in parts if isinstance(m, QuantActivation)] == [on[1]]
        assert [m.fake_quant for m in parts if isinstance(m, StateQuantizer)] == [on[2]]
        assert [m.observing for m in parts if isinstance(m, RangeObserver)] == [on[3]]
    set_fake_quant(model, True)
    assert [m.fake_quant for m in parts if isinstance(m, QuantLinear | QuantConv2d)] == [True, True]


def test_qs16_one_scale_for_all_serves_512_outputs() -> None:
    torch.manual_seed(1)
    layer = QuantLinear(3, 512, per_channel=False, fake_quant=True)
    assert layer.quantizer.scale(layer.weight).shape == (1, 1)
    with pytest.raises(ValueError, match="513 outputs needs one scale for each"):
        QuantLinear(3, 513, per_channel=False)


@pytest.mark.parametrize("bits", [4, 2])
def test_qs15_a_learned_step_starts_where_the_search_ends_and_learns(bits: int) -> None:
    torch.manual_seed(1)
    learning = QuantLinear(50, 4, bits=bits, learned_step=True, fake_quant=True)
    searched = QuantLinear(50, 4, bits=bits, fake_quant=True)
    searched.load_state_dict(learning.state_dict(), strict=False)
    x = torch.randn(3, 50)
    assert torch.equal(learning(x), searched(x))
    learning(x).square().sum().backward()
    assert learning.quantizer.step is not None
    gradient = learning.quantizer.step.multiplier.grad
    assert gradient is not None and float(gradient.abs()) > 0
    with torch.no_grad():
        learning.quantizer.step.multiplier.fill_(0.5)
    assert torch.allclose(learning.quantizer.scale(learning.weight), 0.5 * searched.quantizer.scale(searched.weight))


def test_qs15_a_learned_step_of_an_activation_learns_alike_however_a_batch_is_cut() -> None:
    x = torch.randn(8, 5, dtype=torch.float64)
    gradients = []
    for cut in (1, 4):
        activation = QuantActivation(4, learned_step=True, fake_quant=True)
        committed(activation, x)
        for shard in x.tensor_split(cut):
            activation(shard).square().sum().backward()
        assert activation.step is not None and activation.step.multiplier.grad is not None
        gradients.append(float(activation.step.multiplier.grad))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5) and gradients[0] != 0.0


def test_qs15_the_convention_of_torch_makes_finer_steps() -> None:
    activation = QuantActivation(8, scale_convention="torch")
    committed(activation, torch.tensor([-8.0, 8.0]))
    assert float(activation.scale()) == pytest.approx(8 / 127.5)


def test_qs23_weights_carry_over_to_fewer_bits() -> None:
    torch.manual_seed(0)
    layer, activation = QuantLinear(9, 7, fake_quant=True), QuantActivation()
    model = nn.Sequential(layer, activation)
    weight, results = layer.weight.clone(), []
    x = torch.randn(4, 9)
    for bits in (8, 4, 2):
        set_bits(model, {"0": bits})
        results.append((model(x) - nn.functional.linear(x, weight, layer.bias)).abs().mean())
        assert torch.equal(layer.weight, weight)
    assert results[0] < results[1] < results[2]
    assert quantized_names(model) == ["0", "1"] and activation.bits == 8


def test_bits_of_what_is_not_there_are_refused() -> None:
    model = nn.Sequential(QuantLinear(2, 2), nn.Linear(2, 2))
    with pytest.raises(QuantizationError, match="'1' has no bits to set: name one of 0"):
        set_bits(model, {"1": 4})
    with pytest.raises(ValueError, match="8, 6, 4 or 2 bits, not 3"):
        set_bits(model, {"0": 3})
    with pytest.raises(ValueError, match="8, 6, 4 or 2 bits, not 5"):
        QuantLinear(2, 2, bits=5)
    with pytest.raises(ValueError, match="8, 6, 4 or 2 bits, not 5"):
        QuantActivation(5)


def linear() -> QuantLinear:
    return QuantLinear(2, 2)


ORDERS: dict[str, tuple[list[nn.Module], list[int]]] = {
    "currents": ([linear(), QuantActivation(), linear(), QuantActivation()], [0, 1]),
    "inputs": ([QuantActivation(), linear(), QuantActivation(), linear(), QuantActivation(), linear()], [0, 1]),
    "apart": ([linear(), nn.ReLU(), QuantActivation(), linear(), linear(), QuantActivation()], [0, 2]),
    "the only activation": ([linear(), QuantActivation(), linear()], [0]),
    "no activation": ([linear(), nn.ReLU(), linear()], [0]),
    "the only layer": ([QuantActivation(), linear(), QuantActivation()], []),
    "no layer": ([QuantActivation(), nn.ReLU()], []),
}


@pytest.mark.parametrize("order", ORDERS)
def test_ta19_a_first_layer_in_full_precision_is_out_of_reach_of_the_switches(order: str) -> None:
    """With what stands around it, and never all there is."""
    modules, numbers = ORDERS[order]
    model = nn.Sequential(*modules)
    expected = [modules[number] for number in numbers]
    assert sorted(map(id, first_layer(model))) == sorted(map(id, expected))
    parts = [module for module in modules if isinstance(module, QuantLinear | QuantActivation)]
    for fp32 in (True, False):
        set_first_layer(model, fp32=fp32)
        set_switches(model, weights=True, activations=True, state=True, observing=True)
        set_fake_quant(model, True)
        assert [part.fake_quant for part in parts] == [not (fp32 and part in expected) for part in parts]
        set_switches(model, weights=False, activations=False, state=False, observing=False)
        assert not any(part.fake_quant for part in parts)


def test_qs23_all_weights_of_a_model_get_fewer_bits_at_once() -> None:
    torch.manual_seed(0)
    layer = QuantLinear(6, 4, bits=8, fake_quant=True)
    model, weight = nn.Sequential(layer, QuantActivation(8)), layer.weight.detach().clone()
    for bits in (8, 4, 2):
        set_weight_bits(model, bits)
        assert layer.quantizer.bits == bits and torch.equal(layer.weight, weight)
        assert torch.equal(layer.quantizer(layer.weight), fake_quantize(weight, weight_scale(weight, bits), bits))
    assert model[1].bits == 8
