"""EP-1 and EP-2: who computes which samples is a pure function of (seed, epoch, step, members, attempt)."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.data.sampler import batch, micro_batches, permutation, position, share, stable_argsort, steps_per_epoch

PINNED = [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]
PINNED_LARGE = "211aba1b96a3ed88"
SEEDS = st.integers(0, 2**63 - 1)
SIZES = st.integers(1, 300)
BATCHES = st.integers(1, 70)


@given(SEEDS, st.integers(0, 1000), SIZES, BATCHES)
def test_ep1_gm3_an_epoch_reads_each_sample_once(seed: int, epoch: int, num_samples: int, global_batch: int) -> None:
    count = steps_per_epoch(num_samples, global_batch)
    batches = [batch(seed, epoch, index, num_samples, global_batch) for index in range(count)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_samples))
    assert all(len(ids) == global_batch for ids in batches[:-1])
    assert 1 <= len(batches[-1]) <= global_batch
    assert all(ids.dtype == np.int64 for ids in batches)


@given(SEEDS, SIZES, BATCHES, st.integers(1, 40), st.integers(0, 9))
def test_ep1_gm3_shares_make_up_the_batch(seed: int, num_samples: int, global_batch: int, world: int, attempt: int) -> None:
    ids = batch(seed, 0, 0, num_samples, global_batch)
    shares = [share(ids, world, rank, attempt) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == sorted(ids.tolist())
    sizes = [len(part) for part in shares]
    assert max(sizes) - min(sizes) <= 1
    for part in shares:
        if len(part):
            start = ids.tolist().index(part[0])
            assert np.array_equal(part, ids[start : start + len(part)])


@given(st.integers(2, 12), st.integers(0, 6))
def test_ep1_another_attempt_moves_every_share(world: int, attempt: int) -> None:
    ids = batch(1, 0, 0, 200, 120)
    before = [share(ids, world, rank, attempt).tolist() for rank in range(world)]
    after = [share(ids, world, rank, attempt + 1).tolist() for rank in range(world)]
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert sorted(before) == sorted(after)


@given(st.integers(0, 500), st.integers(1, 64))
def test_ep2_micro_batches_are_the_share_in_order(num_ids: int, micro_batch: int) -> None:
    ids = np.arange(num_ids, dtype=np.int64)
    pieces = micro_batches(ids, micro_batch)
    assert [sample for piece in pieces for sample in piece.tolist()] == ids.tolist()
    assert len(pieces) == -(-num_ids // micro_batch)
    sizes = [len(piece) for piece in pieces]
    assert all(1 <= size <= micro_batch for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


@given(st.integers(0, 10**6), st.integers(1, 5000))
def test_ep1_position_counts_epochs_and_batches(step: int, per_epoch: int) -> None:
    epoch, index = position(step, per_epoch)
    assert epoch * per_epoch + index == step and 0 <= index < per_epoch


def test_ep1_the_order_is_fixed_for_all_hosts_and_releases() -> None:
    """Every rank, whatever its numpy, must compute these."""
    assert permutation(7, 3, 10).tolist() == PINNED
    assert permutation(7, 3, 10) is permutation(7, 3, 10)
    assert not permutation(7, 3, 10).flags.writeable


def test_ep1_a_large_order_is_fixed_too() -> None:
    assert blake2b(permutation(7, 3, 100_000).tobytes(), digest_size=8).hexdigest() == PINNED_LARGE


@given(st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 7, 8, 2**63, 2**64 - 1]), max_size=200))
def test_ep1_words_that_are_alike_keep_their_order(values: list[int]) -> None:
    words = np.array(values, dtype=np.uint64)
    assert stable_argsort(words).tolist() == sorted(range(len(values)), key=values.__getitem__)


def test_ep1_seed_and_epoch_change_the_order() -> None:
    orders = {permutation(seed, epoch, 50).tobytes() for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("index", [-1, 4])
def test_there_is_no_batch_outside_the_epoch(index: int) -> None:
    with pytest.raises(IndexError, match="of an epoch of 4 batches"):
        batch(0, 0, index, 100, 30)
