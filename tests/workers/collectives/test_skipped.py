"""CC-11, CC-15: a step with a gradient that is not finite is committed and changes nothing, on every rank alike."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import workers.engine
from tests.workers.collectives.gangs import Gang, never
from workers.collectives.buckets import BucketPlan, plan_buckets
from workers.compression.config import CompressionConfig
from workers.compression.gradients import GradientCompression
from workers.compression.setup import compression_of
from workers.engine import Engine
from workers.faults import Faults
from workers.identity import GENESIS, Generation
from workers.protocol import RankMachine, RankState

FIRST = Generation(1, 1)
RANKS = 3
META = {"kind": "step", "hosts": [2, 1]}


@pytest.fixture(autouse=True)
def several_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.engine, "plan_buckets", partial(plan_buckets, first_bytes=64, bucket_bytes=200))


@pytest.fixture(autouse=True)
def sockets_are_closed() -> Iterator[None]:
    """Hooks of parameters keep an engine for ever, and it would keep the groups of its last step."""
    yield
    for rank in RUNNING:
        rank.engine._reducer = rank.engine._exchange = None
        rank.engine._pending.clear()
    RUNNING.clear()
    gc.collect()


class Rank:
    """An engine of a small network, with a loss scaler or without."""

    def __init__(self, codec: str, scaled: bool) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 5))
        machine = RankMachine(state=GENESIS, generation=FIRST, promised=FIRST, healed=True, phase=RankState.TRAINING)
        self.scaler: Any = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3) if scaled else None

        def compression(plan: BucketPlan) -> GradientCompression:
            return compression_of(plan, CompressionConfig(codec=codec, dense_steps=1, dense_share=0.0), 20)

        self.engine = Engine(
            self.model,
            torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9),
            machine=machine,
            faults=Faults([], Path(), dict),
            scaler=self.scaler,
            compression=compression,
        )

    def parameters(self) -> Tensor:
        return torch.cat([parameter.detach().reshape(-1).clone() for parameter in self.model.parameters()])


RUNNING: list[Rank] = []


def train(gang: Gang, ranks: list[Rank], step: int, spoilt: int | None = None) -> list[dict[str, Any]]:
    """A step of all ranks; the inputs of rank `spoilt` make NaN of its gradients."""

    def one(rank: int) -> dict[str, Any]:
        mine, engine = ranks[rank], ranks[rank].engine
        noise = torch.Generator().manual_seed(100 * step + rank)
        inputs, targets = torch.randn(4, 6, generator=noise), torch.randn(4, 5, generator=noise)
        engine.begin_step(gang.reducers[rank]._exchange, never, None, gang.reducers[rank])
        loss = mse_loss(mine.model(inputs), targets)
        engine.backward(loss * float("nan") if rank == spoilt else loss, 4, 4 * RANKS, last=True)
        engine.finish_exchange(4 * RANKS)
        meta = {**META, "loss_scale": engine.loss_scale}
        engine.apply_step(meta, FIRST)
        return meta

    return gang.each(one)


def start(store: str, folder: Path, codec: str, scaled: bool, number: int = 1) -> tuple[Gang, list[Rank]]:
    ranks = [Rank(codec, scaled) for _ in range(RANKS)]
    RUNNING.extend(ranks)
    return Gang(store, folder, [2, 1], [rank.engine.compression for rank in ranks], number), ranks


def same(ranks: list[Rank]) -> None:
    assert len({rank.engine.replica.digest() for rank in ranks}) == 1


@pytest.mark.parametrize("codec", ["int8", "topk 0.2", "powersgd 2"])
def test_cc15_one_rank_s_nan_skips_the_step_on_all(store: str, tmp_path: Path, codec: str) -> None:
    gang, ranks = start(store, tmp_path, codec, scaled=False)
    for step in range(3):
        train(gang, ranks, step)
    before = [rank.parameters() for rank in ranks]
    buffers = [rank.model.get_buffer("1.running_mean").clone() for rank in ranks]
    owed = [rank.engine.compression.memory.state_dict() for rank in ranks]
    metas = train(gang, ranks, 3, spoilt=1)
    assert all(meta["skipped"] for meta in metas)
    for rank, parameters, mean, kept in zip(ranks, before, buffers, owed, strict=True):
        assert torch.equal(rank.parameters(), parameters)
        assert torch.equal(rank.model.get_buffer("1.running_mean"), mean)
        after = rank.engine.compression.memory.state_dict()
        assert all(torch.equal(after[name], kept[name]) for name in kept) and after.keys() == kept.keys()
        assert rank.engine.machine.state.step == 4
    same(ranks)
    assert not train(gang, ranks, 4)[0].get("skipped")
    same(ranks)
    assert not torch.equal(ranks[0].parameters(), before[0])


@pytest.mark.parametrize("codec", ["int8", "topk 0.2", "powersgd 2"])
def test_cc11_an_overflow_that_one_rank_sees_lowers_the_scale_of_all(store: str, tmp_path: Path, codec: str) -> None:
    gang, ranks = start(store, tmp_path, codec, scaled=True)
    for step in range(3):
        train(gang, ranks, step)
    assert ranks[0].scaler.get_scale() == 2048.0
    before = ranks[0].parameters()
    train(gang, ranks, 3, spoilt=2)
    assert [rank.scaler.get_scale() for rank in ranks] == [1024.0] * RANKS
    assert all(torch.equal(rank.parameters(), before) for rank in ranks)
    same(ranks)


@pytest.mark.parametrize("codec", ["int8", "topk 0.2", "powersgd 2"])
def test_cc11_what_is_owed_outlives_a_change_of_the_loss_scale(store: str, tmp_path: Path, codec: str) -> None:
    """With a scale that moves, the parameters go where they go without one: what is owed is not in its units."""
    results = []
    for number, scaled in enumerate((False, True)):
        gang, ranks = start(store, tmp_path, codec, scaled, number + 1)
        for step in range(9):
            train(gang, ranks, step)
        results.append(ranks[0].parameters())
        same(ranks)
    assert torch.allclose(results[0], results[1], atol=1e-5)
