"""EP-3: randomness depends on (seed, step, sample id), never on rank, world or the cut of a batch."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from workers.randomness import (
    SampleDropout,
    fold,
    sample_key_tensor,
    sample_keys,
    seed_sample,
    seed_torch,
    uniform,
)

NUM_FEATURES = 33


def dropped(ids: Tensor, seed: int = 5, step: int = 9, layers: int = 1) -> Tensor:
    """What is left of ones after `layers` dropouts in a row: [B, layers * F]."""
    dropout = SampleDropout(0.4)
    with sample_keys(seed, step, ids):
        return torch.cat([dropout(torch.ones(len(ids), NUM_FEATURES)) for _ in range(layers)], dim=1)


def test_ep3_the_known_values_of_splitmix64() -> None:
    """The first outputs for seed 0, from the reference implementation in C."""
    assert fold(0) == 0xE220A8397B1DCDAF
    assert fold(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40), st.lists(st.integers(0, 2**62), min_size=1, max_size=9))
def test_ep3_tensor_and_scalar_hash_agree(seed: int, step: int, ids: list[int]) -> None:
    keys = sample_key_tensor(seed, step, torch.tensor(ids))
    assert [key % 2**64 for key in keys.tolist()] == [fold(seed, step, sample) for sample in ids]
    assert torch.equal(keys, sample_key_tensor(seed, step, np.array(ids)))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=24, unique=True), st.data())
def test_ep3_dropout_of_a_sample_is_the_same_in_any_cut_of_the_batch(ids: list[int], data: st.DataObject) -> None:
    whole = dict(zip(ids, dropped(torch.tensor(ids), layers=2), strict=True))
    order = data.draw(st.permutations(ids))
    cut = data.draw(st.integers(0, len(ids)))
    for part in (order[:cut], order[cut:]):
        if part:
            for sample, row in zip(part, dropped(torch.tensor(part), layers=2), strict=True):
                assert torch.equal(row, whole[sample])


def test_ep3_dropout_differs_between_seeds_steps_samples_and_layers() -> None:
    ids = torch.arange(8)
    base = dropped(ids)
    assert not torch.equal(base, dropped(ids, seed=6))
    assert not torch.equal(base, dropped(ids, step=10))
    assert not torch.equal(base[0], base[1])
    first, second = dropped(ids, layers=2).chunk(2, dim=1)
    assert torch.equal(first, base) and not torch.equal(first, second)


def test_ep3_uniform_is_uniform() -> None:
    draws = uniform(sample_key_tensor(1, 2, torch.arange(500)), 200, stream=0)
    assert draws.dtype == torch.float32 and draws.shape == (500, 200)
    assert float(draws.min()) >= 0.0 and float(draws.max()) < 1.0
    counts = torch.histc(draws, bins=10, min=0.0, max=1.0)
    chi_squared = float(((counts - 10_000) ** 2 / 10_000).sum())
    assert chi_squared < 27.9  # 0.1 % for 9 degrees of freedom
    assert abs(float(torch.corrcoef(torch.stack((draws[:, :-1].flatten(), draws[:, 1:].flatten())))[0, 1])) < 0.02


def test_dropout_keeps_the_mean_and_is_the_identity_in_evaluation() -> None:
    dropout = SampleDropout(0.25)
    x = torch.ones(400, 10, 10)
    with sample_keys(0, 0, torch.arange(400)):
        y = dropout(x)
    assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert abs(float(y.mean()) - 1.0) < 0.02
    assert dropout.eval()(x) is x
    assert SampleDropout(0.0)(x) is x


def test_dropout_refuses_what_it_cannot_key() -> None:
    with pytest.raises(RuntimeError, match="does not know which samples"):
        SampleDropout(0.5)(torch.ones(2, 3))
    with pytest.raises(ValueError, match="2 rows for 3 samples"), sample_keys(0, 0, torch.arange(3)):
        SampleDropout(0.5)(torch.ones(2, 3))
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        SampleDropout(1.0)


def test_sample_keys_belong_to_their_thread() -> None:
    failures: list[str] = []

    def forward() -> None:
        try:
            SampleDropout(0.5)(torch.ones(2, 3))
        except RuntimeError as error:
            failures.append(str(error))

    with sample_keys(0, 0, torch.arange(2)):
        thread = threading.Thread(target=forward)
        thread.start()
        thread.join()
    assert len(failures) == 1


def test_ep3_seed_torch_repeats_a_micro_batch_of_plain_dropout() -> None:
    dropout, x = nn.Dropout(0.5), torch.ones(4, 100)

    def forward(step: int, ids: Tensor) -> Tensor:
        seed_torch(3, step, ids)
        out: Tensor = dropout(x)
        return out

    first = forward(1, torch.arange(4))
    assert torch.equal(first, forward(1, torch.arange(4)))
    assert not torch.equal(first, forward(2, torch.arange(4)))
    assert not torch.equal(first, forward(1, torch.arange(1, 5)))


def test_ep3_seed_sample_repeats_every_generator() -> None:
    def draw(sample: int) -> tuple[float, float, float]:
        seed_sample(3, 1, sample)
        return random.random(), float(np.random.random()), float(torch.rand(()))

    first = draw(7)
    assert first == draw(7)
    assert all(a != b for a, b in zip(first, draw(8), strict=True))
