"""CK-4: how the ranks that write a checkpoint together divide it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.checkpoint.shares import divide, num_writers, writer_at

SIZES = st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 10**9), max_size=40)


@given(sizes=SIZES, writers=st.integers(1, 9))
def test_ck4_every_tensor_has_one_writer_and_none_has_much_more_than_another(sizes: dict[str, int], writers: int) -> None:
    shares = divide(sizes, writers)
    assert len(shares) == writers and sorted(name for share in shares for name in share) == sorted(sizes)
    loads = [sum(sizes[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)


@given(sizes=SIZES, writers=st.integers(1, 9), seed=st.randoms())
def test_ck4_a_share_does_not_depend_on_the_order_in_which_a_rank_has_its_tensors(
    sizes: dict[str, int], writers: int, seed: object
) -> None:
    names = list(sizes)
    seed.shuffle(names)  # type: ignore[attr-defined]
    assert divide({name: sizes[name] for name in names}, writers) == divide(sizes, writers)


@given(world=st.integers(1, 40), writers=st.integers(1, 40))
def test_ck4_each_writer_is_one_rank_and_the_first_of_the_ring_leads(world: int, writers: int) -> None:
    writers = min(world, writers)
    found = [writer for index in range(world) if (writer := writer_at(index, world, writers)) is not None]
    assert found == list(range(writers)) and writer_at(0, world, writers) == 0


def test_ck4_writers_are_spread_over_the_hosts() -> None:
    """Eight ranks on four hosts, two neighbours on each."""
    assert [index for index in range(8) if writer_at(index, 8, 4) is not None] == [0, 2, 4, 6]


@pytest.mark.parametrize(("raw_bytes", "writers"), [(0, 1), (99, 1), (199, 1), (200, 2), (799, 7), (10_000, 8)])
def test_ck4_there_are_as_many_writers_as_there_are_shares_worth_writing(raw_bytes: int, writers: int) -> None:
    assert num_writers(raw_bytes, 8, 100) == writers
