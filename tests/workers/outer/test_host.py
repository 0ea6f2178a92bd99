"""CC-24 where hosts train alone: the ranks of one sum the gradients of every inner step in the memory that they share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

from tests.workers.outer.ranks import Batch, Nowhere, OneRank, adamw, commit, never, plain_model
from workers.collectives.exchange import Abandoned
from workers.collectives.shared import HostExchange, HostMemory
from workers.config import TrainingConfig
from workers.data.plan import Seat
from workers.elastic import Job
from workers.identity import Generation

SPLIT = [5, 2, 0]
"""Samples of each rank of the host in an inner batch."""


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path("/dev/shm", f"quantarion-test-outer-{torch.Generator().seed()}")
    yield path
    shutil.rmtree(path)


class Host:
    """Ranks that share memory, a thread for each."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.ranks = [OneRank(model=plain_model, optimizer=adamw, within="host", **settings) for _ in SPLIT]
        layout = self.ranks[0].engine.shared_layout
        self._memories = [HostMemory(folder / f"{rank}.memory", layout) for rank in range(len(SPLIT))]
        paths = [memory.path for memory in self._memories]
        with ThreadPoolExecutor(len(SPLIT)) as threads:
            self._exchanges = list(threads.map(lambda m: HostExchange(m, paths, Generation(1, 1)), self._memories))

    def inner_step(self, batch: Batch) -> None:
        x, y = batch
        with ThreadPoolExecutor(len(SPLIT)) as threads:
            inputs, targets = x.split(SPLIT), y.split(SPLIT)
            list(threads.map(self._step, self.ranks, self._exchanges, inputs, targets, [len(x)] * len(SPLIT)))

    @staticmethod
    def _step(rank: OneRank, exchange: HostExchange, x: torch.Tensor, y: torch.Tensor, samples: int) -> None:
        if len(x):
            rank.engine.backward(mse_loss(rank.model(x), y), len(x), samples, last=False)
        assert rank.engine.outer is not None
        rank.engine.outer.inner_step(exchange, never)


def batches(number: int, seed: int) -> list[Batch]:
    noise = torch.Generator().manual_seed(seed)
    size = sum(SPLIT)
    return [(torch.randn(size, 3, generator=noise), torch.randn(size, 2, generator=noise)) for _ in range(number)]


@pytest.mark.parametrize("clip_norm", [None, 0.2])
def test_cc24_ranks_of_a_host_are_one_replica(clip_norm: float | None, folder: Path) -> None:
    """They train as one rank with all of their samples: the same parameters in the round, moments and outer step."""
    host, alone = Host(folder, clip_norm=clip_norm), OneRank(model=plain_model, optimizer=adamw, clip_norm=clip_norm)
    samples = sum(SPLIT)
    for number in range(3):
        for rank in (*host.ranks, alone):
            rank.begin()
        for batch in batches(3, seed=number):
            host.inner_step(batch)
            alone.inner_step(batch)
            first, *others = host.ranks
            for other in others:
                assert all(map(torch.equal, other.model.parameters(), first.model.parameters()))
        for rank in (*host.ranks, alone):
            rank.engine.finish_exchange(3 * samples)
        commit(host.ranks, 3)
        commit([alone], 3)
    assert len({rank.digest for rank in host.ranks}) == 1
    ours, theirs = host.ranks[0].bits[0], alone.bits[0]
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)
    assert float(theirs["outer.0.weight"].norm()) > 1e-2


def test_cc7_an_inner_step_whose_host_is_not_complete_is_abandoned(folder: Path) -> None:
    host = Host(folder)
    rank, exchange = host.ranks[0], host._exchanges[0]
    before = rank.digest
    rank.engine.begin_step(Nowhere(), never)  # type: ignore[arg-type]
    x, y = batches(1, seed=0)[0]
    rank.engine.backward(mse_loss(rank.model(x), y), len(x), len(x), last=False)
    assert rank.engine.outer is not None
    with pytest.raises(Abandoned):
        rank.engine.outer.inner_step(exchange, lambda: True)
    rank.engine.discard()
    assert rank.digest == before


@pytest.mark.parametrize(
    ("within", "shares", "together"), [("host", True, (2, 3)), ("host", False, ()), ("rank", True, ())], ids=str
)
def test_cc24_who_takes_inner_steps_together(within: str, shares: bool, together: tuple[int, ...]) -> None:
    """The ranks that share memory; where there is none, everybody alone."""
    exchange, light = object() if shares else None, (2, 2, 1, 1)
    rank = SimpleNamespace(
        world=4, index=3, attempt=1, first_step=7, hosts=((0, 1), (2, 3)), host_exchange=exchange, shares=light
    )
    config = TrainingConfig.model_validate({"name": "job", "sync": {"every": 4, "within": within}})
    job: Any = SimpleNamespace(_rank=rank, config=config, _again=0)
    assert Job._seat(job, 7) == Seat(4, 3, 1, together, light)
    assert Job._seat(job, 8) == Seat(4, 3, 0, together, light)
