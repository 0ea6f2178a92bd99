"""CC-10 to CC-13: residuals by parameter name, their commit and discard, and momentum correction."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.compression.conftest import SPECS, codec
from workers.compression.finite import NonFiniteError
from workers.compression.memory import ErrorFeedback, lost_norm
from workers.compression.momentum import RAMP, MomentumCorrection, ramped_density
from workers.compression.registry import make_codec

SHAPES = {"fc1.weight": (20, 30), "fc1.bias": (20,), "scale": ()}
SIZES = {name: math.prod(shape) for name, shape in SHAPES.items()}
LOSSY = sorted(set(SPECS) - {"none"})


def gradients(seed: int) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=noise) for name, shape in SHAPES.items()}


def keep(decoded: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * decoded


def step(
    memory: ErrorFeedback | MomentumCorrection, each: dict[str, Tensor], decode: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """What was sent of every parameter; whether it is committed is the caller's."""
    sent = {}
    for name, gradient in each.items():
        x = memory.compensate(name, gradient)
        sent[name] = decode(x)
        memory.settle(name, x, sent[name])
    return sent


def residual(memory: ErrorFeedback, name: str) -> Tensor:
    return memory.state_dict().get(name, torch.zeros(SIZES[name]))


@pytest.mark.parametrize("name", LOSSY)
@settings(max_examples=10, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 2**20))
def test_cc10_sent_plus_residual_is_the_sum_of_the_gradients_over_any_window(
    name: str, commits: list[bool], seed: int
) -> None:
    which, memory = codec(name), ErrorFeedback(SIZES)

    def decode(x: Tensor) -> Tensor:
        flat = x.reshape(-1)
        return which.decode(which.encode(flat, key=f"{len(flat)}"), len(flat)).view(x.shape)

    balance = {each: torch.zeros(size, dtype=torch.float64) for each, size in SIZES.items()}
    for number, commit in enumerate(commits):
        each = gradients(seed + number)
        sent = step(memory, each, decode)
        if not commit:
            memory.discard()
            continue
        memory.commit()
        for parameter, gradient in each.items():
            balance[parameter] += (gradient.double() - sent[parameter].double()).flatten()
    for parameter, owed in balance.items():
        scale = 1e-6 * (1 + len(commits)) * (1 + float(owed.abs().max()))
        assert float((residual(memory, parameter).double() - owed).abs().max()) <= scale
    assert any(bool(residual(memory, parameter).any()) for parameter in SIZES) == any(commits)


def test_cc11_a_residual_is_pending_until_commit_and_a_discard_forgets_it() -> None:
    memory = ErrorFeedback(SIZES)
    step(memory, gradients(0), keep(0.75))
    assert memory.state_dict() == {} and memory.norm() == 0.0
    assert torch.equal(memory.compensate("fc1.bias", torch.zeros(20)), torch.zeros(20))
    memory.commit()
    first = memory.state_dict()
    assert torch.allclose(first["fc1.bias"], gradients(0)["fc1.bias"] * 0.25)
    for _ in range(3):
        step(memory, gradients(1), keep(0.0))
        memory.discard()
        assert all(torch.equal(tensor, first[name]) for name, tensor in memory.state_dict().items())
    memory.commit()
    assert all(torch.equal(tensor, first[name]) for name, tensor in memory.state_dict().items())
    assert torch.equal(memory.compensate("fc1.bias", torch.zeros(20)), first["fc1.bias"])


def test_cc11_committed_residuals_are_not_written_by_later_steps() -> None:
    """Memory of drafts is used again; what a rank heals others with must not change under them."""
    memory = ErrorFeedback(SIZES)
    for number in range(6):
        step(memory, gradients(number), keep(0.5))
        memory.commit()
        before = {name: residual(memory, name).clone() for name in SIZES}
        step(memory, gradients(100), keep(0.0))
        assert all(torch.equal(residual(memory, name), before[name]) for name in SIZES)
        memory.discard()


@pytest.mark.parametrize(("new", "factor"), [(0.1, 1.0), (0.08, 1.25), (0.01, 2.0), (0.125, 0.8), (10.0, 0.5), (0.0, 1.0)])
def test_cc11_residuals_follow_the_learning_rate_only_where_asked_and_only_with_a_commit(new: float, factor: float) -> None:
    for follows in (False, True):
        memory = ErrorFeedback(SIZES, follow_learning_rate=follows)
        memory.set_learning_rate(0.1)
        step(memory, gradients(0), keep(0.0))
        memory.commit()
        owed = gradients(0)["fc1.bias"]
        for _ in range(2):  # the second time after a discard: the ratio is taken once
            memory.set_learning_rate(new)
            x = memory.compensate("fc1.bias", torch.zeros(20))
            assert torch.allclose(x, owed * (factor if follows else 1.0), rtol=1e-6)
            memory.settle("fc1.bias", x, torch.zeros(20))
            memory.discard()
            assert torch.equal(residual(memory, "fc1.bias"), owed)
        memory.set_learning_rate(new)
        x = memory.compensate("fc1.bias", torch.zeros(20))
        memory.settle("fc1.bias", x, torch.zeros(20))
        memory.commit()
        for name in SIZES:  # also those that took no part in the step
            assert torch.allclose(residual(memory, name), gradients(0)[name].flatten() * (factor if follows else 1.0))
        memory.set_learning_rate(new)
        assert torch.equal(memory.compensate("fc1.bias", torch.zeros(20)), x)


def test_cc12_a_leavers_residual_is_absorbed_and_a_lost_one_is_measured() -> None:
    leaver, survivor = ErrorFeedback(SIZES), ErrorFeedback(SIZES)
    step(leaver, gradients(0), keep(0.5))
    leaver.commit()
    survivor.absorb(leaver.state_dict())
    survivor.absorb(leaver.state_dict())
    for name in SIZES:
        assert torch.equal(residual(survivor, name), residual(leaver, name) * 2)
    exact = math.sqrt(sum(float(residual(leaver, name).double().square().sum()) for name in SIZES))
    assert leaver.norm() == pytest.approx(exact, rel=1e-6) and exact > 0
    assert lost_norm(leaver.norm(), 2 * exact) == pytest.approx(0.5)
    assert lost_norm(0.0, 0.0) == 0.0 and lost_norm(1.0, 0.0) == math.inf


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 600), max_size=6), st.lists(st.integers(0, 600), max_size=6))
def test_cc10_residuals_of_parts_survive_another_layout(first: list[int], second: list[int]) -> None:
    """Shards end anywhere in a parameter, and elsewhere after the world has changed."""
    name, size = "fc1.weight", SIZES["fc1.weight"]
    gradient = gradients(0)[name].flatten()
    expected = torch.zeros(size)
    memory = ErrorFeedback(SIZES)
    for ends in (first, second, first):
        bounds = [0, *sorted(ends), size]
        restored = ErrorFeedback(SIZES)
        restored.load_state_dict(memory.state_dict())
        memory = restored
        for start, stop in pairwise(bounds):
            x = memory.compensate(name, gradient[start:stop], start=start)
            memory.settle(name, x, x * 0.5, start=start)
        memory.commit()
        expected = (expected + gradient) * 0.5
        assert torch.allclose(residual(memory, name), expected, rtol=1e-6)


def test_cc10_state_is_plain_tensors_by_name_and_of_this_model() -> None:
    memory = ErrorFeedback(SIZES)
    step(memory, gradients(0), keep(0.5))
    memory.commit()
    state = memory.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {name: (size,) for name, size in SIZES.items()}
    state["scale"].fill_(9.0)
    assert not torch.equal(residual(memory, "scale"), state["scale"]), "a copy"
    shaped = ErrorFeedback(SIZES)
    shaped.load_state_dict({"fc1.weight": torch.ones(20, 30)})
    assert torch.equal(residual(shaped, "fc1.weight"), torch.ones(600))
    for wrong, sentence in (
        ({"fc9.weight": torch.ones(600)}, "a residual of fc9.weight, and the model no such parameter"),
        ({"scale": torch.ones(1), "fc1.bias": torch.ones(19)}, "of 19 elements, and not float32 of 20"),
        ({"fc1.bias": torch.ones(20, dtype=torch.float64)}, "torch.float64 of 20 elements"),
    ):
        before = memory.state_dict()
        for change in (memory.load_state_dict, memory.absorb):
            with pytest.raises(ValueError, match=sentence):
                change(wrong)
        assert all(torch.equal(tensor, before[name]) for name, tensor in memory.state_dict().items())


def test_cc10_compensate_may_write_into_a_bucket_and_takes_any_layout() -> None:
    memory = ErrorFeedback(SIZES)
    step(memory, gradients(0), keep(0.5))
    memory.commit()
    gradient = gradients(1)["fc1.weight"]
    expected = gradient + residual(memory, "fc1.weight").view(20, 30)
    bucket = torch.zeros(700)
    view = bucket[50:650].view(20, 30)
    assert memory.compensate("fc1.weight", gradient.T.contiguous().T, out=view) is view
    assert torch.equal(view, expected) and float(bucket[:50].sum() + bucket[650:].sum()) == 0
    assert torch.equal(memory.compensate("fc1.weight", gradient, out=gradient), expected)
    with pytest.raises(IndexError, match=r"fc1\.bias has 20 elements, not 10 to 30"):
        memory.compensate("fc1.bias", torch.zeros(20), start=10)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("make", [lambda: ErrorFeedback(SIZES), lambda: MomentumCorrection(SIZES, 0.9)])
def test_cc15_a_non_finite_gradient_is_refused_by_name_and_leaves_no_trace(
    value: float, make: Callable[[], ErrorFeedback | MomentumCorrection]
) -> None:
    memory = make()
    step(memory, gradients(0), keep(0.0))
    memory.commit()
    before = memory.state_dict()
    bad = gradients(1)["fc1.bias"]
    bad[3] = value
    memory.settle("scale", memory.compensate("scale", torch.tensor(1.0)), torch.tensor(0.0))
    with pytest.raises(NonFiniteError, match=r"fc1\.bias") as refusal:
        memory.compensate("fc1.bias", bad)
    assert refusal.value.name == "fc1.bias"
    memory.discard()
    assert before and all(torch.equal(tensor, before[name]) for name, tensor in memory.state_dict().items())


def test_cc13_momentum_is_accumulated_before_the_choice_and_masked_where_sent() -> None:
    """Against the formulas in float64, step by step, with discards in between."""
    name, size, momentum = "fc1.weight", SIZES["fc1.weight"], 0.9
    memory, which = MomentumCorrection(SIZES, momentum), make_codec("topk", density=0.05)
    u, v = (torch.zeros(size, dtype=torch.float64) for _ in range(2))
    for number in range(40):
        gradient = gradients(number)[name]
        x = memory.compensate(name, gradient)
        decoded = which.decode(which.encode(x.flatten()), size)
        memory.settle(name, x, decoded)
        assert int((decoded != 0).sum()) == 30
        if number % 3 == 2:
            memory.discard()
            continue
        memory.commit()
        u = momentum * u + gradient.double().flatten()
        v = v + u
        assert torch.allclose(x.double().flatten(), v, atol=1e-4)
        u[decoded != 0] = 0.0
        v = v - decoded.double()
        state = memory.state_dict()
        assert torch.allclose(state[f"velocity/{name}"].double(), u, atol=1e-4)
        assert torch.allclose(state[f"owed/{name}"].double(), v, atol=1e-4)
        assert not bool(state[f"velocity/{name}"][decoded != 0].any())
        assert memory.norm() == pytest.approx(float(v.norm()), rel=1e-3)


def test_cc13_with_a_codec_that_sends_all_it_is_plain_sgd_and_state_moves() -> None:
    memory = MomentumCorrection(SIZES, 0.9)
    for number in range(3):
        each = gradients(number)
        sent = step(memory, each, keep(1.0))
        memory.commit()
        assert all(torch.equal(sent[name], each[name]) for name in SIZES)
    step(memory, gradients(3), keep(0.0))
    memory.commit()
    state = memory.state_dict()
    other = MomentumCorrection(SIZES, 0.9)
    other.load_state_dict(state)
    assert all(torch.equal(memory.compensate(n, g), other.compensate(n, g)) for n, g in gradients(4).items())
    other.discard()
    other.absorb(state)
    assert all(torch.equal(tensor, state[name] * 2) for name, tensor in other.state_dict().items())
    with pytest.raises(ValueError, match="its keys are velocity/NAME and owed/NAME"):
        other.load_state_dict({"scale": torch.ones(1)})


def test_cc13_the_density_falls_over_the_first_epochs_to_the_target() -> None:
    assert [ramped_density(epoch, 0.001) for epoch in range(7)] == [0.25, 0.0625, 0.0156, 0.004, 0.001, 0.001, 0.001]
    assert [ramped_density(epoch, 0.05) for epoch in range(4)] == [0.25, 0.0625, 0.05, 0.05]
    assert ramped_density(len(RAMP), 0.0001) == 0.0001
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            MomentumCorrection(SIZES, wrong)
