"""QS-30 and QS-39: rates and trace correlation, of sums that ranks add."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from workers.qat.fidelity import correlation, rate_change, raw_correlation, spike_sums
from workers.qat.layers import QuantActivation, QuantLinear, set_switches
from workers.qat.ptq import calibrate
from workers.spiking.networks import SpikingMLP
from workers.spiking.traces import traces


def drawn(seed: int, rate: float = 0.2, shape: tuple[int, int, int] = (12, 7, 5)) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def added(parts: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(part[key] for part in parts) for key in parts[0]}


@given(st.integers(0, 1000))
def test_qs30_correlation_is_pearsons_over_traces(seed: int) -> None:
    on, off = drawn(seed), drawn(seed + 1)
    x, y = traces(on, 0.9).double().flatten(), traces(off, 0.9).double().flatten()
    sums = spike_sums({"a": on}, {"a": off})
    assert correlation(sums, "a") == pytest.approx(float(torch.corrcoef(torch.stack((x, y)))[0, 1]), abs=1e-6)
    raw = torch.corrcoef(torch.stack((on.flatten(), off.flatten())).double())[0, 1]
    assert raw_correlation(sums, "a") == pytest.approx(float(raw), abs=1e-6)


@given(st.integers(0, 1000), st.integers(1, 9))
def test_qs39_one_rank_and_many_come_to_one_result(seed: int, ranks: int) -> None:
    on, off = drawn(seed, 0.1), drawn(seed, 0.12)
    alone = spike_sums({"a": on}, {"a": off})
    shards = zip(on.tensor_split(ranks, dim=1), off.tensor_split(ranks, dim=1), strict=True)  # some are empty
    gang = added([spike_sums({"a": a}, {"a": b}) for a, b in shards])
    assert correlation(gang, "a") == pytest.approx(correlation(alone, "a"), abs=1e-9)
    assert rate_change(gang, "a") == rate_change(alone, "a")


@given(st.integers(0, 1000), st.integers(2, 9))
def test_qs39_sums_of_the_same_chunks_are_the_same_bits_on_any_number_of_ranks(seed: int, ranks: int) -> None:
    chunks = [spike_sums({"a": drawn(seed + n)}, {"a": drawn(seed + n + 1)}) for n in range(2 * ranks)]
    shares = [chunks[rank * len(chunks) // ranks : (rank + 1) * len(chunks) // ranks] for rank in range(ranks)]
    assert added([added(share) for share in reversed(shares)]) == added(chunks)


def test_qs30_a_spike_one_step_later_costs_traces_little_and_raw_spikes_much() -> None:
    off = drawn(3, 0.1, (60, 5, 8))
    sums = spike_sums({"a": off.roll(1, dims=0)}, {"a": off})
    assert correlation(sums, "a") > 0.8 > 0.2 > raw_correlation(sums, "a")


def test_qs30_constant_traces_correlate_if_they_are_equal() -> None:
    silent, busy = torch.zeros(5, 2, 3), drawn(1, 0.5, (5, 2, 3))
    for on, off, expected in [(silent, silent, 1.0), (busy, silent, 0.0), (silent, busy, 0.0)]:
        assert correlation(spike_sums({"a": on}, {"a": off}), "a") == expected
    assert correlation(spike_sums({"a": busy}, {"a": busy}), "a") == pytest.approx(1.0)


def test_qs29_the_rate_change_is_relative_and_of_each_layer() -> None:
    off, on = torch.zeros(2, 2, 10), torch.zeros(2, 2, 10)
    off[0], on[0], on[1, 0, :2] = 1.0, 1.0, 1.0
    sums = spike_sums({"a": on, "b": off}, {"a": off, "b": off})
    assert rate_change(sums, "a") == pytest.approx(0.1) and rate_change(sums, "b") == 0.0
    silent = torch.zeros_like(off)
    assert rate_change(spike_sums({"a": on}, {"a": silent}), "a") == math.inf
    assert rate_change(spike_sums({"a": silent}, {"a": silent}), "a") == 0.0


def test_qs30_the_same_weights_fewer_bits_less_correlation() -> None:
    found = []
    for bits in (8, 4, 2):
        torch.manual_seed(0)
        model = SpikingMLP(
            (20, 40, 5),
            make_linear=lambda inputs, outputs, bits=bits: QuantLinear(inputs, outputs, bits=bits),  # type: ignore[misc]
            wrap_current=lambda name: QuantActivation(8),
            weight_std=0.3,
        )
        inputs = drawn(9, 0.3, (25, 16, 20))
        calibrate(model, [inputs])
        with torch.no_grad():
            on = model(inputs).spikes
            set_switches(model, weights=False, activations=False, state=False, observing=False)
            off = model(inputs).spikes
        sums = spike_sums({"hidden": on[0]}, {"hidden": off[0]})
        assert float(off[0].sum()) > 100
        found.append(correlation(sums, "hidden"))
    assert found[0] > 0.95 and found[0] > found[1] > found[2]
