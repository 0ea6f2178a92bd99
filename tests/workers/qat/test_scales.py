"""QS-15 and QS-16: the scale of a range, and the search that shrinks it for few bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from workers.qat.fake_quant import codes
from workers.qat.scales import (
    activation_scale,
    best_multiplier,
    candidates,
    check_bits,
    check_convention,
    code_limits,
    range_scale,
    weight_scale,
)

ROWS = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(-4, 4))


def squared_error(rows: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    return (codes(rows, scale, bits) * scale - rows).square().sum(dim=1)


@pytest.mark.parametrize(
    ("bits", "limits", "scale"),
    [(8, (-128, 127), 8 / 127), (6, (-32, 31), 8 / 31), (4, (-8, 7), 8 / 7), (2, (-2, 1), 8.0)],
)
def test_qs15_codes_and_scale_of_a_range_of_8(bits: int, limits: tuple[int, int], scale: float) -> None:
    assert code_limits(bits) == limits
    assert float(range_scale(torch.tensor(8.0, dtype=torch.float64), bits)) == pytest.approx(scale, rel=1e-12)


def test_qs15_torch_divides_by_half_a_code_more() -> None:
    assert float(range_scale(torch.tensor(8.0, dtype=torch.float64), 8, "torch")) == pytest.approx(8 / 127.5, rel=1e-12)
    assert float(weight_scale(torch.tensor([[8.0]]), 8, convention="torch")) == pytest.approx(0.0627451, abs=1e-6)


def test_qs15_a_range_of_nothing_has_the_smallest_scale() -> None:
    for bits in (8, 6, 4, 2):
        assert torch.equal(weight_scale(torch.zeros(2, 3), bits), torch.full((2, 1), 2.0**-23))
        assert float(activation_scale(torch.zeros(()), torch.zeros(()), bits)) == 2.0**-23


@pytest.mark.parametrize("bits", [8, 6])
def test_qs15_c_is_1_from_6_bits_on(bits: int) -> None:
    low, high = torch.tensor(-3.0), torch.tensor(2.0)
    assert float(activation_scale(low, high, bits)) == pytest.approx(3 / code_limits(bits)[1], rel=1e-6)


@pytest.mark.parametrize("bits", [4, 2])
@given(rows=ROWS)
def test_qs15_c_costs_no_more_than_the_best_of_100(bits: int, rows: np.ndarray) -> None:
    weight = torch.from_numpy(rows)
    largest = weight.abs().amax(dim=1, keepdim=True)
    tried = torch.stack([squared_error(weight, range_scale(c * largest, bits), bits) for c in candidates()])
    found = squared_error(weight, weight_scale(weight, bits), bits)
    slack = 2 * weight.shape[1] * (largest.squeeze(1) / 512) ** 2 + 1e-12  # numbers count as the centres of their bins
    noise = tried.amin(dim=0).sqrt()
    assert bool((found <= (noise + slack.sqrt()) ** 2).all())


@pytest.mark.parametrize("bits", [4, 2])
def test_qs15_c_of_a_layers_weights_is_the_best_of_100_within_half_a_percent(bits: int) -> None:
    weight = torch.randn(50, 784, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    largest = weight.abs().amax(dim=1, keepdim=True)
    tried = torch.stack([squared_error(weight, range_scale(c * largest, bits), bits) for c in candidates()])
    found = squared_error(weight, weight_scale(weight, bits), bits)
    assert bool((found <= 1.005 * tried.amin(dim=0)).all())
    assert bool((found < 0.8 * squared_error(weight, range_scale(largest, bits), bits)).all())
    multiplier = best_multiplier(weight, largest, bits)
    assert multiplier.shape == (50, 1) and bool(torch.isin(multiplier, candidates()).all())


def test_qs16_weights_have_a_scale_per_output_or_one_for_all() -> None:
    weight = torch.tensor([[1.0, -127.0], [0.5, 0.25]])
    assert torch.allclose(weight_scale(weight, 8), torch.tensor([[1.0], [0.5 / 127]]))
    assert torch.allclose(weight_scale(weight, 8, per_channel=False), torch.tensor([[1.0]]))
    assert weight_scale(torch.randn(5, 3, 2, 2), 4).shape == (5, 1, 1, 1)


def test_qs16_an_activation_has_one_scale_of_its_larger_side() -> None:
    assert float(activation_scale(torch.tensor(-12.7), torch.tensor(3.0), 8)) == pytest.approx(0.1)


def test_qs15_what_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="8, 6, 4 or 2 bits, not 5"):
        check_bits(5)
    with pytest.raises(ValueError, match="integer or torch, not 'onnx'"):
        check_convention("onnx")  # type: ignore[arg-type]
