"""Spike encoders: the definitions, and spikes that depend on the sample and not on the batch it is in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.randomness import fold
from workers.spiking.encoders import METHODS, Encoding, encode

VALUES = st.lists(st.floats(-0.5, 1.5, width=32), min_size=1, max_size=12)
ALL = pytest.mark.parametrize("method", METHODS)


def spikes_of(value: float, **settings: object) -> Tensor:
    """The spikes [T] of one value."""
    return Encoding(**settings).encode(torch.tensor([[value]]), torch.tensor([3]), 0, 0)[:, 0, 0]  # type: ignore[arg-type]


@ALL
def test_qs2_spikes_are_float_zeros_and_ones_of_the_documented_shape(method: str) -> None:
    spikes = encode(torch.rand(4, 3, 5), torch.arange(4), method=method, num_steps=25, rate_on=0.5)
    assert spikes.shape == ((25, 4, 10, 3, 5) if method == "population" else (25, 4, 3, 5))
    assert spikes.dtype == torch.float32 and bool(((spikes == 0) | (spikes == 1)).all()) and float(spikes.sum()) > 0


@given(VALUES, st.integers(2, 40))
def test_qs2_temporal_spikes_once_and_brighter_is_earlier(values: list[float], num_steps: int) -> None:
    spikes = encode(torch.tensor([values]), torch.tensor([0]), method="temporal", num_steps=num_steps)[:, 0]
    assert torch.equal(spikes.sum(dim=0), torch.ones(len(values)))
    v = torch.tensor(values).clamp(0, 1)
    assert torch.equal(spikes.argmax(dim=0).float(), torch.round((1 - v) * (num_steps - 1)))


@pytest.mark.parametrize(("value", "time"), [(0.5, 2), (0.7, 2), (0.3, 4), (1.0, 0), (0.0, 5)])
def test_qs2_times_round_half_to_even(value: float, time: int) -> None:
    expected = round((1 - value) * 5)
    assert expected == time and int(spikes_of(value, method="temporal", num_steps=6).argmax()) == time


@given(VALUES, st.integers(1, 20))
def test_qs2_latency_is_silent_when_dark_and_ends_with_max_latency(values: list[float], latest: int) -> None:
    x = torch.tensor([values])
    spikes = encode(x, torch.tensor([0]), method="latency", num_steps=20, max_latency=latest)[:, 0]
    v = x[0].clamp(0, 1)
    assert torch.equal(spikes.sum(dim=0), (v >= 0.01).float())
    assert torch.equal(spikes.argmax(dim=0).float(), torch.round((1 - v) * (latest - 1)) * (v >= 0.01))


@given(st.floats(0, 1, width=32), st.integers(1, 3), st.integers(0, 20))
def test_qs2_burst_has_its_count_at_its_places(value: float, isi: int, more: int) -> None:
    num_steps = 1 + 4 * isi + more
    found = torch.nonzero(spikes_of(value, method="burst", num_steps=num_steps, isi=isi)).flatten().tolist()
    v = torch.tensor(value)
    first = int(torch.floor((1 - v) * (num_steps - 1 - 4 * isi)))
    assert found == [first + j * isi for j in range(int(torch.round(5 * v)))]


@given(st.integers(0, 40))
def test_qs2_population_units_are_active_above_their_level(steps: int) -> None:
    value = steps / 40
    spikes = Encoding("population", 7).encode(torch.tensor([[value]], dtype=torch.float64), torch.tensor([0]), 0, 0)
    active = [float(value > p / 10) for p in range(10)]
    assert spikes[:, 0, :, 0].tolist() == [active] * 7


def test_qs2_rate_follows_the_probability_and_is_certain_at_its_ends() -> None:
    x = torch.tensor([0.0, 0.25, 0.8, 1.0]).repeat(500, 1)
    mean = Encoding("rate", 40).encode(x, torch.arange(500), 1, 0).mean(dim=(0, 1))
    assert mean[0] == 0 and mean[3] == 1
    assert torch.allclose(mean[1:3], torch.tensor([0.25, 0.8]), atol=4 * (0.25 / 20000) ** 0.5)
    halved = Encoding("rate", 40, rate_max=0.5).encode(x, torch.arange(500), 1, 0).mean(dim=(0, 1))
    assert torch.allclose(halved, mean / 2, atol=0.02) and 0 < halved[3] < 1


def test_qs2_population_spikes_with_the_rate_of_active_units() -> None:
    x = torch.full((200, 4), 0.35)
    spikes = Encoding("population", 25, rate_on=0.5).encode(x, torch.arange(200), 0, 0)
    assert float(spikes[:, :, 4:].sum()) == 0
    assert abs(float(spikes.mean()) - 0.5 * 4 / 10) < 0.005


@ALL
def test_qs2_fixed_bounds_scale_and_clip(method: str) -> None:
    x, ids = torch.rand(3, 6, dtype=torch.float64), torch.arange(3)
    plain = encode(x, ids, method=method)
    assert torch.equal(encode(4 * x - 1, ids, method=method, low=-1.0, high=3.0), plain)
    clipped = encode(torch.tensor([[-9.0, 9.0]]), torch.tensor([0]), method=method)
    assert torch.equal(clipped, encode(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), method=method))


@pytest.mark.parametrize("bounds", [(2.0, 2.0), (None, None)])
def test_qs2_equal_bounds_give_zero(bounds: tuple[float | None, float | None]) -> None:
    encoding = Encoding("rate", 25, *bounds)
    assert torch.equal(encoding.normalise(torch.full((2, 3), 2.5)), torch.zeros(2, 3))


@ALL
def test_qs2_a_sample_does_not_depend_on_its_neighbours(method: str) -> None:
    x, ids = torch.rand(5, 6), torch.tensor([7, 1, 900, 3, 4])
    encoding = Encoding(method, 25, None, None, rate_on=0.5)
    assert torch.equal(encoding.normalise(x)[1], (x[1] - x[1].min()) / (x[1].max() - x[1].min()))
    changed = x.clone()
    changed[0] *= 100
    assert torch.equal(encoding.encode(changed, ids, 2, 3)[:, 1:], encoding.encode(x, ids, 2, 3)[:, 1:])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@ALL
def test_qs2_values_that_are_not_finite_are_refused(method: str, value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode(torch.tensor([[0.5, value]]), torch.tensor([0]), method=method)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "phase"}, "no spike encoder 'phase'; write one of rate, temporal"),
        ({"method": "burst", "num_steps": 4}, "at least 5 steps, not 4"),
        ({"method": "latency", "num_steps": 4, "max_latency": 5}, "max_latency must be 1 to 4"),
        ({"rate_max": 1.5}, "rate_max is a probability"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"low": None}, "both low and high"),
        ({"low": 2.0}, "low must be at most its high"),
    ],
)
def test_qs2_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoding(**settings)  # type: ignore[arg-type]


def test_qs2_each_sample_has_an_id() -> None:
    with pytest.raises(ValueError, match="2 samples and 3 ids"):
        encode(torch.rand(2, 2), torch.arange(3), method="rate")


@pytest.mark.parametrize("method", ["rate", "population"])
@settings(max_examples=30, deadline=None)
@given(st.permutations(range(9)), st.integers(1, 8))
def test_qs3_spikes_are_the_same_in_any_batch(method: str, order: list[int], cut: int) -> None:
    x = torch.from_numpy(np.random.Philox(key=4).random_raw(9 * 7).astype(np.float32) / 2.0**64).view(9, 7)
    ids = torch.tensor([0, 5, 2**40, 17, 3, 1, 8, 2**62, 33])
    encoding = Encoding(method, 5, rate_on=0.4)
    whole = encoding.encode(x, ids, 11, 2)
    parts = [encoding.encode(x[rows], ids[rows], 11, 2) for rows in (torch.tensor(order[:cut]), torch.tensor(order[cut:]))]
    assert torch.equal(torch.cat(parts, dim=1), whole[:, order])
    assert 0 < float(whole.mean()) < 1


def test_qs3_seed_epoch_sample_and_method_each_change_the_spikes() -> None:
    x, ids = torch.full((1, 200), 0.5), torch.tensor([4])
    first = Encoding("rate").encode(x, ids, 1, 0)
    others = [
        Encoding("rate").encode(x, ids, 2, 0),
        Encoding("rate").encode(x, ids, 1, 1),
        Encoding("rate").encode(x, ids + 1, 1, 0),
        Encoding("population", population=1, rate_on=0.5).encode(x, ids, 1, 0)[:, :, 0],
    ]
    assert all(0.45 < float((first != other).float().mean()) < 0.55 for other in others)


@given(st.integers(0, 4), st.integers(0, 6), st.integers(0, 2**63 - 1))
def test_qs3_each_slot_meets_the_documented_number(t: int, f: int, sample: int) -> None:
    chance = 0.4
    spikes = Encoding("rate", 5).encode(torch.full((1, 7), chance, dtype=torch.float64), torch.tensor([sample]), 9, 6)
    word = int(np.random.Philox(key=np.array([fold(9, 6, 0), sample], dtype=np.uint64)).random_raw(35)[(t * 7 + f) // 2])
    number = (word >> 32) if (t * 7 + f) % 2 else word & 0xFFFFFFFF
    assert bool(spikes[t, 0, f]) == (number < round(chance * 2**32))


def test_qs3_random_words_never_change() -> None:
    spikes = Encoding("rate", 4).encode(torch.full((1, 8), 0.5), torch.tensor([12]), 3, 1)
    assert [int("".join(str(int(s)) for s in row), 2) for row in spikes[:, 0].tolist()] == GOLDEN


GOLDEN = [187, 35, 117, 246]
"""Of numpy's Philox4x64 with key (fold(3, 1, 0), 12): one byte a step, a spike where the number is below 2^31."""
