"""QS-26, QS-27 and QS-38: traces that are right, and the same however the probes are spread over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from workers.qat.hessian import allocate, probe, sensitivities, trace_part, traces
from workers.qat.layers import QuantLinear, set_bits
from workers.spiking.networks import SpikingMLP

Losses = list[Callable[[], Tensor]]


def quadratic(matrix: Tensor) -> tuple[Losses, dict[str, Tensor]]:
    """Losses with the Hessian `matrix`, and their parameter."""
    w = torch.ones(len(matrix), dtype=torch.float64, requires_grad=True)
    return [lambda: 0.5 * w @ matrix @ w], {"w": w}


def network() -> tuple[Losses, Mapping[str, Tensor]]:
    """Two batches of a small regression; two layers."""
    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(4)
    first, last = nn.Linear(5, 8), nn.Linear(8, 2)
    model = nn.Sequential(first, nn.Tanh(), last)
    batches = [(torch.randn(16, 5, generator=generator), torch.randn(16, 2, generator=generator)) for _ in range(2)]
    losses: Losses = [lambda x=x, y=y: nn.functional.mse_loss(model(x), y) for x, y in batches]  # type: ignore[misc]
    return losses, {"0": first.weight, "2": last.weight}


def added(parts: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(part[key] for part in parts) for key in parts[0]}


def test_qs27_a_diagonal_hessian_gives_its_trace_with_every_probe() -> None:
    losses, parameters = quadratic(torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64)))
    for part in range(8):
        sums = trace_part(losses, parameters, probes=8, part=part, parts=8)
        assert sums["probes"] == 1 and sums["w/sum"] == pytest.approx(15, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_qs27_a_random_hessian_is_met_within_three_standard_errors(seed: int) -> None:
    a = torch.randn(50, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = (a + a.T) / 2
    mean, error = traces(trace_part(*quadratic(matrix), probes=64, seed=seed))["w"]
    assert error > 0 and abs(mean - float(matrix.trace())) <= 3 * error


def test_qs38_one_rank_and_four_agree() -> None:
    losses, parameters = network()
    alone = trace_part(losses, parameters, probes=30, seed=7)
    parts = [trace_part(losses, parameters, probes=30, part=rank, parts=4, seed=7) for rank in range(4)]
    assert [part["probes"] for part in parts] == [8, 8, 7, 7]
    assert added(parts) == pytest.approx(alone, rel=1e-5)
    assert traces(alone)["0"][0] != 0.0


def test_qs38_more_ranks_than_probes_are_no_trouble() -> None:
    losses, parameters = network()
    parts = [trace_part(losses, parameters, probes=2, part=rank, parts=4) for rank in range(4)]
    assert added(parts) == pytest.approx(trace_part(losses, parameters, probes=2), rel=1e-5)


def test_qs26_the_hessian_is_of_the_mean_loss_and_of_one_layer_at_a_time() -> None:
    losses, parameters = network()
    found = traces(trace_part(losses, parameters, probes=512))
    for name, weight in parameters.items():
        gradient = torch.autograd.grad((losses[0]() + losses[1]()) / 2, weight, create_graph=True)[0].flatten()
        exact = sum(
            float(torch.autograd.grad(gradient[i], weight, retain_graph=True)[0].flatten()[i]) for i in range(len(gradient))
        )
        mean, error = found[name]
        assert abs(mean - exact) <= 4 * error < abs(exact)


def test_qs26_a_linear_loss_and_an_unused_parameter_have_no_curvature() -> None:
    w, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    sums = trace_part([lambda: w.sum()], {"w": w, "unused": unused}, probes=4)
    assert sums == {"w/sum": 0, "w/squares": 0, "unused/sum": 0, "unused/squares": 0, "probes": 4}


def test_qs26_a_spiking_network_has_the_curvature_of_its_surrogates() -> None:
    torch.manual_seed(0)
    model = SpikingMLP((6, 12, 3), weight_std=0.4)
    spikes, labels = (torch.rand(8, 16, 6) < 0.4).float(), torch.arange(16) % 3
    losses: Losses = [lambda: nn.functional.cross_entropy(model(spikes).logits, labels)]
    weights = {name: p for name, p in model.named_parameters() if p.dim() == 2}
    alone = trace_part(losses, weights, probes=8)
    parts = [trace_part(losses, weights, probes=8, part=rank, parts=4) for rank in range(4)]
    assert added(parts) == pytest.approx(alone, rel=1e-5)
    assert len(weights) == 2 and all(math.isfinite(mean) and mean != 0.0 for mean, _ in traces(alone).values())


def test_qs38_probes_are_of_seed_number_and_position_alone() -> None:
    like = torch.zeros(300, 7)
    first = probe(3, 5, 1, like)
    assert torch.equal(first, probe(3, 5, 1, like)) and bool((first.abs() == 1).all())
    assert abs(float(first.mean())) < 0.1
    for other in (probe(4, 5, 1, like), probe(3, 6, 1, like), probe(3, 5, 2, like)):
        assert abs(float((first * other).mean())) < 0.1


def test_qs27_all_zero_traces_give_4_bits() -> None:
    found = sensitivities({"a": 0.0, "b": -3.0}, {"a": 10, "b": 0 + 10})
    assert found == {"a": 0.0, "b": 0.0}
    assert allocate(found) == {"a": 4, "b": 4}


def test_qs26_bits_follow_sensitivity_per_weight_and_are_applied() -> None:
    found = sensitivities({"0": 100.0, "1": 100.0, "2": 10.0, "3": -1.0}, {"0": 10, "1": 20, "2": 10, "3": 1})
    assert found == {"0": 1.0, "1": 0.5, "2": 0.1, "3": 0.0}
    assert allocate(found) == {"0": 8, "1": 6, "2": 4, "3": 4}
    assert allocate({"a": 0.7, "b": 0.4, "c": 0.71, "d": 0.41}) == {"a": 6, "b": 4, "c": 8, "d": 6}
    model = nn.Sequential(*[QuantLinear(2, 2) for _ in range(4)])
    set_bits(model, allocate(found))
    assert [layer.quantizer.bits for layer in model] == [8, 6, 4, 4]  # type: ignore[union-attr]
