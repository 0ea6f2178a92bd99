"""QS-19: integer arithmetic and fake-quantization agree within one output code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.qat.fake_quant import codes, fake_quantize
from workers.qat.integer import MOST_INPUTS, integer_linear
from workers.qat.scales import range_scale, weight_scale


@given(st.integers(0, 10_000), st.integers(1, 300), st.integers(1, 20), st.booleans())
def test_qs19_the_integer_reference_is_within_one_code_of_fake_quantization(
    seed: int, inputs: int, outputs: int, with_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator) if with_bias else None
    x_scale, w_scale = range_scale(x.abs().max(), 8), weight_scale(weight, 8)
    real = torch.nn.functional.linear(fake_quantize(x, x_scale, 8), fake_quantize(weight, w_scale, 8), bias)
    y_scale = range_scale(real.abs().max(), 8)
    expected = codes(real, y_scale, 8)
    found = integer_linear(
        codes(x, x_scale, 8).to(torch.int8), codes(weight, w_scale, 8).to(torch.int8), x_scale, w_scale[:, 0], bias, y_scale
    )
    assert found.dtype == torch.int8 and found.shape == (8, outputs)
    assert float((found - expected).abs().max()) <= 1
    assert float(expected.abs().max()) == 127  # the codes are used to their limit


def test_qs19_sums_are_exact_where_floats_are_not() -> None:
    x = torch.full((1, 2000), 127, dtype=torch.int8)
    weight = torch.full((1, 2000), 127, dtype=torch.int8)
    one = torch.tensor(1.0)
    sums = 127 * 127 * 2000
    assert int(integer_linear(x, weight, one, one.reshape(1), None, torch.tensor(sums / 100.0))) == 100


def test_qs19_a_sum_that_could_overflow_is_refused() -> None:
    x = torch.zeros(1, MOST_INPUTS + 1, dtype=torch.int8)
    with pytest.raises(ValueError, match="could overflow"):
        integer_linear(x, x, torch.tensor(1.0), torch.ones(1), None, torch.tensor(1.0))
