"""CC-4: products that are the same bits where machines are alike, and nearly the same everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.compression.product import WIDE, fingerprint, product


def both(rank: int, rows: int, columns: int, shift: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """By the BLAS where that may be, and element by element; `shift` elements off the beginning of what was allocated."""
    noise = torch.Generator().manual_seed(rank * rows + columns)
    p, q = (torch.randn(rank, size, generator=noise) for size in (rows, columns))
    found = []
    for alike in (True, False):
        out = torch.empty(shift + rows * columns)[shift:].view(rows, columns)
        product(p, q, out, alike=alike)
        found.append(out)
    return found[0], found[1]


@given(st.integers(1, 16), st.integers(1, 200), st.integers(1, 200))
def test_cc4_both_ways_give_the_product(rank: int, rows: int, columns: int) -> None:
    fast, exact = both(rank, rows, columns)
    assert torch.allclose(fast, exact, atol=1e-4)


@pytest.mark.parametrize(("rank", "rows", "columns"), [(8, 64, 10), (8, 128, 9), (16, WIDE - 1, 500)])
def test_cc4_what_is_narrow_is_never_left_to_the_blas(rank: int, rows: int, columns: int) -> None:
    fast, exact = both(rank, rows, columns)
    assert torch.equal(fast, exact)


@pytest.mark.parametrize("rank", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (65, 1000), (500, 784), (64, 3000)])
def test_cc4_the_bits_do_not_depend_on_where_the_result_lies(rank: int, rows: int, columns: int) -> None:
    fast, _ = both(rank, rows, columns)
    for shift in (1, 3, 4, 16):
        assert torch.equal(both(rank, rows, columns, shift)[0], fast)


def test_cc4_a_fingerprint_is_of_the_settings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = fingerprint()
    assert 0 <= mine < 1 << 63 and fingerprint.__wrapped__() == mine
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert fingerprint.__wrapped__() != mine
