"""GM-40, PF-4: noise of a given norm in a rank's gradient, and none in the next step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from workers.collectives.exchange import FlatExchange, Place, Topology
from workers.engine import Engine
from workers.faults import Faults
from workers.identity import GENESIS, Generation
from workers.protocol import RankMachine, RankState

FIRST = Generation(1, 1)
ALONE = Topology((Place(0, "host", "127.0.0.1"),), 0)


class Rank:
    """One that trains alone."""

    def __init__(self, folder: Path, *faults: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        machine = RankMachine(state=GENESIS, generation=FIRST, promised=FIRST, healed=True, phase=RankState.TRAINING)
        self.faults = Faults(faults, folder, lambda: {"step": machine.state.step + 1})
        self.engine = Engine(self.model, optimizer, machine=machine, faults=self.faults)

    def gradient(self, *, abandoned: bool = False) -> torch.Tensor:
        """Of a step on the same samples; the weights stay, as nothing is applied."""
        chance = torch.Generator().manual_seed(1)
        x, y = torch.randn(32, 8, generator=chance), torch.randn(32, 2, generator=chance)
        self.engine.begin_step(FlatExchange(ALONE), lambda: False)
        self.faults.hit("in_backward")
        if not abandoned:
            self.engine.backward(mse_loss(self.model(x), y), len(x), len(x), last=True)
            self.engine.finish_exchange(len(x))
        found = torch.cat([view.flatten().clone() for view in self.engine.staging.views])
        self.engine.discard()
        return found


@pytest.mark.parametrize("level", [0.1, 10.0])
def test_pf4_noise_has_the_norm_that_is_asked_for_relative_to_the_gradient(tmp_path: Path, level: float) -> None:
    clean = Rank(tmp_path / "clean").gradient()
    noise = Rank(tmp_path / "noisy", f"in_backward=noise:{level:g}").gradient() - clean
    assert float(noise.norm() / clean.norm()) == pytest.approx(level, rel=1e-4)
    assert abs(float(torch.nn.functional.cosine_similarity(noise, clean, dim=0))) < 0.2


def test_pf4_noise_is_another_one_in_every_step_and_gone_after_the_last(tmp_path: Path) -> None:
    clean = Rank(tmp_path / "clean").gradient()
    rank = Rank(tmp_path / "noisy", "in_backward=noise:1")
    first, second = rank.gradient(), rank.gradient()
    assert not torch.allclose(first, second)
    rank.faults._lasting.clear()
    assert torch.equal(rank.gradient(), clean)


def test_pf4_a_step_that_is_given_up_leaves_no_noise_behind(tmp_path: Path) -> None:
    clean = Rank(tmp_path / "clean").gradient()
    rank = Rank(tmp_path / "noisy", "in_backward@step=1,steps=1=noise:1")
    rank.gradient(abandoned=True)
    rank.faults._lasting.clear()
    assert torch.equal(rank.gradient(), clean)


def test_pf4_what_the_task_draws_stays_the_same(tmp_path: Path) -> None:
    drawn: list[torch.Tensor] = []
    for faults in ((), ("in_backward=noise:1",)):
        rank = Rank(tmp_path / str(len(drawn)), *faults)
        rank.gradient()
        drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])
