"""QN-18, QN-19, QN-25: logarithmic codes of blocks keep signs, zeros and what is no number, within half a step."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from workers.qins.blocks import BLOCK, COARSE, FINE, LOG7, LOG8, BlockCode, Bytes, Floats, most_escapes, num_blocks

CODES = pytest.mark.parametrize("code", [LOG7, LOG8], ids=lambda code: code.name)

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = 2.0**-149


def payload_of(code: BlockCode, values: Floats) -> Bytes:
    payload = np.frombuffer(code.encode(values), np.uint8)
    assert code.least_bytes(len(values)) <= len(payload) <= code.most_bytes(len(values))
    return payload


def back(code: BlockCode, values: Floats) -> Floats:
    return code.decode(payload_of(code, values), len(values))


def step_bound(code: BlockCode, block: Floats) -> float:
    """Largest relative error of a block: half a step of its range, ends rounded outward, and float32's own."""
    magnitudes = np.abs(block[np.isfinite(block) & (block != 0)]).astype(np.float64)
    octaves = math.log2(magnitudes.max() / magnitudes.min()) + 1 / COARSE + (code.levels - 1) / FINE
    return 2 ** (octaves / (code.levels - 1) / 2 + 2**-11) - 1


def assert_close(code: BlockCode, values: Floats, decoded: Floats) -> None:
    assert decoded.dtype == np.float32 and decoded.shape == values.shape
    odd = ~np.isfinite(values) | (values == 0)
    assert np.array_equal(decoded[odd].view(np.uint32), values[odd].view(np.uint32)), "bit for bit"
    assert np.array_equal(np.signbit(decoded), np.signbit(values))
    for start in range(0, len(values), BLOCK):
        block, found = values[start : start + BLOCK], decoded[start : start + BLOCK]
        coded = np.isfinite(block) & (block != 0)
        if coded.any():
            exact, error = np.abs(block[coded]).astype(np.float64), np.abs(found[coded].astype(np.float64) - block[coded])
            assert np.all(error <= step_bound(code, block) * exact + SMALLEST)
            assert np.all(np.isfinite(found[coded]))


@CODES
@given(
    hnp.arrays(
        np.float32,
        st.integers(0, 300),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda x: math.copysign(1, x) == 1 or x),
    )
)
def test_qn25_any_finite_numbers_are_within_the_bound_of_their_block(code: BlockCode, values: Floats) -> None:
    """Subnormals, the largest and the smallest among them, over all decades."""
    assert_close(code, values, back(code, values))


@CODES
@given(st.integers(0, 2**32 - 1), st.integers(1, 1000), st.floats(0, 12))
def test_qn18_numbers_as_weights_have_them(code: BlockCode, seed: int, n: int, decades: float) -> None:
    chance = np.random.default_rng(seed)
    values = (chance.standard_normal(n) * 10 ** (decades * chance.uniform(-1, 1, n))).astype(np.float32)
    assert_close(code, values, back(code, values))


@CODES
def test_qn19_zeros_and_what_is_no_number_touch_no_range_and_come_back_bit_for_bit(code: BlockCode) -> None:
    chance = np.random.default_rng(1)
    plain = chance.normal(0, 0.02, 10 * BLOCK).astype(np.float32)
    odd = plain.copy()
    odd[[3, 200, 201, 700]] = [math.nan, math.inf, -math.inf, -0.0]
    odd[[5, 250]] = 0.0
    odd.view(np.uint32)[900] = 0xFFC12345  # a NaN with a payload and a sign
    decoded = back(code, odd)
    assert_close(code, odd, decoded)
    rest = np.setdiff1d(np.arange(len(odd)), [3, 5, 200, 201, 250, 700, 900])
    assert np.array_equal(decoded[rest], back(code, np.where(np.isin(np.arange(len(odd)), rest), plain, 0.0))[rest])


@CODES
@pytest.mark.parametrize("value", [1.0, -1.0, 1e-8, SMALLEST, LARGEST, -LARGEST, 0.1, 3.0])
def test_qn19_equal_magnitudes_are_no_special_case(code: BlockCode, value: float) -> None:
    values = np.full(BLOCK + 5, value, np.float32)
    values[::3] *= -1
    assert_close(code, values, back(code, values))


@CODES
@pytest.mark.parametrize("n", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
def test_qn18_payloads_are_as_long_as_said(code: BlockCode, n: int) -> None:
    values = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    assert len(code.encode(values)) == code.least_bytes(n)
    assert_close(code, values, back(code, values))
    assert np.array_equal(back(code, np.zeros(n, np.float32)), np.zeros(n, np.float32))


@CODES
def test_qn19_more_than_one_in_a_hundred_is_refused_with_the_count(code: BlockCode) -> None:
    values = np.ones(1000, np.float32)
    values[:10] = math.nan
    assert np.isnan(back(code, values)).sum() == 10 == most_escapes(1000)
    values[10] = -0.0
    with pytest.raises(ValueError, match="11 of 1000 numbers of w are NaN, infinite or -0"):
        code.encode(values, "w")
    assert np.isinf(back(code, np.array([math.inf], np.float32))).all(), "one is always allowed"


@pytest.mark.parametrize(
    ("code", "bits", "error", "nrmse"), [(LOG7, 8.25, 0.0135, 0.0158), (LOG8, 9.25, 0.0068, 0.0078)], ids=["log7", "log8"]
)
def test_qn18_what_a_million_weights_lose(code: BlockCode, bits: float, error: float, nrmse: float) -> None:
    """N(0, 0.02): mean relative error and NRMSE about those of the requirement (1.23 and 1.42 %; 0.61 and 0.70 %)."""
    values = np.random.default_rng(0).normal(0, 0.02, 1_000_000).astype(np.float32)
    payload = payload_of(code, values)
    assert 8 * len(payload) / len(values) == pytest.approx(bits, abs=0.01)
    decoded = code.decode(payload, len(values)).astype(np.float64)
    exact = values.astype(np.float64)
    assert np.mean(np.abs(decoded - exact) / np.abs(exact)) <= error
    assert np.linalg.norm(decoded - exact) / np.linalg.norm(exact) <= nrmse


def test_qn18_decoding_is_whole_numbers_and_a_table() -> None:
    """The same bits on every machine: powers of two times 2048 constants."""
    values = np.array([0.75, -1.5, 3.0, 6.0], np.float32)
    payload = payload_of(LOG8, values)
    (lowest,), (step,) = payload[:2].view("<i2"), payload[2:4].view("<u2")
    exponents = int(lowest) * (FINE // COARSE) + (payload[4:8].astype(int) - 1) * int(step)
    expected = [np.float32(np.exp2((each % FINE) / FINE)) * 2.0 ** (each // FINE) for each in exponents]
    assert np.abs(LOG8.decode(payload, 4)).tolist() == expected


@CODES
@given(data=st.data())
def test_qn23_hostile_payloads_are_refused_or_are_numbers(code: BlockCode, data: st.DataObject) -> None:
    """Whatever bytes there are: a sentence, or n numbers; nothing else, and no more memory than they take."""
    n = data.draw(st.integers(0, 300))
    values = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    if n > 4:
        values[3] = math.nan
    payload = bytearray(code.encode(values))
    for _ in range(data.draw(st.integers(1, 8))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for each in (bytes(payload), bytes(payload[:cut]), bytes(payload) + b"\0" * 8):
        try:
            found = code.decode(np.frombuffer(each, np.uint8), n)
        except ValueError:
            continue
        assert found.shape == (n,) and found.dtype == np.float32


def test_qn18_blocks_of_none_are_none() -> None:
    assert num_blocks(0) == 0 and num_blocks(1) == 1 and num_blocks(BLOCK + 1) == 2
