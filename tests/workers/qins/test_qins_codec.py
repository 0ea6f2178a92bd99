"""QN-2 to QN-6: codec v1 on its formulas, its test vectors, its error bounds and its refusals."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from workers.qins.codec import CHUNK, QINSCodec, magnitudes

SIX = [-0.490955, 0.25, -0.1, 0.05, -0.01, 0.001]


@st.composite
def weights(draw: st.DrawFn, smallest: float = 1e-8) -> Tensor:
    """float32 of any shape over up to 40 decades, both signs, at least two magnitudes far enough apart."""
    shape = draw(st.lists(st.integers(1, 7), max_size=4))
    count = max(2, math.prod(shape))
    low = draw(st.floats(math.log(smallest), 30))
    spread = draw(st.floats(0.02, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logarithms = low + spread * torch.rand(count, generator=generator, dtype=torch.float64)
    logarithms[:2] = torch.tensor([low, low + spread])
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    flat = (signs * logarithms.clamp(max=88.7).exp()).float()
    return flat.view(shape) if math.prod(shape) == count else flat


@pytest.mark.parametrize(
    ("values", "stored", "low", "decoded"),
    [
        (SIX, [1, 29, 66, 95, 161, 255], -6.907755, [-0.490955, 0.247966, -0.100552, 0.049561, -0.009906, 0.001]),
        (
            [*SIX, 0.0, 1e-9],
            [1, 11, 24, 34, 57, 90, 255, 255],
            -18.420681,
            [-0.490955, 0.244481, -0.098766, 0.049183, -0.009894, 0.000991, 0.0, 1e-8],
        ),
    ],
    ids=["six", "with zero and 1e-9"],
)
def test_qn4_test_vectors(values: list[float], stored: list[int], low: float, decoded: list[float]) -> None:
    code = QINSCodec.encode(torch.tensor(values))
    assert code.stored.tolist() == stored
    assert code.sign.tolist() == [int(np.sign(value)) for value in values]
    assert (float(code.log_min), float(code.log_max)) == pytest.approx((low, -0.711403), abs=1e-6)
    assert QINSCodec.decode(*code).tolist() == pytest.approx(decoded, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(weights())
def test_qn2_qn3_codes_and_values_follow_the_formulas_in_float64(tensor: Tensor) -> None:
    code = QINSCodec.encode(tensor)
    assert (code.stored.dtype, code.sign.dtype) == (torch.uint8, torch.int8)
    assert code.stored.shape == code.sign.shape == tensor.shape
    assert all(end.dtype == torch.float32 and end.dim() == 0 for end in (code.log_min, code.log_max))
    low, high = float(code.log_min), float(code.log_max)
    for w, stored, d in zip(
        tensor.flatten().tolist(), code.stored.flatten().tolist(), QINSCodec.decode(*code).flatten().tolist(), strict=True
    ):
        n = (math.log(max(abs(w), 1e-8)) - low) / (high - low)
        exact = min(max(255 - 254 * n, 1.0), 255.0)
        assert abs(stored - exact) <= 0.5 + 1e-9
        assert d == pytest.approx(math.copysign(math.exp(low + (255 - stored) / 254 * (high - low)), w), rel=1e-6)


@settings(max_examples=200, deadline=None)
@given(weights())
def test_qn5_relative_error_stays_below_half_a_step(tensor: Tensor) -> None:
    code = QINSCodec.encode(tensor)
    w = tensor.double()
    spread = float(code.log_max) - float(code.log_min)
    float32_rounding = 2.0**-23 * max(1.0, abs(float(code.log_min)), abs(float(code.log_max)))
    relative = ((QINSCodec.decode(*code).double() - w) / w).abs()
    assert float(relative.max()) <= math.expm1(spread / 508 + float32_rounding) + 2.0**-23


def test_qn5_mean_error_is_a_quarter_step_on_normal_weights() -> None:
    tensor = 0.02 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    code = QINSCodec.encode(tensor)
    relative = ((QINSCodec.decode(*code) - tensor) / tensor).abs().mean()
    assert float(relative) == pytest.approx((float(code.log_max) - float(code.log_min)) / 1016, rel=0.02)


@settings(max_examples=200, deadline=None)
@given(weights(), st.booleans())
def test_qn4_a_decoded_tensor_has_the_same_codes(tensor: Tensor, has_zero: bool) -> None:
    if has_zero:
        tensor = torch.cat((tensor.flatten(), torch.tensor([0.0, -0.0, 1e-12])))
    code = QINSCodec.encode(tensor)
    again = QINSCodec.encode(QINSCodec.decode(*code))
    assert torch.equal(again.stored, code.stored) and torch.equal(again.sign, code.sign)


@settings(max_examples=200, deadline=None)
@given(weights(1e-6), st.floats(1e-7, 0.1), st.booleans())
def test_qn5_with_a_floor_the_bound_holds_from_it_on_and_what_is_below_comes_back_as_it(
    tensor: Tensor, floor: float, has_zero: bool
) -> None:
    if has_zero:
        tensor = torch.cat((tensor.flatten(), torch.tensor([0.0, -0.0])))
    code = QINSCodec.encode(tensor, floor=floor)
    decoded, w = QINSCodec.decode(*code).double(), tensor.double()
    assert torch.equal(decoded.sign(), w.sign())
    lowest = max(floor * float(w.abs().max()), 1e-8)
    spread = float(code.log_max) - float(code.log_min)
    assert spread <= -math.log(floor) + 1e-5
    float32_rounding = 2.0**-23 * max(1.0, abs(float(code.log_min)), abs(float(code.log_max)))
    above, below = w.abs() >= lowest, (w.abs() < lowest) & (w != 0)
    relative = (decoded[above] / w[above] - 1).abs()
    assert float(relative.max()) <= math.expm1(spread / 508 + float32_rounding) + 2.0**-23
    assert decoded[below].abs().tolist() == pytest.approx([lowest] * int(below.sum()), rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(weights(1e-6), st.floats(1e-6, 0.1))
def test_qn4_what_was_encoded_with_a_floor_has_the_same_codes_again(tensor: Tensor, floor: float) -> None:
    code = QINSCodec.encode(tensor, floor=floor)
    for again in (QINSCodec.encode(QINSCodec.decode(*code), floor=floor), QINSCodec.encode(QINSCodec.decode(*code))):
        assert torch.equal(again.stored, code.stored) and torch.equal(again.sign, code.sign)


def test_qn2_without_a_floor_or_with_one_below_the_smallest_the_code_is_the_plain_one() -> None:
    tensor = torch.tensor(SIX)
    for floor in (0.0, 1e-3):
        ours, plain = QINSCodec.encode(tensor, floor=floor), QINSCodec.encode(tensor)
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_qn2_with_a_floor_zeros_do_not_set_the_range() -> None:
    tensor = torch.tensor([*SIX, 0.0, -0.0, 1e-9])
    code = QINSCodec.encode(tensor, floor=1e-3)
    assert float(code.log_min) == pytest.approx(math.log(0.490955e-3), abs=1e-6)
    assert QINSCodec.decode(*code)[6:].tolist() == pytest.approx([0.0, 0.0, 0.490955e-3], rel=1e-5)


@pytest.mark.parametrize("floor", [-1e-9, 0.11, 1.0, math.nan, math.inf])
def test_qn6_a_floor_that_is_no_small_share_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match=r"share of the largest magnitude; write 0 to 0\.1"):
        QINSCodec.encode(torch.tensor([1.0, 2.0]), floor=floor)


def test_qn4_codes_do_not_depend_on_where_chunks_are_cut() -> None:
    tensor = torch.randn(CHUNK + 3, generator=torch.Generator().manual_seed(1))
    code = QINSCodec.encode(tensor)
    ends = (float(code.log_min), float(code.log_max))
    n = (tensor[-5:].double().abs().log() - ends[0]) / (ends[1] - ends[0])
    assert code.stored[-5:].tolist() == (255 - 254 * n).round().to(torch.int64).tolist()


@settings(max_examples=50, deadline=None)
@given(weights())
def test_qn2_any_strides_give_the_codes_of_what_is_seen(tensor: Tensor) -> None:
    rows = tensor.reshape(-1, 1).repeat(1, 3).t()
    code, plain = QINSCodec.encode(rows), QINSCodec.encode(rows.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(code, plain, strict=True))


def test_qn3_the_table_equals_the_formula_and_large_magnitudes_have_small_codes() -> None:
    table = magnitudes(-9.0, 1.5)
    assert len(table) == 256
    for code in range(1, 256):
        assert float(table[code]) == float(np.float32(math.exp(-9.0 + (255 - code) / 254 * 10.5)))
    assert bool((table[1:].diff() < 0).all())


def test_qn3_output_is_float32_and_cast_on_request() -> None:
    code = QINSCodec.encode(torch.tensor([1.0, 2.0]))
    assert QINSCodec.decode(*code).dtype == torch.float32
    assert QINSCodec.decode(*code, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_qn5_the_largest_float32_comes_back_finite() -> None:
    largest = torch.finfo(torch.float32).max
    back = QINSCodec.decode(*QINSCodec.encode(torch.tensor([largest, -largest, 1e-30])))
    assert bool(torch.isfinite(back).all()) and float(back[0]) == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.tensor([1.0, math.nan]), "NaN"),
        (torch.tensor([1.0, math.inf]), "Inf"),
        (torch.tensor([1.0, -math.inf]), "Inf"),
        (torch.empty(0, 3), "empty"),
        (torch.tensor([1, 2]), "int64"),
        (torch.tensor([True, False]), "bool"),
        (torch.tensor([1 + 2j, 3j]), "complex64"),
        (torch.ones(3), "equal"),
        (torch.zeros(3), "equal"),
        (torch.tensor(0.5), "equal"),
        (torch.tensor([1.0, 1.0 + 2**-23]) * 1e8, "equal"),
        (torch.tensor([1.0, 2.0], dtype=torch.float64), "float64.*cast=True"),
        (torch.tensor([1.0, 2.0]).half(), "float16.*cast=True"),
    ],
)
def test_qn6_what_v1_cannot_hold_is_refused_by_name_and_reason(tensor: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=f"layer.weight.*{reason}") as refusal:
        QINSCodec.encode(tensor, name="layer.weight")
    assert "\n" not in str(refusal.value)


def test_qn6_float64_beyond_float32_is_refused_after_the_cast() -> None:
    with pytest.raises(ValueError, match="Inf"):
        QINSCodec.encode(torch.tensor([1e300, 1.0], dtype=torch.float64), cast=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_qn6_a_declared_cast_gives_the_codes_of_the_float32(dtype: torch.dtype) -> None:
    tensor = torch.randn(50, generator=torch.Generator().manual_seed(2)).to(dtype)
    ours, plain = QINSCodec.encode(tensor, cast=True), QINSCodec.encode(tensor.float())
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@settings(max_examples=100, deadline=None)
@given(st.floats(2.0**-26, 2.0**100, width=32), st.integers(1, 5))
def test_qn6_allow_constant_stores_no_range(value: float, count: int) -> None:
    tensor = torch.tensor([value, -value, *[value] * count])
    code = QINSCodec.encode(tensor, allow_constant=True)
    assert code.stored.tolist() == [1] * len(tensor) and float(code.log_max) == float(code.log_min)
    assert torch.allclose(QINSCodec.decode(*code), tensor, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tensor", [torch.zeros(2, 2), torch.tensor(-0.25)], ids=["zeros", "scalar"])
def test_qn6_allow_constant_keeps_zeros_and_scalars(tensor: Tensor) -> None:
    back = QINSCodec.decode(*QINSCodec.encode(tensor, allow_constant=True))
    assert back.shape == tensor.shape and torch.allclose(back, tensor, rtol=1e-6, atol=0)


def test_qn3_what_is_no_code_is_refused() -> None:
    stored, sign, low, high = QINSCodec.encode(torch.tensor([1.0, 2.0]))
    for wrong, reason in (
        ((torch.zeros_like(stored), sign, low, high), "code 0"),
        ((stored.int(), sign, low, high), "uint8"),
        ((stored, sign[:1], low, high), "one shape"),
        ((stored, sign, low.double(), high), "float32 scalars"),
        ((stored, sign, high, low), "no range"),
        ((stored, sign, low, low / 0), "no range"),
    ):
        with pytest.raises(ValueError, match=reason):
            QINSCodec.decode(*wrong)


def test_qn1_codes_are_at_rest_only_for_their_sums_mean_nothing() -> None:
    """The code is no linear map: what a sum of weights is stored as is not the sum of what they are stored as."""
    first, second = torch.tensor([0.5, 0.25, 0.125]), torch.tensor([0.125, 0.5, 0.25])
    codes = [QINSCodec.encode(each) for each in (first, second, first + second)]
    added = codes[0].stored.int() + codes[1].stored.int()
    assert not torch.equal(added, codes[2].stored.int())
    decoded = [QINSCodec.decode(*each) for each in codes]
    assert torch.allclose(decoded[0] + decoded[1], first + second, rtol=0.02)
    assert torch.allclose(decoded[2], first + second, rtol=0.02)
