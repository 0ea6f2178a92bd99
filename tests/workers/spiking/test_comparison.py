"""The encoders side by side, and the statistics that tell them apart."""

from __future__ import annotations

import math

import pytest
import torch

from workers.spiking.comparison import describe, encode_all
from workers.spiking.encoders import METHODS, Encoding


def test_qs4_encode_all_returns_every_method() -> None:
    x, ids = torch.rand(4, 20), torch.arange(4)
    results = encode_all(x, ids, seed=1, epoch=0)
    assert list(results) == list(METHODS)
    for method, result in results.items():
        assert torch.equal(result.spikes, Encoding(method, 128).encode(x, ids, 1, 0))
        assert result.spike_rate == pytest.approx(float(result.spikes.mean()), rel=1e-5)
        assert result.sparsity == pytest.approx(1 - result.spike_rate)
    assert results["temporal"].spike_rate == pytest.approx(1 / 128)


def test_qs4_statistics_of_a_small_example() -> None:
    spikes = torch.zeros(4, 1, 3)
    spikes[1, 0, 0] = spikes[3, 0, 0] = spikes[2, 0, 1] = 1
    found = describe(spikes)
    assert found.spike_rate == pytest.approx(0.25) and found.sparsity == pytest.approx(0.75)
    assert found.mean_first_spike == pytest.approx(7 / 3)
    assert found.time_std == pytest.approx(math.sqrt(2 / 3))
    assert found.entropy == pytest.approx(-0.25 * math.log2(0.25) - 0.75 * math.log2(0.75))


def test_qs4_silence_has_no_entropy_and_the_latest_first_spike() -> None:
    found = describe(torch.zeros(6, 2, 3))
    assert (found.spike_rate, found.mean_first_spike, found.time_std, found.entropy) == (0, 6, 0, 0)
