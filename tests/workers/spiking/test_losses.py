"""The terms of the loss: their formulas, weights that count once, and gradients that add up over ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from workers.spiking.distillation import Distillation
from workers.spiking.losses import (
    LossTerms,
    SpikingLoss,
    energy_loss,
    latency_loss,
    rate_loss,
    temporal_loss,
)
from workers.spiking.networks import SpikingMLP, SpikingOutput

TERMS = ("classification", "rate", "temporal", "energy", "latency")
EVERYTHING = SpikingLoss(rate=0.01, temporal=0.01, energy=0.01, latency=0.01)


def network(readout: str = "counts") -> SpikingMLP:
    torch.manual_seed(4)
    return SpikingMLP((12, 20, 5), readout=readout, weight_std=0.3).double()


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """Spikes [T, B, 12] and labels [B]."""
    torch.manual_seed(6)
    return (torch.rand(14, rows, 12, dtype=torch.float64) < 0.3).double(), torch.randint(0, 5, (rows,))


def random_spikes() -> Tensor:
    torch.manual_seed(8)
    return (torch.rand(12, 4, 6, dtype=torch.float64) < 0.1).double()


def test_qs13_the_rate_term_follows_its_formula() -> None:
    spikes = random_spikes()
    expected = torch.stack([(spikes[:, b].mean() - 0.1) ** 2 for b in range(4)]).mean()
    assert torch.allclose(rate_loss(spikes), expected, rtol=1e-6, atol=0) and float(expected) > 0


def test_qs13_the_temporal_term_follows_its_formula() -> None:
    spikes = random_spikes()
    trace, differences = torch.zeros(4, 6, dtype=torch.float64), []
    for s in spikes:
        following = 0.9 * trace + s
        differences.append(((following - trace) ** 2).mean())
        trace = following
    assert torch.allclose(temporal_loss(spikes), torch.stack(differences[1:]).mean(), rtol=1e-6, atol=0)
    assert float(temporal_loss(spikes[:1])) == 0


def test_qs13_the_energy_term_is_the_mean_membrane() -> None:
    assert float(energy_loss(torch.tensor([[[1.0, -3.0]]]))) == 2


def test_qs13_the_latency_term_follows_its_formula() -> None:
    spikes = torch.zeros(20, 2, 2)
    spikes[4, 0, 0] = spikes[6, 0, 1] = spikes[10, 1, :] = 1
    assert float(latency_loss(spikes)) == pytest.approx((((5 - 10) / 20) ** 2 + 0) / 2)


@pytest.mark.parametrize("readout", ["counts", "membrane"])
def test_qs13_each_weight_is_applied_once(readout: str) -> None:
    spikes, labels = batch(6)
    output = network(readout)(spikes)
    loss = SpikingLoss(classification=0.7, rate=0.3, temporal=0.2, energy=0.05, latency=0.4)
    terms = loss(output, labels)
    fired = [output.spikes[0], *output.spikes[1:]]

    def mean(term: Callable[[Tensor], Tensor], layers: list[Tensor]) -> Tensor:
        return torch.stack([term(layer) for layer in layers]).mean()

    values = (
        cross_entropy(output.logits, labels),
        mean(rate_loss, fired),
        mean(temporal_loss, fired),
        mean(energy_loss, list(output.membranes)),
        mean(latency_loss, fired),
    )
    weights = (0.7, 0.3, 0.2, 0.05, 0.4)
    assert all(torch.allclose(getattr(terms, name), value) for name, value in zip(TERMS, values, strict=True))
    expected = sum(weight * value for weight, value in zip(weights, values, strict=True))
    assert terms.total.item() == pytest.approx(float(expected.detach()), abs=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", TERMS)
def test_qs13_every_enabled_term_gives_some_weight_a_gradient(name: str) -> None:
    spikes, labels = batch(6)
    model = network()
    weights = dict.fromkeys(TERMS, 0.0) | {name: 0.01}
    terms = SpikingLoss(**weights)(model(spikes), labels)  # type: ignore[arg-type]
    assert [getattr(terms, other) is not None for other in TERMS] == [other == name for other in TERMS]
    terms.total.backward()
    assert any(float(p.grad.abs().max()) > 0 for p in model.parameters() if p.grad is not None and p.dim() == 2)


@pytest.mark.parametrize("readout", ["counts", "membrane"])
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 8))
def test_qs14_the_weighted_gradients_of_shards_are_those_of_the_union(readout: str, cut: int) -> None:
    spikes, labels = batch(9)
    model = network(readout)

    def gradient(rows: slice) -> Tensor:
        total = EVERYTHING(model(spikes[:, rows]), labels[rows]).total
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])

    union = gradient(slice(None))
    first, second = gradient(slice(0, cut)), gradient(slice(cut, None))
    reduced = (cut * first + (9 - cut) * second) / 9
    assert torch.allclose(reduced, union, rtol=1e-6, atol=1e-9) and float(union.abs().max()) > 1e-3
    assert not torch.allclose((first + second) / 2, union, rtol=1e-3, atol=1e-6)


def test_qs14_clipping_follows_the_reduction() -> None:
    spikes, labels = batch(9)
    model = network()

    def gradient(rows: slice) -> Tensor:
        total = EVERYTHING(model(spikes[:, rows]), labels[rows]).total * 10
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])

    def clip(vector: Tensor) -> Tensor:
        return vector / max(1.0, float(vector.norm()))

    union, shards = gradient(slice(None)), [gradient(slice(0, 3)), gradient(slice(3, None))]
    assert float(union.norm()) > 1
    assert torch.allclose(clip((3 * shards[0] + 6 * shards[1]) / 9), clip(union), rtol=1e-6, atol=1e-9)
    assert not torch.allclose((3 * clip(shards[0]) + 6 * clip(shards[1])) / 9, clip(union), rtol=1e-3, atol=1e-6)


def test_qs13_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight of the energy loss must be at least 0"):
        SpikingLoss(energy=-0.01)


def test_qs25_a_teacher_and_its_settings_come_together() -> None:
    output = SpikingOutput(torch.zeros(1, 2), (), ())
    with pytest.raises(ValueError, match="a distillation needs both"):
        SpikingLoss()(output, torch.zeros(1, dtype=torch.int64), output)
    with pytest.raises(ValueError, match="a distillation needs both"):
        SpikingLoss(distillation=Distillation())(output, torch.zeros(1, dtype=torch.int64))


def test_qs25_without_its_weights_distillation_equals_plain_training() -> None:
    spikes, labels = batch(6)
    model, teacher = network(), network()
    plain = SpikingLoss(rate=0.01)
    distilled = SpikingLoss(rate=0.01, distillation=Distillation(alpha=0, membrane=0))

    def train(loss: Callable[[SpikingOutput], LossTerms]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(model(spikes)).total, list(model.parameters()))

    one, other = train(lambda o: plain(o, labels)), train(lambda o: distilled(o, labels, teacher(spikes)))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
