"""CC-24: differences that go out in fragments while a round goes on, and what is learned after they did."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.outer.ranks import Batch, OneRank, commit, equal, merge, plain_model, sgd
from workers.collectives.buckets import plan_buckets
from workers.outer.config import SyncConfig
from workers.outer.fragments import Fragments

STREAM = {"staleness": 3, "fragments": 3}
INNER_STEPS = 4
ROUNDS = 6


@pytest.fixture(autouse=True)
def three_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the plain model: its second layer; the bias of the first one; and its weights."""
    monkeypatch.setattr("workers.engine.plan_buckets", partial(plan_buckets, first_bytes=80, bucket_bytes=96))


def shares(ranks: int, number: int) -> list[list[Batch]]:
    """Of each rank in round `number`, not equally many samples."""
    noise = torch.Generator().manual_seed(number)
    sizes = [[2 + (rank + step) % 3 for step in range(INNER_STEPS)] for rank in range(ranks)]
    return [[(torch.randn(n, 3, generator=noise), torch.randn(n, 2, generator=noise)) for n in each] for each in sizes]


def streaming(number: int) -> list[OneRank]:
    """θ ← θ − Δ: what arrives is what the parameters have moved by."""
    ranks = [OneRank(model=plain_model, optimizer=sgd, outer_lr=1.0, outer_momentum=0.0, **STREAM) for _ in range(number)]
    assert len(ranks[0].engine.staging.plan.sizes) == 3
    return ranks


def parameters(rank: OneRank) -> dict[str, Tensor]:
    return {name: parameter.detach().double() for name, parameter in rank.model.named_parameters()}


def ahead(rank: OneRank) -> dict[str, Tensor]:
    """Of θ, where its next round begins."""
    assert rank.engine.outer is not None
    return {name: tensor.double() for name, tensor in rank.engine.outer.ahead.items()}


# ---------------------------------------------------------------------- when


@given(st.integers(2, 40), st.integers(1, 39), st.integers(1, 10), st.integers(1, 20), st.integers(1, 40))
def test_cc24_every_bucket_goes_out_once_in_order_and_none_is_staler_than_allowed(
    every: int, staleness: int, fragments: int, buckets: int, inner_steps: int
) -> None:
    staleness, inner_steps = min(staleness, every - 1), min(inner_steps, every)
    plan = Fragments(SyncConfig(every=every, staleness=staleness, fragments=fragments), buckets)
    sent = [plan.due(step, inner_steps) for step in range(1, inner_steps + 1)]
    assert sent == sorted(sent) and sent[-1] == buckets
    early = max(1, inner_steps - staleness)
    assert all(due == 0 for due in sent[: early - 1]) and sent[early - 1] > 0
    assert len({*sent} - {0}) <= min(fragments, buckets)


def test_cc24_fragments_go_out_evenly() -> None:
    plan = Fragments(SyncConfig(every=32, staleness=8, fragments=4), 8)
    sent = [plan.due(step, 32) for step in range(1, 33)]
    assert sent == [0] * 23 + [2, 2, 4, 4, 6, 6, 8, 8, 8]


# ---------------------------------------------------------------------- what arrives


def test_cc24_what_goes_out_is_what_was_learned_until_then() -> None:
    (rank,) = streaming(1)
    assert rank.reducer is not None
    start, passed = parameters(rank), []
    (share,) = shares(1, 0)
    samples = sum(len(x) for x, _ in share)
    rank.begin()
    for done, batch in enumerate(share, 1):
        rank.inner_step(batch)
        passed.append(copy.deepcopy(parameters(rank)))
        if done < INNER_STEPS:
            rank.engine.stream(done, INNER_STEPS, 1.0)
        assert len(rank.reducer.sent) == min(done, 3)  # one after each of the first three
    rank.engine.finish_exchange(samples)
    for slot in rank.engine.staging.plan.slots:
        sent = rank.reducer.sent[slot.bucket][slot.start : slot.start + slot.numel].view(slot.shape)
        torch.testing.assert_close(sent.double(), start[slot.name] - passed[slot.bucket][slot.name], atol=1e-6, rtol=0)
    commit([rank], INNER_STEPS)
    for slot in rank.engine.staging.plan.slots:
        late = passed[-1][slot.name] - passed[slot.bucket][slot.name]
        assert float(late.norm()) > 0
        torch.testing.assert_close(ahead(rank)[slot.name], late, atol=1e-6, rtol=0)
    committed, before = copy.deepcopy(parameters(rank)), rank.digest
    rank.begin()
    assert rank.engine.digest() == before != rank.digest  # of what is committed, not of what the rank is ahead
    for name, tensor in parameters(rank).items():
        torch.testing.assert_close(tensor, committed[name] + ahead(rank)[name], atol=1e-6, rtol=0)


def test_cc24_all_that_ranks_learn_arrives_once() -> None:
    """After any number of rounds, θ has moved by all that inner steps have changed, but for what ranks are ahead."""
    ranks = streaming(3)
    learned = {name: torch.zeros_like(tensor) for name, tensor in parameters(ranks[0]).items()}
    first, weights = copy.deepcopy(parameters(ranks[0])), [0.0] * 3
    for number in range(ROUNDS):
        share = shares(3, number)
        samples = sum(len(x) for each in share for x, _ in each)
        for rank, each in zip(ranks, share, strict=True):
            rank.compute(each, samples)
            weight = weights[ranks.index(rank)] = sum(len(x) for x, _ in each) / samples
            for name, end in parameters(rank).items():
                learned[name] += weight * (end - rank.began[name])
        commit(ranks, INNER_STEPS)
        assert len({rank.digest for rank in ranks}) == 1
        for name, total in learned.items():
            moved = parameters(ranks[0])[name] - first[name]
            own = [weight * ahead(rank)[name] for weight, rank in zip(weights, ranks, strict=True)]
            assert all(float(each.norm()) > 0 for each in own)
            torch.testing.assert_close(moved + torch.stack(own).sum(dim=0), total, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- a round that does not come to its end


@pytest.mark.parametrize("taken", [1, 2, 3, 4])
def test_cc24_a_discarded_round_leaves_nothing(taken: int) -> None:
    (straight,), (disturbed,) = streaming(1), streaming(1)
    for rank in (straight, disturbed):
        merge([rank], shares(1, 0))
    before, was = copy.deepcopy(disturbed.bits), ahead(disturbed)
    (share,) = shares(1, 7)
    samples = sum(len(x) for x, _ in share)
    disturbed.begin()
    for done, batch in enumerate(share[:taken], 1):
        disturbed.inner_step(batch)
        if done < INNER_STEPS:
            disturbed.engine.stream(done, INNER_STEPS, 1.0)
    if taken == INNER_STEPS:
        disturbed.engine.finish_exchange(samples)
    disturbed.engine.discard()
    assert equal(disturbed.bits, before)
    for rank in (straight, disturbed):
        merge([rank], shares(1, 9))
    assert equal(disturbed.bits, straight.bits)
    assert all(not torch.equal(tensor, was[name]) for name, tensor in ahead(disturbed).items())
    assert all(torch.equal(tensor, ahead(straight)[name]) for name, tensor in ahead(disturbed).items())


@pytest.mark.parametrize("took_part", [False, True])
def test_ep6_who_takes_a_commit_over_is_ahead_only_if_it_took_part_in_that_round(took_part: bool) -> None:
    donor, behind, straight = streaming(3)
    merge([donor, behind, straight], shares(3, 0))
    share = shares(3, 1)
    samples = sum(len(x) for each in share for x, _ in each)
    donor.compute(share[0], samples)
    if took_part:
        behind.compute(share[1], samples)
        own = {name: tensor.double() for name, tensor in behind.engine.outer._next_ahead.items()}  # type: ignore[union-attr]
        behind.engine.discard()
    (done,) = commit([donor], INNER_STEPS)
    behind.engine.replay(done)
    assert behind.digest == donor.digest
    assert ahead(behind).keys() == (own.keys() if took_part else set())
    assert all(torch.equal(tensor, own[name]) for name, tensor in ahead(behind).items())


def test_cc24_who_takes_over_a_whole_state_is_ahead_of_nothing() -> None:
    donor, joiner = streaming(2)
    merge([donor, joiner], shares(2, 0))
    assert ahead(joiner)
    joiner.engine.restore(donor.engine.capture())
    assert ahead(joiner) == {} and joiner.digest == donor.digest


@pytest.mark.parametrize("inner_step", [0, 3], ids=["before it is sent", "afterwards"])
def test_cc15_nobody_is_ahead_by_what_is_not_finite(inner_step: int) -> None:
    ranks = streaming(2)
    merge(ranks, shares(2, 0))
    before, were = [copy.deepcopy(rank.bits) for rank in ranks], [ahead(rank) for rank in ranks]
    share = shares(2, 1)
    share[0][inner_step][0].fill_(float("nan"))
    samples = sum(len(x) for each in share for x, _ in each)
    for rank, each in zip(ranks, share, strict=True):
        rank.compute(each, samples)
    assert ranks[0].engine.compression.non_finite is not None
    done = commit(ranks, INNER_STEPS)
    assert all(each.meta["skipped"] for each in done)
    for rank, bits, was in zip(ranks, before, were, strict=True):
        assert equal(rank.bits, bits)
        assert all(torch.equal(tensor, was[name]) for name, tensor in ahead(rank).items()) and was
    merge(ranks, shares(2, 2))
    assert len({rank.digest for rank in ranks}) == 1 and not equal(ranks[0].bits, before[0])
