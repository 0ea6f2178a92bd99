"""QS-20: packed codes take the bytes they should and come back exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.qat.packing import pack, packed_columns, unpack
from workers.qat.scales import BITS, code_limits


@given(st.data(), st.sampled_from(BITS), st.integers(1, 6), st.integers(1, 19))
def test_qs20_codes_survive_packing(data: st.DataObject, bits: int, rows: int, columns: int) -> None:
    smallest, largest = code_limits(bits)
    values = data.draw(st.lists(st.integers(smallest, largest), min_size=rows * columns, max_size=rows * columns))
    codes = torch.tensor(values, dtype=torch.int8).reshape(rows, columns)
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_columns(columns, bits))
    assert packed.dtype == (torch.int8 if bits == 8 else torch.uint8)
    assert torch.equal(unpack(packed, bits, columns), codes)


@pytest.mark.parametrize("bits", BITS)
def test_qs20_every_code_survives_in_every_place(bits: int) -> None:
    smallest, largest = code_limits(bits)
    every = torch.arange(smallest, largest + 1, dtype=torch.int8)
    codes = torch.stack([every.roll(shift) for shift in range(4)])
    assert torch.equal(unpack(pack(codes, bits), bits, codes.shape[1]), codes)


@pytest.mark.parametrize(("bits", "codes", "stored"), [(8, 12, 12), (6, 4, 3), (6, 5, 6), (4, 2, 1), (4, 3, 2), (2, 4, 1)])
def test_qs20_bytes_of_a_row(bits: int, codes: int, stored: int) -> None:
    assert packed_columns(codes, bits) == stored


def test_qs20_the_layout_is_from_the_lowest_bits_up() -> None:
    assert pack(torch.tensor([[1, -1]], dtype=torch.int8), 4).tolist() == [[0xF1]]
    assert pack(torch.tensor([[1, -2, 0, -1]], dtype=torch.int8), 2).tolist() == [[0b11_00_10_01]]
    assert pack(torch.tensor([[1, 0, 0, -32]], dtype=torch.int8), 6).tolist() == [[1, 0, 0b1000_0000]]


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"codes of 4 bits lie in -8\.\.7, not 0\.\.8"):
        pack(torch.from_numpy(np.array([[0, 8]], dtype=np.int8)), 4)
