"""Fake-quantization: codes, scales and the gradient that passes straight through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import nn

from workers.qat.fake_quant import LARGEST_CODE, QuantLinear, fake_quantize, set_fake_quant, weight_codes, weight_scale

WEIGHTS = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-4, 4, width=32))
BITS = st.sampled_from([8, 4])


@given(WEIGHTS, BITS)
def test_the_result_is_codes_times_scale_and_nearest(values: np.ndarray, bits: int) -> None:
    weight = torch.from_numpy(values)
    scale = weight_scale(weight, bits)
    codes = weight_codes(weight, scale)
    assert torch.equal(codes, codes.round()) and float(codes.abs().max()) <= LARGEST_CODE[bits]
    result = fake_quantize(weight, bits)
    assert torch.equal(result, codes * scale)
    assert bool(((result - weight).abs() <= 0.5001 * scale).all())


@given(WEIGHTS, BITS)
def test_quantizing_twice_changes_nothing(values: np.ndarray, bits: int) -> None:
    once = fake_quantize(torch.from_numpy(values), bits)
    assert torch.allclose(fake_quantize(once, bits), once, rtol=1e-6, atol=0)


def test_scales_belong_to_output_channels() -> None:
    weight = torch.tensor([[1.0, -127.0], [0.5, 0.25], [0.0, 0.0]])
    assert torch.allclose(weight_scale(weight, 8), torch.tensor([[1.0], [0.5 / 127], [2.0**-23]]))
    assert torch.equal(fake_quantize(weight, 8)[2], torch.zeros(2))


def test_halves_are_rounded_to_even() -> None:
    weight = torch.tensor([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert fake_quantize(weight, 4).tolist() == [[7.0, 0.0, 2.0, 2.0, 0.0, -2.0]]


@pytest.mark.parametrize("bits", [8, 4])
def test_the_gradient_passes_straight_through(bits: int) -> None:
    weight = torch.randn(3, 5, requires_grad=True)
    arriving = torch.randn(3, 5)
    fake_quantize(weight, bits).backward(arriving)
    assert weight.grad is not None and torch.equal(weight.grad, arriving)


def test_the_layer_switches_between_plain_and_quantized() -> None:
    torch.manual_seed(0)
    layer = QuantLinear(6, 4, bits=4)
    x = torch.randn(3, 6)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    layer.fake_quant = True
    assert torch.equal(layer(x), nn.functional.linear(x, fake_quantize(layer.weight, 4), layer.bias))
    assert not torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_the_switch_reaches_every_layer() -> None:
    model = nn.Sequential(QuantLinear(2, 2), nn.Sequential(nn.ReLU(), QuantLinear(2, 2)), nn.Linear(2, 2))
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    set_fake_quant(model, True)
    assert [layer.fake_quant for layer in layers] == [True, True]
    set_fake_quant(model, False)
    assert [layer.fake_quant for layer in layers] == [False, False]


def test_other_numbers_of_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="8 or 4 bits, not 5"):
        QuantLinear(2, 2, bits=5)
