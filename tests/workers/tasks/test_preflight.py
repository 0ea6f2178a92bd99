"""GM-40: the probe of the gate, alone and as a rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workers.config import TrainingConfig
from workers.tasks import RECIPES, load, preflight

CONFIG = TrainingConfig.model_validate(
    {
        "name": "probe",
        "seed": 4,
        "global_batch": 256,
        "micro_batch": 256,
        "task": {"recipe": "preflight"},
        "checkpoint": {"every": 20},
    }
)


class Job:
    """What the probe asks of its Job, over the batches that a gang would take; each one is yielded `times`."""

    def __init__(self, folder: Path, steps: int, times: int = 1) -> None:
        self.folder, self._steps, self._times = folder, steps, times
        self.committed, self.rank = 0, 3
        self.losses: list[float] = []

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, dataset: Any, *, scheduler: Any) -> Job:
        self._model, self._optimizer, self._dataset, self._scheduler = model, optimizer, dataset, scheduler
        return self

    @property
    def digest(self) -> str:
        return f"d{self.committed}"

    def batches(self) -> Iterator[Any]:
        plan = preflight.BatchPlan(CONFIG, len(self._dataset))
        while self.committed < self._steps:
            for attempt in range(self._times):
                self._last = attempt == self._times - 1
                yield self._dataset[torch.from_numpy(plan.batch(self.committed + 1).copy())]
            self.committed += 1

    def step(self, loss: Tensor) -> None:
        if self._last:
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._scheduler.step()
            self.losses.append(float(loss.detach()))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.time, "sleep", lambda seconds: None)


def run(folder: Path, steps: int, times: int = 1) -> Job:
    job = Job(folder, steps, times)
    task: Any = load(CONFIG)
    assert task.run(CONFIG, job, task.preload(CONFIG)) == {}
    return job


def test_gm40_no_message_offers_the_probe() -> None:
    found: Any = load(CONFIG)
    assert found is preflight and "preflight" not in RECIPES


def test_pf2_losses_with_a_seed_are_those_of_a_gang(tmp_path: Path) -> None:
    assert preflight.losses(CONFIG, CONFIG.seed, 30) == pytest.approx(run(tmp_path, 30).losses, rel=1e-6)


def test_pf2_the_probe_learns_at_first_and_seeds_differ() -> None:
    found = [preflight.losses(CONFIG, seed, 40) for seed in (1, 2)]
    assert all(each[29] < 0.95 * each[0] for each in found)
    assert found[0][24] != found[1][24]
    assert preflight.losses(CONFIG, 1, 40) == found[0]


def test_pf4_gradients_of_hosts_go_on_to_agree() -> None:
    """Far from the limits of 0.5 of the median cosine and of 5 times the median norm."""
    (inputs, targets), chance = preflight.preload(CONFIG).tensors, torch.Generator().manual_seed(2)
    model, optimizer, schedule = preflight._trained(CONFIG.seed)
    for step in range(600):
        rows = torch.randint(len(inputs), (4, 256), generator=chance)
        gradients = []
        for host in rows:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[host]), targets[host]).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            total, norms = torch.stack(gradients).sum(0), torch.stack([each.norm() for each in gradients])
            cosines = torch.stack([torch.cosine_similarity(each, total - each, dim=0) for each in gradients])
            assert cosines.min() > 0.75 * cosines.median() > 0.3
            assert norms.max() < 1.5 * norms.median() and norms.min() > norms.median() / 1.5


def test_pf1_pf6_ranks_note_what_they_hold_at_first_and_wherever_it_is_saved(tmp_path: Path) -> None:
    run(tmp_path, 45, times=2)
    (path,) = (tmp_path / "digests").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": step, "rank": 3, "digest": f"d{step}"} for step in (0, 20, 40)]


def test_pf6_a_rank_that_goes_on_notes_where_it_begins(tmp_path: Path) -> None:
    job: Any = Job(tmp_path, 47)
    notes = preflight._Notes(job, 20)
    for step in (33, 33, 34, 40):
        job.committed = step
        notes.take()
    (path,) = (tmp_path / "digests").iterdir()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [33, 40]
