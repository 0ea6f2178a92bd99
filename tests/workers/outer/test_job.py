"""CC-24 in a training loop: a step is a round of batches, and all that counts steps counts rounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from tests.workers.tasks.solo_job import bound, config, run
from workers.config import TrainingConfig
from workers.data import sampler
from workers.elastic import Job
from workers.errors import TaskError

SAMPLES, BATCH, EPOCHS = 100, 16, 3
BATCHES = -(-SAMPLES // BATCH)


def settings(**values: Any) -> TrainingConfig:
    common = {"name": "job", "seed": 3, "global_batch": BATCH, "micro_batch": 8, "record_samples": True}
    phases = {"fp32_epochs": EPOCHS, "qat_epochs": 0}
    return TrainingConfig.model_validate({**common, "phases": phases, **values})


def train(wanted: TrainingConfig) -> tuple[Job, list[int], list[float], list[dict[str, Any]]]:
    """A job of one rank: the samples in the order of reading, the learning rate at each, and the lines of its log."""
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, 4)
    data = TensorDataset(inputs, (inputs[:, :3]).argmax(dim=1), torch.arange(SAMPLES))
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    read: list[int] = []
    rates: list[float] = []
    with bound(wanted):
        job = Job(model, optimizer, data, scheduler=scheduler)
        for x, y, ids in job.batches():
            read += ids.tolist()
            rates += [optimizer.param_groups[0]["lr"]] * len(ids)
            assert job.epoch == (len(read) - 1) // SAMPLES
            job.step(cross_entropy(model(x), y))
        lines = [json.loads(line) for line in (job.folder / "steps.jsonl").read_text().splitlines()]
    return job, read, rates, lines


@pytest.mark.parametrize("every", [2, 3, 7, 50])
def test_cc24_a_round_is_one_committed_step(every: int) -> None:
    job, read, rates, lines = train(settings(sync={"every": every}))
    rounds = -(-BATCHES // every)
    assert job.committed == job.total_steps == EPOCHS * rounds == len(lines)
    assert [line["step"] for line in lines] == list(range(1, EPOCHS * rounds + 1))
    assert [line["inner_steps"] for line in lines[:rounds]] == [
        min(every, BATCHES - every * index) for index in range(rounds)
    ]
    assert sum(line["inner_steps"] for line in lines) == EPOCHS * BATCHES
    assert sum(line["samples"] for line in lines) == EPOCHS * SAMPLES
    expected = [sampler.permutation(3, epoch, SAMPLES).tolist() for epoch in range(EPOCHS)]
    assert read == [sample for order in expected for sample in order]  # as without rounds
    batches = [epoch * BATCHES + place // BATCH for epoch in range(EPOCHS) for place in range(SAMPLES)]
    assert rates == pytest.approx([0.1 / (1 + batch) for batch in batches])
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]


def test_cc24_without_rounds_nothing_is_other_than_before() -> None:
    job, _, _, lines = train(settings())
    assert job._engine.outer is None
    assert [line["inner_steps"] for line in lines] == [1] * (EPOCHS * BATCHES)
    assert {line["gradient_norm"] for line in lines} == {None}


def test_cc24_a_scaler_is_refused() -> None:
    with (
        bound(settings(sync={"every": 2})),
        pytest.raises(TaskError, match=r"^sync\.every is 2, but a GradScaler .* write"),
    ):
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Job(model, optimizer, TensorDataset(torch.zeros(2, 2)), scaler=torch.amp.GradScaler("cpu"))


def test_cc24_a_recipe_goes_its_whole_way_in_rounds() -> None:
    """Phases, learning rate and evaluations follow the epochs, in which the last round is shorter."""
    found = run(config(sync={"every": 3}))
    assert found.verdicts and all(found.verdicts.values())
    epochs = 5 + sum(found.job.added_epochs.values())
    assert [step.epoch for step in found.job.steps] == [epoch for epoch in range(epochs) for _ in range(3)]  # 7 batches
    phases = [step.phase for step in found.job.steps]
    assert all(len(set(phases[epoch : epoch + 3])) == 1 for epoch in range(0, 3 * epochs, 3))
    assert phases[:7] == ["fp32_warmup"] * 6 + ["qat"]
    assert len(found.evaluations) == epochs
    assert found.result["accuracy"]["int8"] > 0.9
