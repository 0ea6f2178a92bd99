"""The rules of one step that show inside a rank: EP-2, EP-4, EP-6, EP-7, EP-9, EP-11, on the real engine without a gang."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, mse_loss

import workers.engine
from workers.collectives.buckets import Row, plan_buckets
from workers.collectives.exchange import Abandoned
from workers.collectives.ordered import Node, SumOrder, fold
from workers.engine import ApplyError, Engine
from workers.errors import TaskError
from workers.faults import Faults
from workers.identity import GENESIS, NOWHERE, Generation, StateId
from workers.observing import StepObserver
from workers.protocol import RankMachine, RankState
from workers.rank import Host, Rank
from workers.transfer import Commit, Snapshot, StateServer, TransferError

FIRST = Generation(1, 1)
BATCH = 12
META = {"kind": "step"}


class Recording:
    """An exchange that notes its operands and leaves the summing to the test."""

    def __init__(self) -> None:
        self.operands: list[torch.Tensor] = []
        self.nodes: list[tuple[Node, Row]] = []

    def all_reduce(self, buffer: torch.Tensor, *, largest: bool = False) -> Recording:
        self.operands.append(buffer)
        return self

    def sum_in_order(self, nodes: Sequence[tuple[Node, Row]], order: SumOrder, out: Row) -> list[Recording]:
        self.nodes = list(nodes)
        return [self]

    def wait(self, stop: Callable[[], bool]) -> None:
        if stop():
            raise Abandoned


class OneRank:
    """An engine in a running generation, with a network small enough to compute by hand."""

    def __init__(self, *faults: str, folder: Path | None = None, machine: RankMachine | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        trained = RankMachine(state=GENESIS, generation=FIRST, promised=FIRST, healed=True, phase=RankState.TRAINING)
        self.machine = machine or trained
        where = Faults(list(faults), folder or Path(), dict)
        self.engine = Engine(self.model, optimizer, machine=self.machine, faults=where, scheduler=self.scheduler)
        self.exchange = Recording()

    def compute(self, inputs: torch.Tensor, targets: torch.Tensor, pieces: int = 1) -> None:
        """Forward, backward and launch of this rank's share of a batch of `BATCH` samples."""
        self.engine.begin_step(self.exchange, lambda: False)
        for piece in range(pieces if len(inputs) else 0):
            x, y = inputs.tensor_split(pieces)[piece], targets.tensor_split(pieces)[piece]
            self.engine.backward(mse_loss(self.model(x), y), len(x), BATCH, last=piece == pieces - 1)
        self.engine.finish_exchange(BATCH)

    def compute_in_order(self, leaves: list[tuple[torch.Tensor, torch.Tensor]], order: SumOrder) -> None:
        """The same, with a sum that has one order."""
        self.engine.begin_step(self.exchange, lambda: False, order)
        for leaf in order.mine:
            x, y = leaves[leaf]
            self.engine.backward(mse_loss(self.model(x), y), len(x), BATCH, last=leaf == order.mine[-1])
        self.engine.finish_exchange(BATCH)

    @property
    def digest(self) -> str:
        return self.engine.replica.digest()


@pytest.fixture(autouse=True)
def several_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of a few parameters, so that a small step has several."""
    monkeypatch.setattr(workers.engine, "plan_buckets", partial(plan_buckets, first_bytes=32, bucket_bytes=64))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(5)
    return torch.randn(BATCH, 3, generator=noise), torch.randn(BATCH, 2, generator=noise)


def exchange_and_apply(ranks: list[OneRank]) -> None:
    """What the network would do: every rank ends with the sum, bucket by bucket, and commits."""
    for buckets in zip(*(rank.engine.staging.buckets for rank in ranks), strict=True):
        total = torch.stack(buckets).sum(dim=0)
        for bucket in buckets:
            bucket.copy_(total)
    for rank in ranks:
        rank.engine.apply_step(dict(META), FIRST)


def test_ep2_the_exchange_starts_on_the_last_micro_batch(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rank = OneRank()
    inputs, targets = batch
    rank.engine.begin_step(rank.exchange, lambda: False)
    rank.engine.backward(mse_loss(rank.model(inputs[:6]), targets[:6]), 6, BATCH, last=False)
    assert rank.exchange.operands == []
    rank.engine.backward(mse_loss(rank.model(inputs[6:]), targets[6:]), 6, BATCH, last=True)
    launched = len(rank.exchange.operands)
    assert 0 < launched < len(rank.engine.staging.buckets)  # the last one waits for its tail
    rank.engine.finish_exchange(BATCH)
    assert [id(b) for b in rank.exchange.operands] == [id(b) for b in rank.engine.staging.buckets]


def test_ep4_a_discard_puts_back_what_the_forward_pass_changed(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rank = OneRank()
    before, rate = rank.digest, rank.scheduler.get_last_lr()
    running_mean = rank.model.get_buffer("1.running_mean").clone()
    rank.compute(*batch)
    assert not torch.equal(rank.model.get_buffer("1.running_mean"), running_mean)
    rank.engine.discard()
    assert rank.digest == before
    assert rank.scheduler.get_last_lr() == rate
    assert rank.machine.state == GENESIS
    assert all(parameter.grad is None for parameter in rank.model.parameters())


def in_order(shares: tuple[range, ...], batch: tuple[torch.Tensor, torch.Tensor], steps: int = 3) -> list[OneRank]:
    """Ranks that have committed `steps` whose leaves they share out like this."""
    ranks = [OneRank() for _ in shares]
    leaves = list(zip(batch[0].split(2), batch[1].split(2), strict=True))
    for _ in range(steps):
        for index, rank in enumerate(ranks):
            rank.compute_in_order(leaves, SumOrder(shares, index))
            assert rank.exchange.operands == []  # nothing goes out bucket by bucket
        nodes = [node for rank in ranks for node in rank.exchange.nodes]
        sums = [fold((node, row.buckets[i].clone()) for node, row in nodes) for i in range(len(nodes[0][1].buckets))]
        for rank in ranks:
            for bucket, total in zip(rank.engine.staging.buckets, sums, strict=True):
                bucket.copy_(total)
            rank.engine.apply_step(dict(META), FIRST)
    return ranks


def test_ep4_a_sum_in_order_gives_the_same_bits_on_any_number_of_ranks(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Parameters, moments, BatchNorm's statistics, loss; the lineage says so too, as it hashes what was exchanged."""
    shared_out = [(range(6),), (range(3), range(3, 6)), (range(2), range(2, 2), range(2, 3), range(3, 6))]
    gangs = [in_order(shares, batch) for shares in shared_out]
    assert len({rank.digest for gang in gangs for rank in gang}) == 1
    assert len({rank.machine.state for gang in gangs for rank in gang}) == 1


def test_ep4_in_order_the_statistics_are_those_of_the_micro_batches(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Each begins from the committed state, and their mean is taken over: one update of BatchNorm, as of one batch."""
    (rank,), plain = in_order((range(6),), batch, steps=1), OneRank()
    plain.compute(*batch)
    plain.engine.apply_step(dict(META), FIRST)
    buffers, expected = dict(rank.model.named_buffers()), dict(plain.model.named_buffers())
    assert int(buffers["1.num_batches_tracked"]) == int(expected["1.num_batches_tracked"]) == 1
    assert torch.allclose(buffers["1.running_mean"], expected["1.running_mean"], atol=1e-6)


def test_ep4_a_discarded_step_leaves_no_trace_in_the_next(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    straight, disturbed = OneRank(), OneRank()
    disturbed.compute(batch[0] + 1.0, batch[1])
    disturbed.engine.discard()
    for rank in (straight, disturbed):
        rank.compute(*batch)
        rank.engine.apply_step(dict(META), FIRST)
    assert disturbed.machine.state == straight.machine.state
    assert disturbed.digest == straight.digest


def test_ep4_buffers_are_reduced_by_samples_and_counters_advance_on_commit(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Two ranks with 3 and 9 of 12 samples: the running mean moves by the weighted mean of their moves."""
    ranks = [OneRank(), OneRank()]
    shares = [(batch[0][:3], batch[1][:3]), (batch[0][3:], batch[1][3:])]
    expected = torch.zeros(4)
    for inputs, _ in shares:
        mean = torch.zeros(4)
        batch_norm(ranks[0].model[0](inputs), mean, torch.ones(4), training=True, momentum=0.1)
        expected += mean.detach() * len(inputs) / BATCH
    for rank, share in zip(ranks, shares, strict=True):
        rank.compute(*share)
        assert rank.scheduler.get_last_lr() == [0.1]
    exchange_and_apply(ranks)
    assert ranks[0].digest == ranks[1].digest
    assert torch.allclose(ranks[0].model.get_buffer("1.running_mean"), expected, atol=1e-6)
    assert int(ranks[0].model.get_buffer("1.num_batches_tracked")) == 1
    assert ranks[0].scheduler.get_last_lr() == [0.05]


@pytest.mark.parametrize("split", [(12,), (6, 6), (2, 10), (4, 4, 4), (0, 12)], ids=str)
def test_ep6_gm2_a_change_of_members_does_not_rescale_what_is_sent(
    split: tuple[int, ...], batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Each rank sends n_r · g_r / global batch, so the sum is the gradient of the mean however the batch is split."""
    ranks = [OneRank() for _ in split]
    alone = ranks[0].model
    alone.eval()  # running statistics, so that the gradient of a sample does not depend on its neighbours
    loss = mse_loss(alone(batch[0]), batch[1])
    expected = torch.autograd.grad(loss, list(alone.parameters()))
    for rank, inputs, targets in zip(ranks, batch[0].split(split), batch[1].split(split), strict=True):
        rank.model.eval()
        rank.compute(inputs, targets)
    sums = [sum(views) for views in zip(*(rank.engine.staging.views for rank in ranks), strict=True)]
    for total, gradient in zip(sums, expected, strict=True):
        assert torch.allclose(torch.as_tensor(total), gradient, atol=1e-6)


def test_ep6_what_a_peer_is_healed_with_is_replicated_state_only(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rank = OneRank()
    rank.compute(*batch)
    rank.engine.apply_step(dict(META), FIRST)
    names = rank.engine.capture().captured.tensors.keys()
    assert {name.partition(".")[0] for name in names} == {"parameter", "buffer", "optimizer"}
    assert {name.rpartition("|")[2] for name in names if name.startswith("optimizer.")} == {"momentum_buffer"}


def test_ep7_an_abandoned_operation_writes_to_garbage(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """gloo may still write to its operands after the step was given up: nobody reads them any more."""
    rank, undisturbed = OneRank(), OneRank()
    rank.compute(*batch)
    abandoned = list(rank.exchange.operands)
    rank.engine.discard()
    rank.compute(*batch)
    for operand in abandoned:
        operand.fill_(float("nan"))
    rank.engine.apply_step(dict(META), FIRST)
    undisturbed.compute(*batch)
    undisturbed.engine.apply_step(dict(META), FIRST)
    assert rank.digest == undisturbed.digest


def test_ep7_a_backward_pass_is_abandoned_at_the_next_gradient(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rank = OneRank()
    rank.engine.begin_step(rank.exchange, lambda: True)
    with pytest.raises(Abandoned):
        rank.engine.backward(mse_loss(rank.model(batch[0]), batch[1]), BATCH, BATCH, last=True)
    assert rank.exchange.operands == []


def test_a_gradient_that_arrives_again_before_it_was_sent_counts_once(
    batch: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.engine, "plan_buckets", plan_buckets)  # one bucket, sent at the end
    once, twice = OneRank(), OneRank()
    once.compute(*batch)
    twice.engine.begin_step(twice.exchange, lambda: False)
    twice.engine.backward(in_two_passes(twice.model, *batch), BATCH, BATCH, last=True)
    twice.engine.finish_exchange(BATCH)
    for mine, theirs in zip(twice.engine.staging.buckets, once.engine.staging.buckets, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_gradient_that_arrives_again_after_it_was_sent_is_refused(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rank = OneRank()
    rank.engine.begin_step(rank.exchange, lambda: False)
    with pytest.raises(TaskError, match=r"gradient of 2\.\w+ was accumulated twice .* use_reentrant=False"):
        rank.engine.backward(in_two_passes(rank.model, *batch), BATCH, BATCH, last=True)


def in_two_passes(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of a batch whose second half runs its own backward pass inside the first one's, as re-entrant checkpointing
    does."""
    hidden = cast(nn.Sequential, model)[:2](inputs)
    return Halves.apply(hidden, targets, cast(nn.Sequential, model)[2])


class Halves(torch.autograd.Function):
    """Mean squared error of `head(hidden)`, accumulated into the head's parameters half by half."""

    @staticmethod
    def forward(context: Any, hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
        context.head = head
        context.save_for_backward(hidden, targets)
        return mse_loss(head(hidden), targets)

    @staticmethod
    def backward(context: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        hidden, targets = context.saved_tensors
        grads = []
        for half in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH)):
            with torch.enable_grad():
                part = hidden[half].detach().requires_grad_()
                (mse_loss(context.head(part), targets[half]) * outputs[0] / 2).backward()
            assert part.grad is not None
            grads.append(part.grad)
        return torch.cat(grads), None, None


def test_a_buffer_or_parameter_that_is_replaced_is_refused(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The state would no longer be what the model computes with."""
    rank = OneRank()
    norm = rank.model.get_submodule("1")
    norm.running_mean = torch.zeros(4)
    with pytest.raises(TaskError, match=r"the buffer 1\.running_mean is no longer the tensor .*running_mean\.copy_"):
        rank.compute(*batch)
    rank = OneRank()
    rank.model.get_submodule("0").register_parameter("bias", nn.Parameter(torch.zeros(4)))
    with pytest.raises(TaskError, match=r"the parameter 0\.bias is no longer"):
        rank.compute(*batch)


def test_ep11_an_exception_inside_apply_makes_the_rank_unhealed(
    batch: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    rank = OneRank("in_apply=raise", folder=tmp_path)
    rank.compute(*batch)
    with pytest.raises(ApplyError):
        rank.engine.apply_step(dict(META), FIRST)
    assert not rank.machine.healed
    assert rank.machine.state == NOWHERE
    assert rank.engine.recent.find_offer(GENESIS) is None  # nobody is healed from it


# ---------------------------------------------------------------------- state from a peer


class Owner:
    """What a Job does for its rank, without data."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def restore(self, snapshot: Snapshot) -> None:
        self._engine.restore(snapshot)

    def replay(self, commit: Commit) -> None:
        self._engine.replay(commit)


@pytest.fixture
def asker(tmp_path: Path) -> Iterator[Rank]:
    """A rank without an agent, in the first generation, that holds no state yet."""
    rank = Rank(job="job", host="host-1", address="127.0.0.1", folder=tmp_path, runtime=tmp_path, faults=[])
    rank.machine.generation = FIRST
    rank.machine.phase = RankState.SYNCING
    other = OneRank(machine=rank.machine)
    rank.engine, rank._owner = other.engine, cast(Host, Owner(other.engine))
    yield rank
    rank.page.close()


def test_ep9_whoever_is_healed_ends_where_the_donor_stands(asker: Rank, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """A donor may offer a copy that it made for somebody else some commits ago: the commits since then are fetched too."""
    donor = OneRank()
    donor.engine.recent.find_offer(NOWHERE)
    donor.engine.recent.serve_snapshot(donor.engine.capture)
    for _ in range(3):
        donor.compute(*batch)
        donor.engine.apply_step(dict(META), FIRST)
    stale = donor.engine.recent.find_offer(NOWHERE)
    assert stale is not None and stale.snapshot is not None and stale.snapshot.state == GENESIS
    server = StateServer("127.0.0.1", donor.engine.recent.find_offer)
    asker._get_state([server.address], donor.machine.state)
    server.close()
    assert asker.machine.state == donor.machine.state
    assert asker.machine.healed
    assert asker.engine is not None and asker.engine.replica.digest() == donor.digest


def test_ep9_a_donor_that_stands_elsewhere_heals_nobody(asker: Rank) -> None:
    donor = OneRank()
    thread = Thread(target=serve_snapshot_when_asked, args=(donor,), daemon=True)
    thread.start()
    server = StateServer("127.0.0.1", donor.engine.recent.find_offer)
    with pytest.raises(TransferError, match="the donor stands at"):
        asker._get_state([server.address], StateId(7, 0, FIRST, 7))
    server.close()


def test_ep11_a_donor_answers_a_member_only_once_it_has_entered_the_same_generation() -> None:
    """Before that it may hold a line that was left, and not know it."""
    donor = OneRank()
    assert donor.engine.recent.find_offer(GENESIS, Generation(1, 2)) is None
    donor.machine.generation = Generation(1, 2)
    assert donor.engine.recent.find_offer(GENESIS, Generation(1, 2)) is not None


def serve_snapshot_when_asked(donor: OneRank) -> None:
    """What a rank does at its poll points."""
    donor.engine.recent.wanted.wait()
    donor.engine.recent.serve_snapshot(donor.engine.capture)


class Widest(StepObserver):
    """Remembers the largest magnitude ever committed."""

    most: torch.Tensor

    def __init__(self) -> None:
        super().__init__(1)
        self.register_buffer("most", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.saw(x.abs().amax().reshape(1))
        return x * (1.0 + self.most)  # what it has learned shows in the forward pass

    def take(self, reduced: torch.Tensor) -> None:
        if reduced[0].isfinite():
            self.most.copy_(torch.maximum(self.most, reduced[0]))


class Observing(OneRank):
    """The same rank with an observer of what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.widest = Widest()
        self.model = nn.Sequential(self.widest, *self.model)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.engine = Engine(self.model, optimizer, machine=self.machine, faults=Faults([], Path(), dict))


def reduce_and_apply(ranks: list[Observing]) -> list[Commit]:
    largest = torch.stack([rank.engine.staging.observed for rank in ranks]).amax(dim=0)
    for rank in ranks:
        rank.engine.staging.observed.copy_(largest)
    for buckets in zip(*(rank.engine.staging.buckets for rank in ranks), strict=True):
        total = torch.stack(buckets).sum(dim=0)
        for bucket in buckets:
            bucket.copy_(total)
    return [rank.engine.apply_step(dict(META), FIRST) for rank in ranks]


def test_qs36_ranges_are_those_of_all_ranks_and_an_empty_share_changes_nothing(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    ranks = [Observing(), Observing(), Observing()]
    shares = [(batch[0][:3], batch[1][:3]), (batch[0][3:], batch[1][3:]), (batch[0][:0], batch[1][:0])]
    for rank, share in zip(ranks, shares, strict=True):
        rank.compute(*share)
        assert float(rank.widest.most) == 0.0  # not before the commit
    reduce_and_apply(ranks)
    assert {float(rank.widest.most) for rank in ranks} == {float(batch[0].abs().max())}
    assert len({rank.digest for rank in ranks}) == 1


def test_qs36_a_discarded_step_discards_what_was_observed(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    straight, disturbed = Observing(), Observing()
    disturbed.compute(batch[0] * 100.0, batch[1])
    disturbed.engine.discard()
    for rank in (straight, disturbed):
        rank.compute(*batch)
        reduce_and_apply([rank])
    assert disturbed.digest == straight.digest
    assert float(straight.widest.most) > 0.0


def test_qs36_a_rank_that_replays_a_commit_learns_the_same_range(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    donor, joiner = Observing(), Observing()
    donor.compute(*batch)
    (commit,) = reduce_and_apply([donor])
    joiner.engine.replay(commit)
    assert joiner.digest == donor.digest
    assert float(joiner.widest.most) == float(batch[0].abs().max())


def test_qs36_what_is_not_a_number_is_not_observed() -> None:
    widest = Widest()
    widest.saw(torch.tensor([float("nan")]))
    widest.saw(torch.tensor([float("inf")]))
    assert widest.seen.tolist() == [-float("inf")]
    widest.saw(torch.tensor([2.0]))
    widest.saw(torch.tensor([float("nan")]))
    assert widest.seen.tolist() == [2.0]


def round_meta(name: str, *, observe: bool) -> dict[str, Any]:
    return {"kind": "round", "name": name, "keys": ["n"], "largest": ["top"], "observe": observe}


def test_qs36_a_round_observes_and_what_follows_from_it_is_part_of_its_commit(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    donor, joiner = Observing(), Observing()
    for rank in (donor, joiner):
        rank.engine.after_round = partial(keep_or_put_back, rank.engine)
    built = donor.digest
    _, observed = donor.engine.observe_round(lambda: donor.model(batch[0]), observe=True)
    assert donor.digest == built  # although BatchNorm was in training
    results = [torch.tensor([12.0]).double(), torch.cat([torch.tensor([3.5]).double(), observed])]
    rounds = [("keep", False), ("observe", True), ("put back", False)]
    for name, observe in rounds:
        tensors = [results[0], results[1] if observe else results[1][:1]]
        commit = donor.engine.apply_round(round_meta(name, observe=observe), tensors, FIRST)
        if name == "observe":
            assert float(donor.widest.most) == float(batch[0].abs().max())
        joiner.engine.replay(commit)
        assert joiner.digest == donor.digest != built
    assert donor.engine.replica.history == [(0, name, {"n": 12.0, "top": 3.5}) for name, _ in rounds]
    assert float(donor.widest.most) == 0.0  # as it was kept


def keep_or_put_back(engine: Engine, name: str, results: dict[str, float]) -> None:
    assert results == {"n": 12.0, "top": 3.5}
    if name == "keep":
        engine.replica.keep()
    if name == "put back":
        engine.replica.put_back()


def test_ep11_an_error_that_follows_from_a_round_makes_the_rank_unhealed() -> None:
    rank = OneRank()

    def fail(name: str, results: dict[str, float]) -> None:
        raise ValueError("no such weights")

    rank.engine.after_round = fail
    with pytest.raises(ApplyError, match="no such weights"):
        rank.engine.apply_round(round_meta("x", observe=False), [torch.zeros(1).double(), torch.zeros(1).double()], FIRST)
    assert not rank.machine.healed
    assert rank.engine.replica.history == []


def test_kept_weights_travel_with_the_state(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rank, other = OneRank(), OneRank()
    rank.engine.replica.keep()
    rank.engine.replica.added_epochs["qat"] = 3
    kept = [parameter.clone() for parameter in rank.model.parameters()]
    rank.compute(*batch)
    rank.engine.apply_step(dict(META), FIRST)
    other.engine.restore(rank.engine.capture())
    assert other.digest == rank.digest
    assert other.engine.replica.added_epochs == {"qat": 3}
    other.engine.replica.put_back()
    assert all(torch.equal(a, b) for a, b in zip(other.model.parameters(), kept, strict=True))
    with pytest.raises(RuntimeError, match="no weights to put back"):
        OneRank().engine.replica.put_back()
