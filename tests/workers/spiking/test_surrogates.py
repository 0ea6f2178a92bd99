"""Surrogate gradients: spikes that are exactly 0 or 1, slopes that follow their formulas, and once more differentiable."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from workers.spiking.surrogates import (
    KINDS,
    FastSigmoid,
    Learnable,
    Surrogate,
    bounded,
    make_surrogate,
    surrogate_regularizer,
)

GRID = torch.linspace(-1, 1, 401, dtype=torch.float64)
ALL = pytest.mark.parametrize("kind", KINDS)
FORMULAS = {
    "fast_sigmoid": lambda x: 1 / (1 + 25 * x.abs()) ** 2,
    "atan": lambda x: 1 / (1 + (math.pi * 25 * x / 2) ** 2),
    "rectangular": lambda x: (x.abs() < 0.25).double(),
    "triangular": lambda x: torch.clamp(1 - 50 * x.abs(), min=0),
    "learnable": lambda x: (4 / 25) * 25 * torch.sigmoid(25 * x) * (1 - torch.sigmoid(25 * x)),
}


def gradients(surrogate: Surrogate, u: Tensor, theta: Tensor, arriving: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(surrogate(u, theta), [u, theta, *more], arriving)


@ALL
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=9), st.floats(0.125, 2, width=32))
def test_qs8_spikes_are_exactly_zero_or_one(kind: str, values: list[float], theta: float) -> None:
    u = torch.tensor([*values, theta], requires_grad=True)
    spikes = make_surrogate(kind)(u, torch.tensor(theta))
    assert spikes.dtype == torch.float32
    assert spikes.tolist() == [1.0 if value >= theta else 0.0 for value in u.tolist()]


@ALL
def test_qs8_the_slope_follows_its_formula_and_peaks_at_one(kind: str) -> None:
    surrogate = make_surrogate(kind).double()
    slope = surrogate.slope(GRID, *(value.detach() for value in surrogate.values()))
    assert torch.allclose(slope, FORMULAS[kind](GRID), rtol=0, atol=1e-6)
    assert float(slope.max()) == pytest.approx(1, abs=1e-6) and float(slope[200]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["fast_sigmoid", "atan", "triangular"])
def test_qs8_slopes_above_fifty_must_be_forced(kind: str) -> None:
    with pytest.raises(ValueError, match="at most 50, or force=True"):
        make_surrogate(kind, k=50.5)
    assert make_surrogate(kind, k=50.5, force=True).k == 50.5
    assert make_surrogate(kind, k=50).k == 50


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("sigmoid", {}, "no surrogate gradient 'sigmoid'; write one of fast_sigmoid"),
        ("atan", {"k": 0}, "must be above 0, not 0"),
        ("rectangular", {"w": 0}, "must be above 0, not 0"),
        ("rectangular", {"w": 0.01}, "slope 100 passes hardly any"),
        ("learnable", {"k": 51}, "k in 1..50"),
        ("learnable", {"o": 0.6}, "o in -0.5..0.5"),
    ],
)
def test_qs8_impossible_surrogates_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_surrogate(kind, **settings)


@ALL
@pytest.mark.parametrize("shape", [(), (7,), (3, 7)])
def test_qs9_gradients_reach_the_membrane_and_the_threshold(kind: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    surrogate = make_surrogate(kind).double()
    u = (torch.randn(3, 7).double() * 0.2 + 1).requires_grad_()
    theta = torch.full(shape, 1.0, dtype=torch.float64, requires_grad=True)
    arriving = torch.randn(3, 7).double()
    to_u, to_theta = gradients(surrogate, u, theta, arriving)
    expected = arriving * FORMULAS[kind]((u - theta).detach())
    assert float(expected.abs().max()) > 0.1
    assert torch.allclose(to_u, expected, rtol=0, atol=1e-6)
    assert to_theta.shape == shape and torch.allclose(to_theta, -expected.sum_to_size(shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("k", "o", "a"), [(25.0, 0.0, 0.16), (3.0, 0.2, 2.0), (49.0, -0.4, 0.1), (1.5, 0.49, 4.0)])
def test_qs10_gradients_to_k_o_and_a_are_those_of_the_smooth_step(k: float, o: float, a: float) -> None:
    torch.manual_seed(1)
    surrogate = Learnable(k, o, a).double()
    u = (torch.randn(4, 5).double() * 0.3 + 1).requires_grad_()
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    arriving = torch.rand(4, 5).double() + 0.1
    own = [surrogate.k, surrogate.o, surrogate.a]
    found = gradients(surrogate, u, theta, arriving, *own)
    free = [p.detach().clone().requires_grad_() for p in own]
    smooth = free[2] * torch.sigmoid(free[0] * (u - theta + free[1]))
    expected = torch.autograd.grad(smooth, [u, theta, *free], arriving)
    assert all(float(one.abs().max()) > 1e-4 for one in expected)
    assert all(torch.allclose(one, other, rtol=0, atol=1e-6) for one, other in zip(found, expected, strict=True))


def test_qs10_k_and_o_stay_inside_their_bounds_and_can_come_back() -> None:
    surrogate = Learnable().double()
    with torch.no_grad():
        surrogate.k.fill_(80.0)
        surrogate.o.fill_(-2.0)
    k, o, _ = surrogate.values()
    assert (k.item(), o.item()) == (50.0, -0.5)
    assert torch.autograd.grad(k, surrogate.k)[0] == 1, "downwards, back inside"
    assert torch.autograd.grad(surrogate.values()[0], surrogate.k, torch.tensor(-1.0).double())[0] == 0, "further out"
    assert torch.autograd.grad(o, surrogate.o, torch.tensor(-1.0).double())[0] == -1


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_qs10_a_bound_stops_only_what_leaves_it(value: float, gradient: float) -> None:
    x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    result = bounded(x, -1.0, 1.0)
    result.backward(torch.tensor(gradient, dtype=torch.float64))
    assert result.item() == min(max(value, -1.0), 1.0)
    outwards = (value <= -1 and gradient > 0) or (value >= 1 and gradient < 0)
    assert x.grad is not None and float(x.grad) == (0.0 if outwards else gradient)


def test_qs10_the_regularizer_adds_up_over_the_surrogates() -> None:
    model = nn.ModuleList([Learnable(k=20), FastSigmoid(), Learnable(k=5)])
    assert surrogate_regularizer(model).item() == pytest.approx(1 / 20 + 1 / 5, rel=1e-5)
    assert surrogate_regularizer(nn.ModuleList([FastSigmoid()])).item() == 0
    surrogate_regularizer(model).backward()
    assert float(model[2].k.grad) < 0  # type: ignore[arg-type]


@ALL
def test_qs11_the_backward_pass_is_differentiable(kind: str) -> None:
    torch.manual_seed(2)
    surrogate = make_surrogate(kind).double()
    u = (torch.randn(50).double() * 0.05 + 1).requires_grad_()
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    arriving = torch.randn(50).double().requires_grad_()
    (first,) = torch.autograd.grad(surrogate(u, theta), u, arriving, create_graph=True)
    found = torch.autograd.grad(first.square().sum(), [u, theta, arriving], allow_unused=True)
    x = (u - theta).detach().requires_grad_()
    free = arriving.detach().requires_grad_()
    expected = torch.autograd.grad((free * FORMULAS[kind](x)).square().sum(), [x, free], allow_unused=True)
    if kind == "rectangular":
        assert expected[0] is None and found[0] is None
    else:
        assert found[0] is not None and expected[0] is not None and float(expected[0].abs().max()) > 1
        assert torch.allclose(found[0], expected[0], rtol=1e-6, atol=1e-6)
        assert torch.allclose(found[1], -expected[0].sum(), rtol=1e-6, atol=1e-6)
    assert torch.allclose(found[2], expected[1], rtol=1e-6, atol=1e-6)


def test_qs11_the_gradients_to_k_o_and_a_are_differentiable() -> None:
    torch.manual_seed(3)
    surrogate = Learnable(4.0, 0.1, 0.9).double()
    u = (torch.randn(20).double() * 0.3 + 1).requires_grad_()
    own = [surrogate.k, surrogate.o, surrogate.a]
    arriving = torch.randn(20).double()

    def second(outputs: Tensor, parameters: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(outputs, [u, *parameters], arriving, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), [u, *parameters])  # type: ignore[arg-type]

    free: list[Tensor] = [p.detach().clone().requires_grad_() for p in own]
    smooth = free[2] * torch.sigmoid(free[0] * (u - 1 + free[1]))
    found, expected = second(surrogate(u, torch.tensor(1.0).double()), list(own)), second(smooth, free)
    assert all(float(e.abs().max()) > 1e-3 for e in expected)
    assert all(torch.allclose(one, other, rtol=1e-6, atol=1e-6) for one, other in zip(found, expected, strict=True))
