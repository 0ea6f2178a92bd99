"""CC-2's powersgd: the two all-reduces give the same bits everywhere, near the best low rank, and never NaN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Size, Tensor

from workers.compression.codec import CodecError
from workers.compression.memory import ErrorFeedback
from workers.compression.orthogonal import gram_schmidt, orthonormalise
from workers.compression.powersgd import PowerSGD

SHAPES = {
    "conv.weight": Size([16, 8, 3, 3]),
    "conv.bias": Size([16]),
    "fc.weight": Size([40, 64]),
    "small.weight": Size([2, 2]),  # 2 + 2 numbers are no fewer than 4
    "scale": Size([]),
    "none.weight": Size([0, 5]),
}
LOW = ("conv.weight", "fc.weight")
SIZES = {name: shape.numel() for name, shape in SHAPES.items()}


class Decoded(NamedTuple):
    reduced: Mapping[str, Tensor]
    own: Mapping[str, Tensor]


def gradients(seed: int, size: float = 1.0) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=noise) * size for name, shape in SHAPES.items()}


def reduce(gang: Sequence[PowerSGD], each: Sequence[dict[str, Tensor]]) -> list[Decoded]:
    """A step of all members; each has its own copy of what was reduced."""
    steps = [member.start(mine) for member, mine in zip(gang, each, strict=True)]
    p = torch.stack([step.p for step in steps]).sum(0)
    q = torch.stack([step.middle(p.clone()) for step in steps]).sum(0)
    own = []
    for step, mine in zip(steps, each, strict=True):
        rest = {name: torch.empty_like(gradient) for name, gradient in mine.items()}
        step.rest(torch.zeros_like(p), torch.zeros_like(q), rest)
        own.append({name: mine[name] - rest[name] for name in mine})
    return [Decoded(step.finish(q.clone()), mine) for step, mine in zip(steps, own, strict=True)]


def test_matrices_are_the_first_axis_by_the_rest_and_what_would_not_save_is_uncompressed() -> None:
    codec = PowerSGD(SHAPES, rank=2)
    assert [name for name in SHAPES if codec.compresses(name)] == list(LOW)
    dense = 16 + 4 + 1 + 0
    assert codec.sizes(list(SHAPES)) == (2 * (16 + 40) + dense, 2 * (72 + 64))
    step = codec.start(gradients(0))
    assert step.p.shape == (codec.sizes(list(SHAPES))[0],)
    assert step.middle(step.p.clone()).shape == (codec.sizes(list(SHAPES))[1],)
    assert not any(PowerSGD(SHAPES, rank=40).compresses(name) for name in SHAPES)


@pytest.mark.parametrize("members", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_cc4_all_members_get_the_same_bits_and_keep_the_same_q(members: int, rank: int) -> None:
    gang = [PowerSGD(SHAPES, rank, seed=7) for _ in range(members)]
    for number in range(4):
        each = [gradients(100 * number + member) for member in range(members)]
        decoded = reduce(gang, each)
        for member, mine in zip(gang, decoded, strict=True):
            member.commit()
            for name in SHAPES:
                assert mine.reduced[name].shape == mine.own[name].shape == SHAPES[name]
                assert torch.equal(mine.reduced[name].view(torch.int32), decoded[0].reduced[name].view(torch.int32))
        states = [member.state_dict() for member in gang]
        assert set(states[0]) == set(LOW)
        assert all(torch.equal(state[name], states[0][name]) for state in states for name in LOW)
        for name in set(SHAPES) - set(LOW):
            assert torch.allclose(decoded[0].reduced[name], sum(mine[name] for mine in each) + torch.zeros(SHAPES[name]))


def test_cc4_bits_do_not_depend_on_the_number_of_threads() -> None:
    shapes = {"w": Size([1500, 700])}
    gradient = {"w": torch.randn(1500, 700, generator=torch.Generator().manual_seed(0))}
    p, q = torch.randn(4 * 1500), torch.randn(4 * 700)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            codec = PowerSGD(shapes, rank=4)
            step = codec.start(gradient)
            step.middle(p.clone())
            results.append((step.finish(q.clone())["w"], codec))
            codec.commit()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1].state_dict()["w"], results[1][1].state_dict()["w"])


def test_cc10_own_shares_add_up_to_what_was_reduced_and_error_feedback_keeps_the_rest() -> None:
    """Over 60 steps, some discarded: the sum applied plus all residuals is the sum of all gradients."""
    members = 3
    gang = [PowerSGD(SHAPES, 2) for _ in range(members)]
    memories = [ErrorFeedback(SIZES) for _ in range(members)]
    applied = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    given_ = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for number in range(60):
        each = [gradients(10 * number + member) for member in range(members)]
        sent = [
            {name: memory.compensate(name, gradient) for name, gradient in mine.items()}
            for memory, mine in zip(memories, each, strict=True)
        ]
        decoded = reduce(gang, sent)
        for memory, mine, share in zip(memories, sent, decoded, strict=True):
            for name in SHAPES:
                memory.settle(name, mine[name], share.own[name])
        everything: list[PowerSGD | ErrorFeedback] = [*gang, *memories]
        for each_one in everything:
            each_one.discard() if number % 4 == 1 else each_one.commit()
        if number % 4 != 1:
            for name in SHAPES:
                applied[name] += decoded[0].reduced[name].double()
                given_[name] += sum(mine[name].double() for mine in each)
    for name in SHAPES:
        owed = sum(memory.state_dict()[name].double() for memory in memories) + torch.zeros(SIZES[name])
        difference = (applied[name] - given_[name]).flatten() + owed
        assert float(difference.abs().max() if len(difference) else 0.0) < 2e-4
    assert all(float(memory.norm()) > 1 for memory in memories)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e12])
def test_a_matrix_of_low_rank_comes_back_whatever_the_size_of_its_numbers(size: float) -> None:
    noise = torch.Generator().manual_seed(1)
    low = torch.randn(40, 2, generator=noise) @ torch.randn(2, 64, generator=noise) * size
    codec = PowerSGD({"w": Size([40, 64])}, rank=2)
    for _ in range(3):
        decoded = reduce([codec], [{"w": low}])[0]
        codec.commit()
        assert float((decoded.reduced["w"].double() - low.double()).norm() / low.double().norm()) < 1e-4


def test_the_warm_start_converges_to_the_best_approximation_of_its_rank() -> None:
    """Eckart–Young: no matrix of rank r is nearer than what the r largest singular values make."""
    noise = torch.Generator().manual_seed(2)
    matrix = torch.randn(40, 64, generator=noise) * torch.logspace(0, -2, 64)
    best = float(torch.linalg.svdvals(matrix)[4:].norm())
    codec = PowerSGD({"w": Size([40, 64])}, rank=4)
    errors = []
    for _ in range(20):
        errors.append(float((reduce([codec], [{"w": matrix}])[0].reduced["w"] - matrix).norm()))
        codec.commit()
    assert errors[0] > 1.05 * best and best * 0.999 < errors[-1] < 1.01 * best


def test_q_is_kept_only_with_the_step_and_begins_by_seed_and_name() -> None:
    codec, same, other = (PowerSGD(SHAPES, 2, seed=seed) for seed in (1, 1, 2))
    begin = codec.start(gradients(0)).p
    assert torch.equal(same.start(gradients(0)).p, begin) and not torch.equal(other.start(gradients(0)).p, begin)
    twins = PowerSGD({"a": Size([9, 9]), "b": Size([9, 9])}, 2)
    p = twins.start({"a": torch.ones(9, 9), "b": torch.ones(9, 9)}).p
    assert not torch.equal(p[:18], p[18:])
    reduce([codec], [gradients(1)])
    codec.discard()
    assert torch.equal(codec.start(gradients(0)).p, begin) and codec.state_dict() == {}
    reduce([codec], [gradients(1)])
    codec.commit()
    assert not torch.equal(codec.start(gradients(0)).p, begin)


def test_a_joiner_goes_on_with_the_state_of_the_others_and_another_rank_takes_over_what_fits() -> None:
    codec = PowerSGD(SHAPES, 3, seed=5)
    for number in range(3):
        reduce([codec], [gradients(number)])
        codec.commit()
    joiner = PowerSGD(SHAPES, 3, seed=5)
    joiner.load_state_dict(codec.state_dict())
    decoded = reduce([codec, joiner], [gradients(8), gradients(9)])
    assert all(torch.equal(decoded[0].reduced[name], decoded[1].reduced[name]) for name in SHAPES)
    for rank in (2, 4):
        changed = PowerSGD(SHAPES, rank, seed=5)
        changed.load_state_dict(codec.state_dict())
        q, old = changed.state_dict()["fc.weight"], codec.state_dict()["fc.weight"]
        common = min(rank, 3)
        assert q.shape == (rank, 64) and torch.equal(q[:common], old[:common]) and bool(q.any(dim=1).all())
    with pytest.raises(ValueError, match="fits no parameter"):
        joiner.load_state_dict({"fc.weight": torch.zeros(3, 65)})
    assert set(joiner.state_dict()) == set(LOW)


def test_dead_layers_give_zeros_and_wake_up_again() -> None:
    codec = PowerSGD(SHAPES, 2)
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for _ in range(3):
        decoded = reduce([codec], [zeros])[0]
        assert all(not bool(tensor.any()) for part in decoded for tensor in part.values())
        codec.commit()
    rank_one = gradients(0)
    rank_one["fc.weight"] = torch.outer(torch.arange(40.0), torch.ones(64))
    decoded = reduce([codec], [rank_one])[0]
    codec.commit()
    assert torch.allclose(decoded.reduced["fc.weight"], rank_one["fc.weight"], rtol=1e-4, atol=1e-4)
    fresh = PowerSGD(SHAPES, 2)
    alive = gradients(3)
    for _ in range(4):  # the second column was exhausted by a matrix of rank one, and must not stay so
        woken = reduce([codec], [alive])[0]
        codec.commit()
        reference = reduce([fresh], [alive])[0]
        fresh.commit()
    error, expected = (float((each.reduced["fc.weight"] - alive["fc.weight"]).norm()) for each in (woken, reference))
    assert error < 1.05 * expected


def orthonormalised(rows: np.ndarray, alike: bool) -> tuple[np.ndarray, np.ndarray]:
    """What becomes of them, and which are alive: of length 1, at right angles; all others are zeros."""
    found = rows.copy()
    orthonormalise(torch.from_numpy(found), alike=alike)
    assert np.isfinite(found).all()
    gram = found.astype(np.float64) @ found.astype(np.float64).T
    alive = np.diag(gram) > 0.5
    assert np.allclose(gram, np.diag(alive.astype(float)), atol=1e-5)
    return found, alive


@pytest.mark.parametrize("alike", [False, True])
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 200), st.integers(0, 2**32), st.integers(0, 6), st.floats(-45, 30))
@example(2, 2, 0, 1, -39.0)
def test_rows_become_orthonormal_and_none_is_lost_that_has_a_direction_of_its_own(
    alike: bool, r: int, m: int, seed: int, independent: int, exponent: float
) -> None:
    noise = np.random.default_rng(seed)
    base = noise.standard_normal((min(independent, r, m), m))
    rows = (noise.standard_normal((r, len(base))) @ base * 10.0**exponent).astype(np.float32)
    spanned = np.linalg.matrix_rank(rows.astype(np.float64), rtol=1e-4) if base.size else 0
    assert spanned <= orthonormalised(rows, alike)[1].sum()


@pytest.mark.parametrize("alike", [False, True])
@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(6, 200), st.integers(0, 2**32), st.integers(1, 6), st.floats(-30, 30))
def test_rows_that_depend_on_those_before_them_become_zeros(
    alike: bool, r: int, m: int, seed: int, independent: int, exponent: float
) -> None:
    """Those before them are at right angles, so that what float32 rounds is no direction to speak of."""
    noise = np.random.default_rng(seed)
    k = min(independent, r)
    base = np.linalg.qr(noise.standard_normal((m, k)))[0].T
    mixed = np.vstack([base, noise.standard_normal((r - k, k)) @ base])
    alive = orthonormalised((mixed * 10.0**exponent).astype(np.float32), alike)[1]
    assert alive.tolist() == [True] * k + [False] * (r - k)


@pytest.mark.parametrize(("rank", "length"), [(1, 10), (4, 784), (8, 1000), (16, 500), (16, 4097)])
def test_cc4_where_machines_are_alike_rows_span_the_same_and_their_bits_do_not_depend_on_where_they_lie(
    rank: int, length: int
) -> None:
    noise = torch.Generator().manual_seed(rank * length)
    rows = torch.randn(rank, length, generator=noise)
    exact, threads = rows.clone(), torch.get_num_threads()
    gram_schmidt(exact.numpy())
    torch.set_num_threads(1)
    try:
        found = []
        for shift in (0, 1, 3, 4, 16):
            room = torch.empty(shift + rows.numel())[shift:].view(rank, length).copy_(rows)
            orthonormalise(room, alike=True)
            found.append(room)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, found[0]) for each in found)
    assert torch.allclose((found[0] @ exact.T).abs(), torch.eye(rank), atol=1e-5)  # the same directions, but for signs


def test_cc4_without_equal_machines_or_with_several_threads_it_is_gram_schmidt() -> None:
    rows, threads = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    exact = rows.clone()
    gram_schmidt(exact.numpy())
    torch.set_num_threads(2)
    try:
        for alike in (False, True):
            found = rows.clone()
            orthonormalise(found, alike=alike)
            assert torch.equal(found, exact)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_a_rank_that_cannot_work_is_refused(rank: int) -> None:
    with pytest.raises(CodecError, match="the rank of powersgd is a whole number, 1 or more"):
        PowerSGD(SHAPES, rank)


def test_gradients_and_reduced_matrices_that_do_not_fit_are_refused() -> None:
    codec = PowerSGD(SHAPES, 2)
    with pytest.raises(TypeError, match=r"gradient of fc\.weight has to be float32 \[40, 64\]"):
        codec.start({"fc.weight": torch.zeros(64, 40)})
    step = codec.start({"fc.weight": torch.zeros(40, 64)})
    with pytest.raises(ValueError, match=r"float32 \[80\], not torch.float32 \[81\]"):
        step.middle(torch.zeros(81))


def test_non_contiguous_gradients_are_read_as_they_are() -> None:
    plain = gradients(4)["fc.weight"]
    turned = plain.T.contiguous().T
    assert not turned.is_contiguous()
    first, second = (reduce([PowerSGD(SHAPES, 2)], [{"fc.weight": each}])[0] for each in (plain, turned))
    assert torch.allclose(first.reduced["fc.weight"], second.reduced["fc.weight"], atol=1e-5)
