"""LIF layers: the order of a step, the reset, the learnable numbers, and state that is passed and not kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.spiking.lif import LIF, Integrator
from workers.spiking.rings import CAPACITY
from workers.spiking.surrogates import Learnable

DOUBLE = torch.float64


def constant(current: float, num_steps: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.full((num_steps, 1, 1), current, dtype=dtype)


def make(dtype: torch.dtype = DOUBLE, **settings: Any) -> LIF:
    return LIF(**settings).to(dtype)


def plain_lif(
    currents: Tensor, beta: float, theta: float, v_reset: float, subtract: bool
) -> tuple[list[float], list[float]]:
    """Spikes and membranes of one neuron, in Python numbers."""
    state, spikes, membranes = 0.0, [], []
    for current in currents.tolist():
        u = beta * state + current
        fired = u >= theta
        state = (u - theta if subtract else v_reset) if fired else u
        spikes.append(float(fired))
        membranes.append(u)
    return spikes, membranes


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("learnable", [True, False])
def test_qs7_constant_current_spikes_at_the_given_times(dtype: torch.dtype, learnable: bool) -> None:
    layer = make(dtype, learnable=learnable)
    spikes = layer(constant(0.3, 25, dtype)).spikes
    assert torch.nonzero(spikes.flatten()).flatten().tolist() == [3, 7, 11, 15, 19, 23]


@given(st.floats(-1, 0.0499))
@settings(deadline=None)
def test_qs7_a_current_below_the_leak_never_fires(current: float) -> None:
    assert make()(constant(current, 400)).spikes.sum().item() == 0


def test_qs7_the_current_that_the_leak_just_eats_never_fires() -> None:
    assert make()(constant(0.05, 128)).spikes.sum().item() == 0
    assert make()(constant(0.051, 128)).spikes.sum().item() > 0


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-1, 2), min_size=1, max_size=20),
    st.floats(0.05, 0.99),
    st.floats(0.1, 2),
    st.floats(-1, 0.05),
    st.booleans(),
)
def test_qs5_a_step_follows_the_table(
    currents: list[float], beta: float, theta: float, v_reset: float, subtract: bool
) -> None:
    layer = make(beta=beta, theta=theta, v_reset=v_reset, reset="subtract" if subtract else "value")
    numbers = (float(layer.beta.detach()), float(layer.threshold.detach()))
    reset_value = float(layer.reset_value(layer.threshold).detach())
    assert (*numbers, reset_value) == pytest.approx((beta, theta, v_reset), abs=1e-6)
    column = torch.tensor(currents, dtype=DOUBLE)
    spikes, membranes = plain_lif(column, *numbers, reset_value, subtract)
    output = layer(column.view(-1, 1, 1))
    assert output.spikes.flatten().tolist() == spikes
    assert output.membranes.flatten().tolist() == pytest.approx(membranes, abs=1e-6)


def test_qs5_a_membrane_at_the_threshold_fires() -> None:
    layer = make(beta=0.5, theta=1.0)
    assert layer(constant(1.0, 1)).spikes.tolist() == [[[1.0]]]


@pytest.mark.parametrize("reset", ["value", "subtract"])
@pytest.mark.parametrize("cut", [1, 4, 9])
def test_qs5_state_is_passed_in_and_returned_and_never_kept(reset: str, cut: int) -> None:
    torch.manual_seed(0)
    layer = make(reset=reset)
    currents = torch.rand(10, 3, 4, dtype=DOUBLE)
    whole = layer(currents)
    first = layer(currents[:cut])
    second = layer(currents[cut:], first.state)
    assert torch.equal(torch.cat((first.spikes, second.spikes)), whole.spikes)
    assert torch.equal(torch.cat((first.membranes, second.membranes)), whole.membranes)
    assert torch.equal(second.state, whole.state) and whole.state.shape == (3, 4)
    assert torch.equal(layer(currents).membranes, whole.membranes), "the second call starts at 0 again"
    assert whole.spikes.sum().item() > 0


def test_qs5_beta_theta_and_v_reset_are_learnt_or_not() -> None:
    assert {name for name, _ in LIF().named_parameters()} == {"beta_logit", "theta", "v_reset"}
    assert {name for name, _ in LIF(reset="subtract").named_parameters()} == {"beta_logit", "theta"}
    fixed = LIF(learnable=False)
    assert not list(fixed.parameters()) and set(fixed.state_dict()) == {"beta_logit", "theta", "v_reset"}
    assert LIF(size=6).theta.shape == (6,)


def test_qs5_learnt_numbers_stay_possible() -> None:
    layer = make(v_reset=0.0)
    with torch.no_grad():
        layer.beta_logit.fill_(30.0)
        layer.theta.fill_(-4.0)
        layer.v_reset.fill_(9.0)
    threshold = layer.threshold
    assert threshold.item() == pytest.approx(0.1) and layer.reset_value(threshold).item() < threshold.item()
    assert 0 < layer.beta.item() <= 1
    (-threshold).backward()
    assert layer.theta.grad is not None and layer.theta.grad.item() == -1, "a threshold that is too low can rise again"


@pytest.mark.parametrize("reset", ["value", "subtract"])
def test_qs5_no_gradient_passes_through_the_spike_of_the_reset(reset: str) -> None:
    """Two steps; only the second membrane is in the loss, the first one fires: what reaches it is the reset path."""
    layer = make(reset=reset)
    currents = torch.tensor([1.01, 0.2], dtype=DOUBLE).view(2, 1, 1).requires_grad_()
    output = layer(currents)
    assert output.spikes.flatten().tolist() == [1.0, 0.0]
    (gradient,) = torch.autograd.grad(output.membranes[1].sum(), currents)
    kept = 0.0 if reset == "value" else 0.95
    assert gradient.flatten().tolist() == pytest.approx([kept, 1.0], abs=1e-6)


def test_qs6_the_state_quantizer_acts_on_the_membrane_before_the_comparison() -> None:
    seen: list[float] = []

    def quantize(u: Tensor, theta: Tensor) -> Tensor:
        seen.append(theta.item())
        return torch.round(u * 4) / 4

    layer = make(state_quant=quantize, beta=0.5)
    output = layer(constant(0.9, 3))
    assert output.membranes.flatten().tolist() == [1.0, 1.0, 1.0] and output.spikes.flatten().tolist() == [1.0, 1.0, 1.0]
    assert seen == [1.0] * 3
    assert make(beta=0.5)(constant(0.9, 1)).spikes.sum().item() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 1.0}, "between 0 and 1, not 1.0"),
        ({"theta": 0.05}, "at least 0.1, not 0.05"),
        ({"v_reset": 1.0}, "v_reset must be below theta"),
        ({"reset": "zero"}, "write value or subtract"),
    ],
)
def test_qs5_impossible_neurons_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LIF(**settings)


def test_qs7_rings_hold_the_last_hundred_forwards_outside_the_state() -> None:
    torch.manual_seed(1)
    layer = LIF()
    state = copy.deepcopy(layer.state_dict())
    outputs = [layer(torch.rand(4, 2, 3)) for _ in range(CAPACITY + 7)]
    assert len(layer.rings) == CAPACITY == 100
    oldest, newest = outputs[7], outputs[-1]
    for place, output in ((0, oldest), (-1, newest)):
        assert layer.rings.spike_rate[place] == pytest.approx(output.spikes.mean().item(), abs=1e-5)
        assert layer.rings.membrane_mean[place] == pytest.approx(output.membranes.mean().item(), abs=1e-5)
        assert layer.rings.membrane_std[place] == pytest.approx(output.membranes.std(correction=0).item(), abs=1e-4)
    assert max(layer.rings.spike_rate) > 0
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert set(layer.state_dict()) == set(state)


def test_qs7_an_empty_batch_and_a_silenced_recorder_leave_no_entry() -> None:
    layer = LIF()
    assert layer(torch.zeros(4, 0, 3)).spikes.shape == (4, 0, 3) and len(layer.rings) == 0
    quiet = LIF(record=False)
    quiet(torch.zeros(4, 1, 3))
    assert len(quiet.rings) == 0


def test_qs12_an_integrator_leaks_and_never_fires() -> None:
    layer = Integrator(beta=0.5).to(DOUBLE)
    currents = torch.tensor([4.0, 2.0, 9.0], dtype=DOUBLE).view(3, 1, 1)
    membranes, state = layer(currents)
    assert membranes.flatten().tolist() == pytest.approx([4.0, 4.0, 11.0])
    assert torch.equal(layer(currents[1:], membranes[0])[0], membranes[1:]) and torch.equal(state, membranes[-1])


def test_qs10_a_learnable_surrogate_learns_from_the_task_alone() -> None:
    torch.manual_seed(2)
    layer = LIF(Learnable())
    layer(torch.rand(6, 4, 5)).spikes.mean().backward()
    gradients = [p.grad for p in layer.surrogate.parameters()]
    assert len(gradients) == 3 and all(g is not None and float(g) != 0 for g in gradients)
