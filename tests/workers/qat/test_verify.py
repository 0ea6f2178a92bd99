"""QS-29 as measurements: each of them finds what is planted, and nothing in a sound model."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from workers.qat.convert import convert
from workers.qat.layers import QuantActivation, QuantLinear, set_first_layer, set_switches
from workers.qat.ptq import calibrate
from workers.qat.state_quant import StateQuantizer
from workers.qat.verify import (
    accuracy_drop,
    acting,
    activity,
    differences,
    misplaced,
    noise,
    not_finite,
    quantizers,
    scale_error,
    sqnr,
)
from workers.spiking.lif import LIF
from workers.spiking.networks import SpikingMLP


def spiking(bits: int = 8, activation_bits: int = 8) -> tuple[SpikingMLP, Tensor]:
    """A calibrated spiking network with all quantizers, and spikes [T, B, 12] for it."""
    torch.manual_seed(5)
    model = SpikingMLP(
        (12, 20, 4),
        make_linear=lambda inputs, outputs: QuantLinear(inputs, outputs, bits=bits),
        wrap_current=lambda name: QuantActivation(activation_bits),
        make_lif=lambda: LIF(state_quant=StateQuantizer(8)),
        weight_std=0.3,
    )
    spikes = (torch.rand(10, 6, 12) < 0.3).float()
    calibrate(model, [spikes] * 3)
    return model, spikes


ALL_ACT = {"weights_changed": 2, "activations_changed": 2, "spikes_quantized": 0}


def test_qs29_a_sound_model_measures_as_such() -> None:
    model, spikes = spiking()
    assert quantizers(model) == {
        "layers": 2,
        "activations": 2,
        "weight_quantizers": 2,
        "activation_quantizers": 2,
        "misplaced_quantizers": 0,
        "zero_point": 0,
        "observing": 0,
        "blind_observers": 0,
    }
    assert acting(activity(model, lambda: model(spikes))) == ALL_ACT
    converted = convert(model)
    assert max(scale_error(model, converted).values()) <= 1e-6
    assert misplaced(converted) == []
    assert torch.equal(converted(spikes).logits, model(spikes).logits)


def test_qs33_quantizers_that_are_off_or_blind_are_counted_as_such() -> None:
    model, spikes = spiking()
    set_switches(model, weights=False, activations=False, state=False, observing=True)
    found = quantizers(model)
    assert (found["layers"], found["weight_quantizers"], found["observing"]) == (2, 0, 2)
    assert (found["activations"], found["activation_quantizers"]) == (2, 0)
    nothing = dict.fromkeys(ALL_ACT, 0)
    assert acting(activity(model, lambda: model(spikes))) == nothing
    model.layers[0].current.observer.restart()  # type: ignore[union-attr, operator]
    assert quantizers(model)["blind_observers"] == 1


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("learned", [False, True])
def test_qs29_scales_are_held_against_each_observers_own_range(bits: int, learned: bool) -> None:
    model = nn.Sequential(
        QuantLinear(30, 8, bits=bits, learned_step=learned),
        QuantActivation(bits, learned_step=learned, scale_convention="torch"),
        QuantLinear(8, 3, bits=bits, per_channel=False),
        QuantActivation(bits),
    )
    calibrate(model, [torch.randn(20, 30)])
    converted = convert(model)
    errors = scale_error(model, converted)
    assert set(errors) == {"0", "1", "2", "3"} and max(errors.values()) <= 1e-6
    converted[1].scale.mul_(1.01)  # type: ignore[index]
    converted[2].scale.fill_(math.nan)  # type: ignore[index]
    errors = scale_error(model, converted)
    assert errors["1"] == pytest.approx(0.01, rel=1e-3) and errors["2"] == math.inf
    assert scale_error(model, nn.Sequential())["0"] == math.inf


def test_qs29_a_scale_of_another_range_is_found() -> None:
    model, _ = spiking()
    converted = convert(model)
    model.layers[0].current.observer.take(torch.tensor([50.0, 50.0]))  # type: ignore[union-attr, operator]
    errors = scale_error(model, converted)
    assert errors["layers.0.current"] > 1e-3 and errors["layers.1.current"] <= 1e-6


def test_qs29_a_quantizer_inside_a_neuron_or_a_loss_is_misplaced() -> None:
    model, _ = spiking()
    neurons = model.layers[1].neurons
    neurons.reset_quantizer = QuantActivation()  # type: ignore[union-attr]
    loss = nn.CrossEntropyLoss()
    loss.quantizer = QuantActivation()
    assert misplaced(nn.Sequential(model, loss)) == ["0.layers.1.neurons.reset_quantizer", "1.quantizer"]
    assert quantizers(model)["misplaced_quantizers"] == 1


def test_qs18_a_quantizer_counts_as_acting_by_what_it_did_in_the_forward_pass() -> None:
    """Not by what it could do: one that is switched off, passed by or left out changes nothing."""
    model, spikes = spiking()
    first, second = model.layers
    first.linear.fake_quant = False  # type: ignore[union-attr]
    assert acting(activity(model, lambda: model(spikes))) == {**ALL_ACT, "weights_changed": 1}
    second.current.forward = lambda x: x  # type: ignore[union-attr]
    found = acting(activity(model, lambda: model(spikes)))
    assert found == {**ALL_ACT, "weights_changed": 1, "activations_changed": 1}


def test_ta19_of_a_layer_in_full_precision_nothing_is_asked() -> None:
    model, spikes = spiking()
    set_first_layer(model, fp32=True)
    set_switches(model, weights=True, activations=True, state=True, observing=False)
    found = quantizers(model)
    assert [found[key] for key in ("layers", "activations", "weight_quantizers", "activation_quantizers")] == [1, 1, 1, 1]
    assert acting(activity(model, lambda: model(spikes))) == {**ALL_ACT, "weights_changed": 1, "activations_changed": 1}
    errors = scale_error(model, convert(model))
    assert set(errors) == {"layers.1.linear", "layers.1.current"} and max(errors.values()) <= 1e-6


def test_qs39_the_ranks_find_between_them_what_one_finds_and_some_may_have_no_samples() -> None:
    """Each quantizer is seen to act by another rank: the counts of neither are those of both."""
    model = nn.ModuleList([QuantActivation(), QuantActivation(), QuantActivation()])
    for activation in model:
        activation.observer.take(torch.tensor([1.0, 1.0]))  # type: ignore[operator]
    set_switches(model, weights=True, activations=True, state=True, observing=False)
    shares = [torch.tensor([[0.3, 0.0, 1.0]]), torch.tensor([[0.0, 0.4, 0.0]]), torch.empty(0, 3)]

    def run(*pieces: Tensor) -> None:
        for piece in pieces:
            for activation, column in zip(model, piece.unbind(dim=1), strict=True):
                activation(column)

    def look(*pieces: Tensor) -> dict[str, float]:
        return activity(model, partial(run, *pieces))

    ranks = [look(share) for share in shares]
    assert [acting(rank)["activations_changed"] for rank in ranks] == [1, 1, 0]
    reduced = {key: max(rank[key] for rank in ranks) for key in ranks[0]}
    assert reduced == look(*shares) == look(torch.cat(shares))
    assert acting(reduced) == {"weights_changed": 0, "activations_changed": 2, "spikes_quantized": 1}


def test_qs29_a_quantizer_on_spikes_is_found_by_what_it_meets() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif, self.quantizer, self.current = LIF(), QuantActivation(), QuantActivation()

        def forward(self, currents: Tensor) -> Tensor:
            result: Tensor = self.quantizer(self.lif(self.current(currents)).spikes)
            return result

    model, currents = Wrong(), torch.rand(10, 3, 4)
    assert acting(activity(model, lambda: model(currents)))["spikes_quantized"] == 1
    silent = activity(model, lambda: model(torch.zeros(10, 3, 4)))
    assert acting(silent)["spikes_quantized"] == 0  # nothing fires: no spikes


def test_qs29_accuracy_drop_is_of_sums_over_ranks() -> None:
    assert accuracy_drop({"correct": 98, "count": 100}, {"correct": 194, "count": 200}) == pytest.approx(0.01)


def test_qs29_what_is_not_finite_and_what_differs_is_counted() -> None:
    assert not_finite(torch.tensor([1.0, math.nan]), torch.tensor([[math.inf]]), torch.ones(3)) == 2
    x = torch.tensor([1.0, math.nan, 0.0])
    assert differences(x, x.clone()) == 0
    assert differences(x, torch.tensor([1.0, math.nan, -0.0])) == 1
    assert differences(x, torch.tensor([2.0, math.nan, 1.0])) == 2


@pytest.mark.parametrize(("bits", "least", "most"), [(8, 30.0, 50.0), (4, 12.0, 25.0)])
def test_qs39_the_signal_to_noise_ratio_is_of_sums_over_ranks(bits: int, least: float, most: float) -> None:
    model = nn.Sequential(QuantLinear(9, 9), QuantActivation(bits))
    x = torch.randn(400, 9)
    calibrate(model, [x])
    alone = noise(model, lambda: model(x))
    parts = [noise(model, lambda part=part: model(part)) for part in x.tensor_split(3)]  # type: ignore[misc]
    assert {key: sum(part[key] for part in parts) for key in alone} == pytest.approx(alone, rel=1e-6)
    assert least < sqnr(alone, "1") < most
    assert sqnr({"signal.a": 1.0, "noise.a": 0.001}, "a") == pytest.approx(30.0, abs=1e-6)
    assert sqnr({"signal.a": 1.0, "noise.a": 0.0}, "a") == math.inf
    assert sqnr({"signal.a": 0.0, "noise.a": 1.0}, "a") == -math.inf
