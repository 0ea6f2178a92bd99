"""Windows of text: each byte is predicted once, and a micro-batch is read at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.data.test_checks import TEXT, failed
from workers.data import windows
from workers.data.checks import judge
from workers.data.hashes import sample_hashes
from workers.data.measurements import measure_splits
from workers.data.record import RecordedDataset
from workers.errors import DataError


@given(st.binary(min_size=2, max_size=300), st.integers(1, 12))
def test_each_byte_but_the_first_is_predicted_once(text: bytes, context: int) -> None:
    if len(text) <= context:
        with pytest.raises(DataError, match=f"has {len(text)} bytes, but a window has {context + 1}"):
            windows.cut(text, context)
        return
    inputs, targets = windows.dataset(windows.cut(text, context)).tensors
    assert inputs.dtype == targets.dtype == torch.uint8
    covered = len(inputs) * context
    assert len(text) - 1 - context < covered <= len(text) - 1
    assert bytes(inputs.flatten().tolist()) == text[:covered]
    assert bytes(targets.flatten().tolist()) == text[1 : covered + 1]


@given(st.binary(min_size=9, max_size=200), st.integers(1, 9))
def test_a_stride_says_where_windows_begin(text: bytes, stride: int) -> None:
    rows = windows.cut(text, 8, stride)
    assert [bytes(row.tolist()) for row in rows] == [text[i : i + 9] for i in range(0, len(text) - 8, stride)]


def test_a_micro_batch_is_read_at_once_and_recorded() -> None:
    data = windows.dataset(windows.cut(bytes(range(200)), 8))
    recorded = RecordedDataset(data)
    columns = recorded.columns(np.array([3, 0, 7]))
    assert columns is not None and [column.shape for column in columns] == [(3, 8), (3, 8)]
    assert columns[0][:, 0].tolist() == [24, 0, 56] and columns[1][:, -1].tolist() == [32, 8, 64]
    assert recorded.take_reads() == [3, 0, 7]


@given(st.binary(min_size=9, max_size=120), st.binary(min_size=9, max_size=120))
def test_qs1_held_out_windows_without_those_of_training_are_disjoint(held_out: bytes, train: bytes) -> None:
    train_rows, rows = windows.cut(train + held_out[:9], 8, 1), windows.cut(held_out, 8, 1)
    kept = windows.without(rows, train_rows)
    seen = {bytes(row.tolist()) for row in train_rows}
    assert [bytes(row.tolist()) for row in kept] == [row for row in map(bytes, rows.tolist()) if row not in seen]
    assert len(kept) < len(rows)
    hashes = {"train": sample_hashes(train_rows), "test": sample_hashes(kept)}
    assert failed(judge(measure_splits(hashes, 0, 1), TEXT)) == {}
    assert failed(judge(measure_splits({**hashes, "test": sample_hashes(rows)}, 0, 1), TEXT)).keys() == {"test_in_train"}
