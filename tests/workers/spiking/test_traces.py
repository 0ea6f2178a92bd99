"""Traces and times of first spikes against the sums they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.spiking.traces import first_spike_times, traces


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_qs13_a_trace_is_the_faded_sum_of_spikes(decay: float) -> None:
    torch.manual_seed(0)
    spikes = (torch.rand(12, 3, 4, dtype=torch.float64) < 0.3).double()
    expected = [sum(decay ** (t - v) * spikes[v] for v in range(t + 1)) for t in range(12)]
    assert torch.allclose(traces(spikes, decay), torch.stack(expected), rtol=0, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        traces(torch.zeros(2, 1, 1), decay)


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=5))
def test_qs13_the_first_spike_and_its_gradient_follow_the_formula(rows: list[list[bool]]) -> None:
    spikes = torch.tensor(rows, dtype=torch.float64).T.unsqueeze(1).requires_grad_()
    silent = torch.ones_like(spikes[0])
    expected = torch.zeros_like(silent)
    for t, s in enumerate(spikes):
        expected = expected + t * s * silent
        silent = silent * (1 - s)
    expected = expected + len(spikes) * silent
    found = first_spike_times(spikes)
    times = [row.index(True) if True in row else 7 for row in rows]
    assert found.flatten().tolist() == times == expected.flatten().tolist()
    arriving = torch.arange(1.0, len(rows) + 1, dtype=torch.float64).view(1, -1)
    one, other = (torch.autograd.grad(time, spikes, arriving)[0] for time in (found, expected))
    assert torch.allclose(one, other, rtol=0, atol=1e-6) and float(one.abs().max()) > 0
