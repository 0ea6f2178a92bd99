"""QS-21: levels that are dense where a neuron decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from workers.qat.packing import pack, unpack
from workers.qat.state_quant import GAP_RATIO, Levels, StateQuantizer, relative_levels

BITS = [8, 4, 2]


def count_spikes(currents: Tensor, quantizer: StateQuantizer | None, theta: float = 1.0) -> int:
    """Spikes of neurons under `currents` [25, N]; beta 0.95, reset to 0."""
    u, spikes, threshold = torch.zeros_like(currents[0]), 0, torch.tensor(theta)
    for current in currents:
        u = 0.95 * u + current
        u = u if quantizer is None else quantizer(u, threshold)
        fired = u >= threshold
        spikes += int(fired.sum())
        u = torch.where(fired, 0.0, u)
    return spikes


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("levels", ["centred", "uniform"])
def test_qs21_there_are_2_to_the_b_levels_over_the_range(bits: int, levels: Levels) -> None:
    found = relative_levels(bits, levels)
    assert len(found) == 2**bits and bool((found.diff() > 0).all())
    assert float(found[0]) == -1.0
    assert float(found[-1]) == pytest.approx(1.0 if (bits, levels) == (2, "centred") else 1.2)


@pytest.mark.parametrize("bits", BITS)
def test_qs21_0_and_the_threshold_are_levels_and_gaps_shrink_towards_it(bits: int) -> None:
    found = relative_levels(bits)
    assert 0.0 in found and 1.0 in found
    gaps, at = found.diff(), int((found == 1.0).nonzero())
    assert at == int(2**bits * 2 / 2.2)
    zero = int((found == 0.0).nonzero())
    ratios_below = (gaps[1:at] / gaps[: at - 1])[[i for i in range(at - 1) if abs(i + 1 - zero) > 1]]
    assert torch.allclose(ratios_below, torch.full_like(ratios_below, GAP_RATIO[bits]), rtol=0, atol=1e-6)
    ratios_above = gaps[at:-1] / gaps[at + 1 :]
    assert torch.allclose(ratios_above, torch.full_like(ratios_above, GAP_RATIO[bits]), rtol=0, atol=1e-6)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=40), st.floats(0.2, 3), st.sampled_from(BITS))
def test_qs21_each_membrane_goes_to_its_nearest_level(values: list[float], theta: float, bits: int) -> None:
    u, threshold = torch.tensor(values, dtype=torch.float64), torch.tensor(theta, dtype=torch.float64)
    levels = relative_levels(bits) * threshold
    result = StateQuantizer(bits, fake_quant=True)(u, threshold)
    assert bool(torch.isin(result, levels).all())
    assert torch.allclose((result - u).abs(), (u[:, None] - levels).abs().amin(dim=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_qs21_levels_follow_a_threshold_that_learns_of_each_neuron(bits: int) -> None:
    theta = torch.tensor([0.7, 1.0, 1.9])
    quantizer = StateQuantizer(bits, fake_quant=True)
    assert torch.equal(quantizer(theta.expand(4, 3), theta), theta.expand(4, 3))
    assert torch.equal(quantizer(torch.zeros(4, 3), theta), torch.zeros(4, 3))


@pytest.mark.parametrize("bits", BITS)
def test_qs21_the_gradient_passes_inside_the_levels_only(bits: int) -> None:
    u = torch.tensor([-2.5, -1.9, 0.3, 1.9, 2.6], requires_grad=True)
    theta = torch.tensor(2.0, requires_grad=True)
    arriving = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    StateQuantizer(bits, fake_quant=True)(u, theta).backward(arriving)
    assert u.grad is not None and u.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]
    assert theta.grad is None


def test_qs21_off_it_is_the_identity() -> None:
    u = torch.randn(3, 4)
    assert StateQuantizer(2)(u, torch.tensor(1.0)) is u


@pytest.mark.parametrize("bits", BITS)
def test_qs21_near_the_threshold_the_mean_error_is_below_uniforms(bits: int) -> None:
    u, theta = torch.linspace(0.9, 1.1, 2001, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    errors = {}
    for levels in ("centred", "uniform"):
        errors[levels] = float((StateQuantizer(bits, levels, fake_quant=True)(u, theta) - u).abs().mean())
    assert errors["centred"] < errors["uniform"]


def drawn_currents(*, constant: bool = False) -> Tensor:
    """I = |N(0.15, 0.2²)| - 0.05 of 2,000 neurons over 25 steps, [25, 2000]; drawn anew in each step, or once."""
    noise = torch.randn(1 if constant else 25, 2000, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.15
    return (noise.abs() - 0.05).expand(25, -1)


@pytest.mark.parametrize("bits", BITS)
def test_qs21_the_spike_count_is_that_of_floats_within_a_tenth(bits: int) -> None:
    full = count_spikes(drawn_currents(), None)
    assert full > 2000
    assert 0.9 <= count_spikes(drawn_currents(), StateQuantizer(bits, fake_quant=True)) / full <= 1.1


def test_qs21_uniform_levels_of_2_bits_lose_half_the_spikes() -> None:
    full = count_spikes(drawn_currents(), None)
    assert count_spikes(drawn_currents(), StateQuantizer(2, "uniform", fake_quant=True)) < 0.55 * full


def test_qs21_under_constant_currents_2_bits_lose_a_seventh_of_the_spikes() -> None:
    full = count_spikes(drawn_currents(constant=True), None)
    found = {b: count_spikes(drawn_currents(constant=True), StateQuantizer(b, fake_quant=True)) / full for b in BITS}
    assert 0.8 < found[2] < 0.9 and 0.95 < found[4] < 1.05 and 0.95 < found[8] < 1.05


def test_qs21_rounding_with_scale_1_is_wrong() -> None:
    u, spikes = 0.0, 0
    for _ in range(25):
        u = round(0.95 * u + 0.3)
        spikes += u >= 1
    assert spikes == 0 and count_spikes(torch.full((25, 1), 0.3), StateQuantizer(8, fake_quant=True)) > 0


def test_qs21_a_2_bit_state_saves_its_15_sixteenths_when_packed() -> None:
    u, theta = torch.randn(16, 100), torch.tensor(1.0)
    quantizer = StateQuantizer(2, fake_quant=True)
    codes = quantizer.codes(u, theta)
    packed = pack(codes, 2)
    assert 1 - packed.numel() / (4 * u.numel()) == 0.9375
    levels = relative_levels(2).float()
    assert torch.equal(levels[unpack(packed, 2, 100).long() + 2] * theta, quantizer(u, theta))


def test_it_adds_nothing_to_the_state() -> None:
    assert not StateQuantizer(4).state_dict()


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="8, 4 or 2 bits, not 6"):
        StateQuantizer(6)
    with pytest.raises(ValueError, match="centred or uniform, not 'log'"):
        StateQuantizer(4, "log")  # type: ignore[arg-type]
