"""A rank without a gang that goes through the phases of a job, saves what it has, and finds it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.checkpoint import list_checkpoints
from workers.collectives.exchange import Place, Topology
from workers.config import TrainingConfig
from workers.engine import Engine
from workers.identity import GENESIS, Generation, StateId
from workers.keeper import Keeper
from workers.protocol import RankMachine, RankState
from workers.rank import Rank
from workers.resuming import Finder

FIRST = Generation(1, 1)


class Phases:
    """A lowest rank, its state written by hand; the phases it enters, and what that saves."""

    def __init__(self, folder: Path, **checkpoint: Any) -> None:
        self.rank = Rank(job="job", host="a", address="127.0.0.1", folder=folder, runtime=folder, faults=[])
        self.rank.topology = Topology((Place(0, "a", "127.0.0.1"), Place(1, "b", "127.0.0.1")), 0)
        trained = {"generation": FIRST, "promised": FIRST, "healed": True, "phase": RankState.TRAINING}
        self.rank.machine = RankMachine(state=GENESIS, **trained)  # type: ignore[arg-type]
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.engine = Engine(model, optimizer, machine=self.rank.machine, faults=self.rank.faults)
        self.keeper = Keeper(self.rank, self.engine, config(checkpoint=checkpoint))
        self.finder = Finder(self.rank, self.engine.replica, config(checkpoint=checkpoint))
        (folder / "control").mkdir()
        (folder / "control" / "fence.json").write_text(json.dumps({"incarnation": 1, "counter": 1}))
        self.folder = folder

    def at(self, phase: str, step: int, round_: int = 0) -> None:
        self.rank.machine.state = StateId(step, round_, FIRST, 100 * step + round_)
        self.keeper.enter(phase)
        self.wait()

    def take(self, step: int) -> None:
        """Commit a step that may be due for a checkpoint."""
        self.rank.machine.state = StateId(step, 0, FIRST, 100 * step)
        self.keeper.after_step(step)
        self.wait()

    def wait(self) -> None:
        if self.keeper._writer is not None:
            assert self.keeper._writer.wait(60.0)

    @property
    def saved(self) -> list[str]:
        """Oldest first."""
        return [entry.path.name for entry in reversed(list_checkpoints(self.folder / "checkpoints"))]


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"name": "job", **values})
