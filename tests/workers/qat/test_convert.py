"""The converted model stores integers, weighs what it says, and computes what training has seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import nn

from workers.qat.convert import IntegerLinear, convert, fp32_bytes, pack_int4, packed_bytes, unpack_int4
from workers.qat.fake_quant import QuantLinear, set_fake_quant


def network(bits: int, width: int = 17) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(QuantLinear(width, 31, bits=bits), nn.ReLU(), QuantLinear(31, 10, bits=bits))


@pytest.mark.parametrize("bits", [8, 4])
def test_the_converted_forward_is_the_fake_quantized_forward(bits: int) -> None:
    model = network(bits)
    set_fake_quant(model, True)
    x = torch.randn(64, 17)
    with torch.no_grad():
        assert torch.allclose(convert(model)(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("bits", "dtype", "columns"), [(8, torch.int8, 17), (4, torch.uint8, 9)])
def test_weights_are_stored_as_integers_only(bits: int, dtype: torch.dtype, columns: int) -> None:
    model = network(bits)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = convert(model)[0]  # type: ignore[index]
    assert isinstance(first, IntegerLinear) and not list(first.parameters())
    assert first.codes.dtype == dtype and first.codes.shape == (31, columns)
    assert first.scale.shape == (31,)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_forward_uses_the_integers() -> None:
    converted = convert(network(8))
    first = converted[0]  # type: ignore[index]
    first.codes.zero_()
    assert torch.equal(first(torch.randn(5, 17)), first.bias.expand(5, -1))


def test_bytes_are_counted_honestly() -> None:
    weights, outputs = 17 * 31 + 31 * 10, 31 + 10
    assert fp32_bytes(network(8)) == 4 * (weights + outputs)
    assert packed_bytes(convert(network(8))) == weights + 4 * outputs + 4 * outputs
    assert packed_bytes(convert(network(4))) == 9 * 31 + 16 * 10 + 4 * outputs + 4 * outputs
    assert packed_bytes(network(8)) == fp32_bytes(network(8))


def test_what_is_shared_stays_shared_and_counts_once() -> None:
    layer = QuantLinear(6, 6)
    converted = convert(nn.Sequential(layer, nn.ReLU(), layer))
    assert converted[0] is converted[2]  # type: ignore[index]
    assert packed_bytes(converted) == packed_bytes(convert(nn.Sequential(layer)))


def test_other_layers_are_copied() -> None:
    model = nn.Sequential(QuantLinear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2)))
    converted = convert(model).eval()
    set_fake_quant(model.eval(), True)
    x = torch.randn(3, 4)
    assert torch.allclose(converted(x), model(x), atol=1e-5)
    assert converted[1] is not model[1]  # type: ignore[index]


@given(arrays(np.int8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-8, 7)))
def test_int4_codes_survive_packing(values: np.ndarray) -> None:
    codes = torch.from_numpy(values)
    packed = pack_int4(codes)
    assert packed.dtype == torch.uint8 and packed.shape == (codes.shape[0], (codes.shape[1] + 1) // 2)
    assert torch.equal(unpack_int4(packed, codes.shape[1]), codes)
