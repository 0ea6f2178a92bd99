"""The recipe `digits`, trained by a small stand-in for the Job: one process, the real plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from workers.config import TrainingConfig
from workers.data import sampler
from workers.data.digits import Digits
from workers.qat.convert import convert
from workers.qat.fake_quant import QuantLinear, set_fake_quant
from workers.randomness import SampleDropout, sample_keys
from workers.tasks import digits as recipe

Sums = dict[str, float]


class FakeJob:
    """The surface of `workers.elastic.Job` that a recipe uses; evaluations are spread over `parts`."""

    parts = 3

    def __init__(
        self,
        config: TrainingConfig,
        model: nn.Module,
        optimizer: Optimizer,
        dataset: TensorDataset,
        *,
        scheduler: Any,
        evaluate: Callable[[int, int], Sums],
        clip_norm: float | None,
    ) -> None:
        self.config, self.model, self.optimizer, self.dataset = config, model, optimizer, dataset
        self.scheduler, self.evaluate, self.clip_norm = scheduler, evaluate, clip_norm
        self.committed = self.epoch = 0
        self.history: list[tuple[int, str, Sums]] = []
        self.quantized: list[bool] = []  # of each step

    def batches(self) -> Iterator[list[Tensor]]:
        size, seed = len(self.dataset), self.config.seed
        per_epoch = sampler.steps_per_epoch(size, self.config.global_batch)
        for step in range(per_epoch * self.config.epochs):
            self.epoch, index = sampler.position(step, per_epoch)
            ids = torch.tensor(sampler.batch(seed, self.epoch, index, size, self.config.global_batch))
            with sample_keys(seed, step, ids):
                yield [tensor[ids] for tensor in self.dataset.tensors]
            if index == per_epoch - 1:
                self.collect("evaluate", self.evaluate)

    def step(self, loss: Tensor) -> None:
        (first, *_) = (module for module in self.model.modules() if isinstance(module, QuantLinear))
        self.quantized.append(first.fake_quant)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.committed += 1

    def collect(self, name: str, fn: Callable[[int, int], Sums]) -> Sums:
        parts = [fn(part, self.parts) for part in range(self.parts)]
        sums = {key: sum(part[key] for part in parts) for key in parts[0]}
        self.history.append((self.committed, name, sums))
        return sums


def blobs() -> Digits:
    """Easy digits: ten clouds in 12 dimensions."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 12, generator=generator)

    def cloud(count: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(count) % 10
        return centres[y] + 0.3 * torch.randn(count, 12, generator=generator), y

    return Digits("blobs", TensorDataset(*cloud(230)), *cloud(100), num_features=12, num_classes=10)


def config(**values: Any) -> TrainingConfig:
    task = {"hidden": [24, 16], **values.pop("task", {})}
    defaults = {"global_batch": 32, "micro_batch": 32, "phases": {"fp32_epochs": 3, "qat_epochs": 2}}
    return TrainingConfig.model_validate({"name": "job", "seed": 3, **defaults, "task": task, **values})


def train(wanted: TrainingConfig) -> tuple[dict[str, Any], FakeJob]:
    jobs: list[FakeJob] = []

    def make_job(*arguments: Any, **named: Any) -> FakeJob:
        jobs.append(FakeJob(wanted, *arguments, **named))
        return jobs[0]

    result = recipe.run(wanted, make_job, blobs())  # type: ignore[arg-type]
    return result, jobs[0]


def test_it_learns_and_says_what_the_integers_are_worth() -> None:
    result, job = train(config(optimizer={"lr": 0.1}))
    assert result["accuracy"]["fp32"] > 0.9 and result["accuracy"]["int8"] > 0.9
    weights, outputs = 12 * 24 + 24 * 16 + 16 * 10, 24 + 16 + 10
    assert result["bytes"] == {"fp32": 4 * (weights + outputs), "int8_packed": weights + 8 * outputs}
    assert job.committed == 5 * 8
    assert [name for _, name, _ in job.history] == ["evaluate"] * 5 + ["fp32", "int8"]
    assert all(sums["count"] == 100 for _, _, sums in job.history)


def test_the_phases_decide_what_is_quantized() -> None:
    wanted = config()
    assert [recipe.phase(wanted, epoch) for epoch in range(5)] == ["fp32_warmup"] * 3 + ["qat"] * 2
    _, job = train(wanted)
    assert job.quantized == [False] * 24 + [True] * 16


def test_an_evaluation_sees_the_weights_of_its_phase() -> None:
    _, job = train(config(task={"weight_bits": 4}))
    set_fake_quant(job.model, True)
    losses = {}
    for job.epoch in (2, 3):
        losses[job.epoch] = job.evaluate(0, 1)["loss"]
    set_fake_quant(job.model, False)
    plain = recipe.count_correct(job.model, blobs().test_x, blobs().test_y)["loss"]
    assert losses[2] == plain != losses[3]


def test_the_integers_are_those_of_the_final_weights() -> None:
    result, job = train(config(task={"weight_bits": 4}))
    digits = blobs()
    counted = recipe.count_correct(convert(job.model), digits.test_x, digits.test_y)
    assert result["accuracy"]["int8"] == counted["correct"] / 100
    assert result["bytes"]["int8_packed"] == 6 * 24 + 12 * 16 + 8 * 10 + 8 * 50


def test_fp32_is_the_better_of_warm_up_and_final_weights() -> None:
    def entry(step: int, name: str, correct: float) -> tuple[int, str, Sums]:
        return (step, name, {"correct": correct, "count": 10.0})

    history = [entry(8, "evaluate", 7), entry(16, "evaluate", 6), entry(24, "evaluate", 9), entry(16, "int8", 8)]
    assert recipe.best_until(history, 16) == 0.7
    assert recipe.best_until(history, 24) == 0.9
    assert recipe.best_until(history, 0) == 0.0


@pytest.mark.parametrize("phases", [{"fp32_epochs": 0, "qat_epochs": 2}, {"fp32_epochs": 2, "qat_epochs": 0}])
def test_either_phase_may_be_missing(phases: dict[str, int]) -> None:
    result, job = train(config(phases=phases))
    assert set(job.quantized) == {phases["qat_epochs"] > 0}
    assert 0 < result["accuracy"]["int8"] <= 1 and 0 < result["accuracy"]["fp32"] <= 1


@pytest.mark.parametrize("parts", [1, 3, 7, 150])
def test_the_parts_of_an_evaluation_are_all_of_it_once(parts: int) -> None:
    digits = blobs()
    model = recipe.build(config(), 12, 10)
    found = [recipe.held_out(digits, part, parts) for part in range(parts)]
    assert torch.equal(torch.cat([x for x, _ in found]), digits.test_x)
    correct = sum(recipe.count_correct(model, x, y)["correct"] for x, y in found)
    assert correct == recipe.count_correct(model, digits.test_x, digits.test_y)["correct"]


def test_ep3_the_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = recipe.build(config(), 12, 10).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = recipe.build(config(), 12, 10).state_dict(), recipe.build(config(seed=4), 12, 10).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_dropout_is_keyed_by_sample() -> None:
    dropouts = [m for m in recipe.build(config(task={"dropout": 0.2}), 12, 10) if isinstance(m, SampleDropout)]
    assert [module.p for module in dropouts] == [0.2, 0.2]
    result, _ = train(config(task={"dropout": 0.2}))
    assert result["accuracy"]["fp32"] > 0.5


def test_counting_leaves_the_mode_of_the_model_alone() -> None:
    digits, model = blobs(), recipe.build(config(task={"dropout": 0.5}), 12, 10)
    for training in (True, False):
        model.train(training)
        recipe.count_correct(model, digits.test_x, digits.test_y)
        assert model.training is training


def test_clip_norm_reaches_the_job() -> None:
    assert train(config(clip_norm=0.5))[1].clip_norm == 0.5
