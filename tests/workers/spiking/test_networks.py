"""Presets, what is injected into a network, how it is read, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workers.spiking.lif import LIF
from workers.spiking.losses import SpikingLoss
from workers.spiking.networks import PRESETS, SpikingMLP, count_weights, parameter_groups
from workers.spiking.surrogates import FastSigmoid, Learnable


def spikes(rows: int = 3, features: int = 6) -> Tensor:
    torch.manual_seed(1)
    return (torch.rand(8, rows, features) < 0.4).float()


def small(**settings: Any) -> SpikingMLP:
    torch.manual_seed(2)
    return SpikingMLP((6, 9, 4), weight_std=0.5, **settings)


def test_qs12_the_small_preset_has_its_parameters() -> None:
    model = SpikingMLP(PRESETS["small"])
    assert count_weights(model) == 795_010 and round(count_weights(model) * 4 / 1e6, 2) == 3.18
    assert sum(p.numel() for p in model.parameters()) == 795_010 + 2 * 3, "beta, theta and v_reset of two layers"
    assert PRESETS["deep"] == (784, 1000, 500, 10)


def test_qs5_weights_are_normal_and_biases_zero() -> None:
    torch.manual_seed(0)
    model = SpikingMLP((300, 200, 50), weight_std=(0.02, 0.1))
    for number, std in enumerate((0.02, 0.1)):
        weight = model.get_parameter(f"layers.{number}.linear.weight").detach()
        assert abs(weight.std().item() / std - 1) < 0.03 and abs(weight.mean().item()) < 0.03 * std
        assert model.get_parameter(f"layers.{number}.linear.bias").detach().abs().max().item() == 0


def test_qs12_counts_are_the_logits() -> None:
    output = small()(spikes())
    assert torch.equal(output.logits, output.spikes[-1].sum(dim=0)) and output.logits.shape == (3, 4)
    assert [tuple(s.shape) for s in output.spikes] == [(8, 3, 9), (8, 3, 4)]
    assert [tuple(u.shape) for u in output.membranes] == [(8, 3, 9), (8, 3, 4)]
    assert output.logits.max().item() > 1


def test_qs12_the_mean_membrane_of_a_layer_that_does_not_fire_is_read_instead() -> None:
    output = small(readout="membrane")(spikes())
    assert len(output.spikes) == 1 and len(output.membranes) == 2
    assert torch.equal(output.logits, output.membranes[-1].mean(dim=0))
    assert float(output.logits.detach().abs().max()) > 0


def test_qs12_one_current_repeated_is_the_same_current_in_every_step() -> None:
    model, x = small().double(), torch.rand(3, 6, dtype=torch.float64)
    once, every = model(x, num_steps=8), model(x.expand(8, 3, 6))
    assert torch.equal(once.spikes[0], every.spikes[0]) and torch.equal(once.logits, every.logits)
    assert once.spikes[0].sum().item() > 0


def test_qs12_rates_cannot_be_logits_and_counts_can() -> None:
    label = torch.tensor([0])
    best = torch.zeros(1, 10, dtype=torch.float64)
    best[0, 0] = 1.0
    assert cross_entropy(best, label).item() == pytest.approx(1.4612, abs=5e-5)
    assert cross_entropy(25 * best, label).item() == pytest.approx(1.25e-10, rel=1e-2)
    assert cross_entropy(best, label).item() == pytest.approx(math.log(math.e + 9) - 1)


def test_qs12_linear_layers_and_current_quantizers_are_injected() -> None:
    class Halved(nn.Linear):
        pass

    class Recorder(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, currents: Tensor) -> Tensor:
            seen.append((self.name, tuple(currents.shape)))
            return currents * 0

    seen: list[tuple[str, tuple[int, ...]]] = []
    model = small(make_linear=Halved, wrap_current=Recorder)
    assert [name for name, module in model.named_modules() if isinstance(module, Halved)] == [
        "layers.0.linear",
        "layers.1.linear",
    ]
    output = model(spikes())
    assert seen == [("layers.0", (8, 3, 9)), ("layers.1", (8, 3, 4))]
    assert output.logits.abs().sum().item() == 0, "what the wrapper returns is what the neurons get"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": (3,)}, "an input and an output at least"),
        ({"readout": "rates"}, "write counts or membrane"),
        ({"weight_std": (0.1,)}, "1 values of weight_std for 2 layers"),
    ],
)
def test_qs12_impossible_networks_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpikingMLP(**{"sizes": (3, 4, 5), **settings})


def test_qs12_the_number_of_steps_must_be_known_and_true() -> None:
    with pytest.raises(ValueError, match="without num_steps"):
        small()(torch.rand(2, 6))
    with pytest.raises(ValueError, match="8 steps and num_steps = 9"):
        small()(spikes(), num_steps=9)


def test_qs10_each_parameter_is_in_one_group() -> None:
    model = small(make_lif=lambda: LIF(Learnable()))
    groups = parameter_groups(model, lr=0.5, weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.5, 0.1), (0.5, 0.0), (1e-3, 0.0)]
    assert [len(group["params"]) for group in groups] == [4, 6, 6]  # type: ignore[arg-type]
    grouped = [id(p) for group in groups for p in group["params"]]  # type: ignore[union-attr]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert len(parameter_groups(small(), 0.1, 0.0)) == 2


def test_qs12_a_network_learns_which_inputs_fire() -> None:
    torch.manual_seed(3)
    labels = torch.randint(0, 4, (64,))
    x = (torch.rand(10, 64, 4) < 0.05 + 0.7 * nn.functional.one_hot(labels, 4)).float()
    model = SpikingMLP((4, 32, 4), weight_std=0.3, make_lif=lambda: LIF(FastSigmoid(5.0)))
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=5e-3, weight_decay=1e-5))
    for _ in range(60):
        optimizer.zero_grad()
        SpikingLoss()(model(x), labels).total.backward()
        optimizer.step()
    with torch.no_grad():
        assert float((model(x).logits.argmax(dim=1) == labels).float().mean()) > 0.95
