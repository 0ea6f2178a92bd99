"""The time loop as one function: it computes what the definition does, forwards, backwards, and backwards again."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from workers.spiking.lif import LIF, LIFOutput
from workers.spiking.surrogates import KINDS, make_surrogate

SETTINGS = pytest.mark.parametrize("size", [None, 7])
RESETS = pytest.mark.parametrize("reset", ["value", "subtract"])
ALL = pytest.mark.parametrize("kind", KINDS)


class Case(NamedTuple):
    layer: LIF
    currents: Tensor
    state: Tensor
    weights: Tensor

    def output(self, stepwise: bool) -> LIFOutput:
        layer, threshold = self.layer, self.layer.threshold
        if not stepwise:
            return layer(self.currents, self.state)
        return layer.forward_stepwise(self.currents, self.state, layer.beta, threshold, layer.reset_value(threshold))

    def loss(self, stepwise: bool) -> Tensor:
        """Uses all three outputs, and not only linearly."""
        spikes, membranes, state = self.output(stepwise)
        mixed = (spikes * self.weights).sum()
        return mixed + 0.1 * mixed**2 + (membranes * self.weights.flip(0)).square().sum() + (state**3).sum()

    def inputs(self) -> list[Tensor]:
        return [self.currents, self.state, *self.layer.parameters()]


def case(kind: str, reset: str, size: int | None) -> Case:
    torch.manual_seed(5)
    settings = {} if kind == "rectangular" else {"k": 4.0}
    layer = LIF(make_surrogate(kind, **settings), reset=reset, size=size, v_reset=-0.1).double()
    currents = (torch.randn(9, 3, 7, dtype=torch.float64) * 0.5 + 0.2).requires_grad_()
    state = torch.rand(3, 7, dtype=torch.float64).requires_grad_()
    return Case(layer, currents, state, torch.randn(9, 3, 7, dtype=torch.float64))


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-6, atol=1e-6)


@ALL
@RESETS
@SETTINGS
def test_qs5_the_loop_computes_what_the_definition_does(kind: str, reset: str, size: int | None) -> None:
    tested = case(kind, reset, size)
    found, expected = tested.output(stepwise=False), tested.output(stepwise=True)
    assert torch.equal(found.spikes, expected.spikes) and 0.05 < float(found.spikes.detach().mean()) < 0.5
    assert close(found.membranes, expected.membranes) and close(found.state, expected.state)


@ALL
@RESETS
@SETTINGS
def test_qs9_the_gradients_are_those_of_the_definition(kind: str, reset: str, size: int | None) -> None:
    tested = case(kind, reset, size)
    found, expected = (torch.autograd.grad(tested.loss(stepwise), tested.inputs()) for stepwise in (False, True))
    assert all(close(one, other) for one, other in zip(found, expected, strict=True))
    assert all(float(one.abs().max()) > 1e-3 for one in found)


@ALL
@RESETS
@SETTINGS
def test_qs11_the_second_gradients_are_those_of_the_definition(kind: str, reset: str, size: int | None) -> None:
    tested = case(kind, reset, size)

    def second(stepwise: bool) -> list[Tensor]:
        first = torch.autograd.grad(tested.loss(stepwise), tested.inputs(), create_graph=True)
        squares = torch.stack([gradient.square().sum() for gradient in first]).sum()
        return list(torch.autograd.grad(squares, tested.inputs()))

    found, expected = second(stepwise=False), second(stepwise=True)
    assert all(close(one, other) for one, other in zip(found, expected, strict=True))
    assert all(float(one.abs().max()) > 1e-3 for one in found)


@RESETS
@pytest.mark.parametrize("used", [0, 1, 2])
def test_qs9_any_output_alone_gives_its_gradients(reset: str, used: int) -> None:
    tested = case("fast_sigmoid", reset, None)
    found, expected = (
        torch.autograd.grad(tested.output(stepwise)[used].square().sum(), tested.inputs(), allow_unused=True)
        for stepwise in (False, True)
    )
    for one, other in zip(found, expected, strict=True):
        assert other is not None or one is None or float(one.abs().max()) == 0
        assert other is None or (one is not None and close(one, other))
