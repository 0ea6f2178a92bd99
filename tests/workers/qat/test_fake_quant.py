"""QS-18: what fake-quantization computes, and which gradient passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from workers.qat.fake_quant import codes, fake_quantize, learned_step_quantize
from workers.qat.scales import code_limits

NUMBERS = arrays(np.float64, array_shapes(max_dims=3, max_side=7), elements=st.floats(-30, 30))
BITS = st.sampled_from([8, 6, 4, 2])
SCALE = st.floats(0.01, 4.0)


@given(NUMBERS, SCALE, BITS)
def test_qs18_the_result_is_the_nearest_code_times_the_scale(values: np.ndarray, step: float, bits: int) -> None:
    x, scale = torch.from_numpy(values), torch.tensor(step, dtype=torch.float64)
    smallest, largest = code_limits(bits)
    result = fake_quantize(x, scale, bits)
    assert np.allclose(result.numpy(), np.clip(np.round(values / step), smallest, largest) * step, rtol=0, atol=1e-6)
    assert torch.equal(result, codes(x, scale, bits) * scale)
    inside = (x >= smallest * scale) & (x <= largest * scale)
    assert bool(((result - x).abs() <= 0.5 * scale + 1e-9)[inside].all())


@given(NUMBERS, SCALE, BITS)
def test_qs18_quantizing_twice_changes_nothing(values: np.ndarray, step: float, bits: int) -> None:
    scale = torch.tensor(step, dtype=torch.float64)
    once = fake_quantize(torch.from_numpy(values), scale, bits)
    assert torch.equal(fake_quantize(once, scale, bits), once)


@given(NUMBERS, SCALE, BITS)
def test_qs18_the_gradient_is_1_inside_the_range_and_0_outside(values: np.ndarray, step: float, bits: int) -> None:
    x = torch.from_numpy(values).requires_grad_()
    arriving = torch.linspace(-2, 3, x.numel(), dtype=torch.float64).reshape(x.shape)
    fake_quantize(x, torch.tensor(step, dtype=torch.float64), bits).backward(arriving)
    smallest, largest = code_limits(bits)
    rounded = np.round(values / step)
    inside = torch.from_numpy((rounded >= smallest) & (rounded <= largest))
    assert x.grad is not None and torch.equal(x.grad, torch.where(inside, arriving, 0.0))


def test_qs18_both_sides_of_the_range_are_met() -> None:
    x = torch.tensor([-3.0, -2.0, 0.4, 1.0, 1.6], requires_grad=True)
    result = fake_quantize(x, torch.tensor(1.0), 2)
    assert result.tolist() == [-2.0, -2.0, 0.0, 1.0, 1.0]
    result.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_halves_are_rounded_to_even() -> None:
    x = torch.tensor([7.0, 0.5, 1.5, 2.5, -0.5, -1.5])
    assert fake_quantize(x, torch.tensor(1.0), 4).tolist() == [7.0, 0.0, 2.0, 2.0, 0.0, -2.0]


def test_scales_of_channels_broadcast() -> None:
    x = torch.tensor([[1.1, 2.2], [1.1, 2.2]])
    assert torch.allclose(fake_quantize(x, torch.tensor([[1.0], [0.5]]), 8), torch.tensor([[1.0, 2.0], [1.0, 2.0]]))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_qs15_the_gradient_of_a_learned_step_is_that_of_lsq(bits: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 40, generator=generator, dtype=torch.float64).requires_grad_()
    scale = torch.full((6, 1), 2.0 / code_limits(bits)[1], dtype=torch.float64, requires_grad=True)
    arriving = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    result = learned_step_quantize(x, scale, bits, features=40)
    result.backward(arriving)
    smallest, largest = code_limits(bits)
    v = (x / scale).detach()
    slope = torch.where(v.round() < smallest, smallest, torch.where(v.round() > largest, largest, v.round() - v))
    expected = (arriving * slope).sum(dim=1, keepdim=True) / (40 * largest) ** 0.5
    assert bool((v.round() > largest).any())
    assert scale.grad is not None and torch.allclose(scale.grad, expected, rtol=0, atol=1e-6)
    assert torch.equal(result, fake_quantize(x, scale.detach(), bits))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.where((v.round() >= smallest) & (v.round() <= largest), arriving, 0.0))
