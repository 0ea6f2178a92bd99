"""CC-24 inside a rank: what a round of inner steps and its merge compute, undo, replay and hand on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Optimizer

from tests.workers.outer.ranks import Batch, OneRank, adamw, commit, equal, merge, plain_model, rate, sgd
from workers.engine import _REFUSED
from workers.state import digest
from workers.transfer import Snapshot

ROUNDS = 5


def batches(sizes: Sequence[int], seed: int = 5) -> list[Batch]:
    noise = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 3, generator=noise), torch.randn(size, 2, generator=noise)) for size in sizes]


def shares(split: Sequence[Sequence[int]], number: int) -> list[list[Batch]]:
    """`split[r]` are the samples of rank r in each inner batch of round `number`."""
    return [batches(sizes, seed=100 * number + rank) for rank, sizes in enumerate(split)]


def replicated(rank: OneRank) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in rank.bits[0].items() if not name.startswith("optimizer.")}


# ---------------------------------------------------------------------- numerics


def reference(
    split: Sequence[Sequence[int]], optimizer: Callable[[Any], Optimizer], lr: float, momentum: float, clip: float | None
) -> list[Tensor]:
    """DiLoCo (Douillard et al., 2023, algorithm 1) in float64, one replica for each rank; torch's own outer Nesterov."""
    torch.manual_seed(0)
    common = plain_model().double()
    outer = SGD(common.parameters(), lr=lr, momentum=momentum, nesterov=momentum > 0)
    replicas = [copy.deepcopy(common) for _ in split]
    inner = [optimizer(replica.parameters()) for replica in replicas]
    base, steps = inner[0].param_groups[0]["lr"], 0
    for number in range(ROUNDS):
        total = sum(map(sum, split))
        for parameter in common.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for replica, each, share in zip(replicas, inner, shares(split, number), strict=True):
            replica.load_state_dict(common.state_dict())
            for done, (x, y) in enumerate(share):
                each.param_groups[0]["lr"] = base * rate(steps + done)
                if len(x):
                    each.zero_grad()
                    mse_loss(replica(x.double()), y.double()).backward()
                    if clip is not None:
                        nn.utils.clip_grad_norm_(replica.parameters(), clip)
                    each.step()
            weight = sum(len(x) for x, _ in share) / total
            for parameter, own in zip(common.parameters(), replica.parameters(), strict=True):
                assert parameter.grad is not None
                parameter.grad += weight * (parameter.detach() - own.detach())
        outer.step()
        steps += len(split[0])
    return [parameter.detach() for parameter in common.parameters()]


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize(
    "split", [[[6, 6, 6, 6]], [[4, 4, 4], [4, 4, 4]], [[8, 2], [1, 7], [3, 3]], [[4, 4, 1], [4, 4, 0]]], ids=str
)
@pytest.mark.parametrize(("lr", "momentum", "clip"), [(0.7, 0.9, None), (1.0, 0.0, None), (0.7, 0.9, 0.3)])
def test_cc24_rounds_are_those_of_diloco(
    optimizer: Callable[[Any], Optimizer], split: list[list[int]], lr: float, momentum: float, clip: float | None
) -> None:
    settings = {"outer_lr": lr, "outer_momentum": momentum}
    ranks = [OneRank(model=plain_model, optimizer=optimizer, clip_norm=clip, **settings) for _ in split]
    first = [parameter.detach().clone() for parameter in ranks[0].model.parameters()]
    for number in range(ROUNDS):
        merge(ranks, shares(split, number))
    assert len({rank.digest for rank in ranks}) == 1
    expected = reference(split, optimizer, lr, momentum, clip)
    for ours, theirs, before in zip(ranks[0].model.parameters(), expected, first, strict=True):
        assert float((theirs - before).norm()) > 0.02  # that there is something to compare
        torch.testing.assert_close(ours.detach().double(), theirs, rtol=2e-4, atol=5e-6)


def test_cc3_one_inner_step_of_sgd_is_a_step_of_data_parallel_sgd() -> None:
    """η = 1, μ = 0: the mean of the parameter differences is the learning rate times the gradient of the whole batch."""
    split = [[8], [3], [1]]
    ranks = [OneRank(model=plain_model, optimizer=sgd, outer_lr=1.0, outer_momentum=0.0) for _ in split]
    alone = OneRank(model=plain_model, optimizer=sgd)
    for number in range(ROUNDS):
        share = shares(split, number)
        merge(ranks, share)
        x, y = (torch.cat([batch[0][part] for batch in share]) for part in (0, 1))
        mse_loss(alone.model(x), y).backward()
        alone.optimizer.step()
        alone.scheduler.step()
        alone.optimizer.zero_grad()
    for ours, theirs in zip(ranks[0].model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_cc24_micro_batches_of_an_inner_step_give_the_gradient_of_its_mean() -> None:
    whole, cut = (OneRank(model=plain_model, optimizer=sgd) for _ in range(2))
    for rank, pieces in ((whole, 1), (cut, 3)):
        rank.begin()
        for batch in batches([7, 7]):
            rank.inner_step(batch, pieces)
        rank.engine.finish_exchange(14)
        commit([rank], 2)
    for ours, theirs in zip(cut.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_cc24_a_parameter_that_no_rank_uses_stays_as_it_is() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)
            self.both = False

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + self.unused(x) if self.both else self.used(x)

    ranks = [OneRank(model=Half) for _ in range(2)]
    ranks[0].model.both = True  # type: ignore[assignment]
    merge(ranks, shares([[4], [4]], 0))
    ranks[0].model.both = False  # type: ignore[assignment]
    halves: Any = ranks[0].model
    before, used = halves.unused.weight.detach().clone(), halves.used.weight.detach().clone()
    merge(ranks, shares([[4], [4]], 1))
    assert torch.equal(halves.unused.weight, before)  # although its velocity is not 0
    assert not torch.equal(halves.used.weight, used)
    assert len({rank.digest for rank in ranks}) == 1


def test_cc24_parameters_of_bfloat16_are_merged_and_put_back_too() -> None:
    """The velocity is float32."""
    ranks = [OneRank(model=lambda: plain_model().bfloat16(), optimizer=sgd) for _ in range(2)]
    share = [[(x.bfloat16(), y.bfloat16()) for x, y in each] for each in shares([[4, 4], [4, 4]], 0)]
    before = copy.deepcopy(ranks[0].bits)
    ranks[0].compute(share[0], 16)
    ranks[0].engine.discard()
    assert equal(ranks[0].bits, before)
    merge(ranks, share)
    assert len({rank.digest for rank in ranks}) == 1
    assert ranks[0].bits[0]["outer.0.weight"].dtype == torch.float32
    assert not torch.equal(ranks[0].bits[0]["parameter.0.weight"], before[0]["parameter.0.weight"])


# ---------------------------------------------------------------------- what all ranks have alike, and what they have not


def test_cc24_replicated_state_is_the_same_bits_and_moments_are_each_ranks_own() -> None:
    ranks = [OneRank() for _ in range(3)]
    for number in range(ROUNDS):
        merge(ranks, shares([[4, 3], [2, 6], [5, 5]], number))
    assert len({rank.machine.state for rank in ranks}) == 1
    assert len({rank.digest for rank in ranks}) == 1
    ours, theirs = replicated(ranks[0]), replicated(ranks[1])
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert {name.partition(".")[0] for name in ours} == {"parameter", "buffer", "outer"}
    moments = [rank.bits[0]["optimizer.0.weight|exp_avg"] for rank in ranks]
    assert not torch.equal(moments[0], moments[1])
    assert ranks[0].scheduler.last_epoch == 2 * ROUNDS  # stepped once for each inner step
    assert ranks[0].optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * rate(2 * ROUNDS))


@pytest.mark.parametrize("part", ["parameter", "buffer", "outer"])
def test_cc24_the_outer_momentum_is_part_of_the_digest(part: str) -> None:
    rank = OneRank()
    merge([rank], shares([[4, 4]], 0))
    captured = rank.engine.replica.capture()
    assert digest(rank.engine.capture().captured) != rank.digest  # that one has the moments
    other = OneRank()
    name = next(n for n, t in captured.tensors.items() if n.startswith(f"{part}.") and t.is_floating_point())
    captured.tensors[name] = captured.tensors[name] + 1.0
    other.engine.replica.restore(captured)
    assert other.digest != rank.digest


def test_cc24_statistics_are_merged_by_samples_and_ranges_are_the_largest_of_the_round() -> None:
    split = [[3, 3], [9, 9]]
    ranks = [OneRank() for _ in split]
    share = shares(split, 0)
    own = []
    for rank, each in zip(ranks, share, strict=True):
        rank.compute(each, 24)
        own.append(rank.model.get_buffer("2.running_mean").clone())
        assert float(rank.model.get_buffer("1.most")) == 0.0  # not before the commit
        assert int(rank.model.get_buffer("2.num_batches_tracked")) == 2
    seen = max(float(rank.engine.staging.observed.max()) for rank in ranks)
    commit(ranks, 2)
    for rank in ranks:
        expected = own[0] * 6 / 24 + own[1] * 18 / 24
        torch.testing.assert_close(rank.model.get_buffer("2.running_mean"), expected, rtol=1e-5, atol=1e-6)
        assert int(rank.model.get_buffer("2.num_batches_tracked")) == 2
        assert float(rank.model.get_buffer("1.most")) == seen > 0.0


# ---------------------------------------------------------------------- a round that does not come to its end


@pytest.mark.parametrize("inner", [0, 1, 2, 3, "exchanged"])
@pytest.mark.parametrize("rounds", [0, 2])
def test_cc24_a_discard_in_the_middle_of_a_round_puts_everything_back(inner: int | str, rounds: int) -> None:
    """Parameters, moments, learning rate, scheduler, BatchNorm's statistics, ranges: bit for bit."""
    straight, disturbed = OneRank(), OneRank()
    for rank in (straight, disturbed):
        for number in range(rounds):
            merge([rank], shares([[4, 4, 4]], number))
    before = copy.deepcopy(disturbed.bits)
    disturbed.begin()
    taken = 3 if inner == "exchanged" else int(inner)
    for batch in batches([5] * taken, seed=77):
        disturbed.inner_step(batch)
        assert not equal(disturbed.bits, before)
    if inner == "exchanged":
        disturbed.engine.finish_exchange(15)
    disturbed.engine.discard()
    assert equal(disturbed.bits, before)
    assert all(parameter.grad is None for parameter in disturbed.model.parameters())
    for rank in (straight, disturbed):
        merge([rank], shares([[4, 4, 4]], 9))
    assert equal(disturbed.bits, straight.bits)
    assert disturbed.machine.state == straight.machine.state


def test_cc24_what_a_peer_copies_in_the_middle_of_a_round_is_the_committed_state() -> None:
    """Moments and all: a joiner goes on with those of its donor."""
    donor, joiner = OneRank(), OneRank()
    merge([donor], shares([[4, 4]], 0))
    committed, state = copy.deepcopy(donor.bits), donor.machine.state
    donor.begin()
    for batch in batches([5, 5], seed=77):
        donor.inner_step(batch)
    snapshot = donor.engine.capture()
    assert isinstance(snapshot, Snapshot) and snapshot.state == state
    donor.inner_step(batches([5], seed=78)[0])  # the copy stands still meanwhile
    joiner.engine.restore(snapshot)
    assert equal(joiner.bits, committed)
    donor.engine.finish_exchange(15)
    (done,) = commit([donor], 3)
    joiner.engine.replay(done)
    assert joiner.digest == donor.digest and joiner.machine.state == donor.machine.state


@pytest.mark.parametrize("own", [False, True], ids=["had not begun", "has discarded its own"])
def test_cc24_a_rank_that_replays_a_commit_holds_the_same_replicated_state(own: bool) -> None:
    """EP-9: one step behind, with what a peer has reduced."""
    ranks = [OneRank() for _ in range(2)]
    for number in range(2):
        merge(ranks, shares([[4, 3, 2], [2, 6, 3]], number))
    ahead, behind = ranks
    share = shares([[4, 3], [2, 6]], 2)
    ahead.compute(share[0], 15)
    moments = behind.bits[0]["optimizer.0.weight|exp_avg"]
    if own:
        behind.compute(share[1], 15)
        assert not torch.equal(behind.bits[0]["optimizer.0.weight|exp_avg"], moments)
        behind.engine.discard()
    (done,) = commit([ahead], 2)
    behind.engine.replay(done)
    assert behind.machine.state == ahead.machine.state
    assert behind.digest == ahead.digest
    assert torch.equal(behind.bits[0]["optimizer.0.weight|exp_avg"], moments)  # of the rounds that it took part in
    merge(ranks, shares([[4, 4], [4, 4]], 3))
    assert behind.digest == ahead.digest


def test_cc15_a_round_with_a_refused_difference_changes_nothing_on_any_rank() -> None:
    """Its moments would be NaN for ever."""
    ranks = [OneRank() for _ in range(2)]
    merge(ranks, shares([[4, 4], [4, 4]], 0))
    before = [copy.deepcopy(rank.bits) for rank in ranks]
    share = shares([[4, 4], [4, 4]], 1)
    share[0][0][0].fill_(float("nan"))
    for rank, each in zip(ranks, share, strict=True):
        rank.compute(each, 16)
    ranks[0].engine.staging.tail[_REFUSED] = 1.0  # as `Reducer` has it where a codec refuses
    for rank in ranks:
        for bucket in rank.engine.staging.buckets:
            bucket.nan_to_num_(0.0)
    done = commit(ranks, 2)
    assert all(each.meta["skipped"] for each in done)
    for rank, bits in zip(ranks, before, strict=True):
        assert equal(rank.bits, bits)
