"""64-bit hashes of samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from workers.data import hashes
from workers.data.hashes import sample_hashes
from workers.randomness import mix

GOLDEN = 0x9E3779B97F4A7C15


def test_qs1_a_hash_is_the_formula_of_its_docstring() -> None:
    row = bytes(range(1, 12))
    words = [int.from_bytes(row[:8], "little"), int.from_bytes(row[8:], "little")]
    total = sum(mix((word + (j + 1) * GOLDEN) % 2**64) for j, word in enumerate(words)) % 2**64
    assert sample_hashes(torch.tensor([list(row)], dtype=torch.uint8)).tolist() == [mix(total)]


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=3, max_side=11), elements=st.integers(0, 3)))
def test_qs1_hashes_are_equal_exactly_where_samples_are(values: np.ndarray) -> None:
    found = sample_hashes(torch.from_numpy(values))
    assert found.dtype == np.uint64 and found.shape == (len(values),)
    rows = [row.tobytes() for row in values]
    assert len(set(found.tolist())) == len(set(rows))
    assert all((a == b) == (x == y) for a, x in zip(found, rows, strict=True) for b, y in zip(found, rows, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_qs1_a_hash_does_not_depend_on_the_neighbours(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = (torch.arange(60).view(20, 3) * 7 - 90).to(dtype)
    whole = sample_hashes(x)
    monkeypatch.setattr(hashes, "_ROWS_BYTES", 40)
    assert np.array_equal(sample_hashes(x), whole)
    assert np.array_equal(np.concatenate([sample_hashes(x[:7]), sample_hashes(x[7:])]), whole)
    assert len(set(whole.tolist())) == 20


def test_qs1_the_sign_of_zero_makes_no_other_sample() -> None:
    assert sample_hashes(torch.tensor([[0.0, 1.0]])) == sample_hashes(torch.tensor([[-0.0, 1.0]]))


def test_the_order_of_words_counts() -> None:
    first, second = sample_hashes(torch.tensor([[1, 2], [2, 1]]))
    assert first != second


def test_no_samples_have_no_hashes() -> None:
    assert sample_hashes(torch.empty(0, 5)).shape == (0,)
