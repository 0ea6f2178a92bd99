"""Recipes run to the end by the real Job, in this process, on digits that are easily told apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from workers import elastic
from workers.config import TrainingConfig
from workers.data.digits import Digits
from workers.elastic import Job, Largest, Part, Sums
from workers.qat.layers import QuantActivation, QuantizedLayer
from workers.qat.observers import RangeObserver
from workers.qat.phases import Switches
from workers.qat.state_quant import StateQuantizer
from workers.solo import SoloRank
from workers.tasks import load
from workers.tasks.digits import Splits, split


def config(**values: Any) -> TrainingConfig:
    """A small job; a group of keys replaces only what it names."""
    defaults: dict[str, Any] = {
        "name": "job",
        "seed": 3,
        "global_batch": 32,
        "micro_batch": 16,
        "clip_norm": 1.0,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": {"name": "constant"},
        "phases": {"fp32_epochs": 2, "qat_epochs": 3},
        "task": {"recipe": "mlp", "hidden": [24, 16]},
    }
    for key, value in values.items():
        defaults[key] = {**defaults.get(key, {}), **value} if isinstance(value, dict) else value
    return TrainingConfig.model_validate(defaults)


def blobs(num_features: int = 12, train: int = 240, test: int = 100, noise: float = 0.1) -> Digits:
    """Ten clouds, as many samples of each."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, num_features, generator=generator)

    def cloud(count: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(count) % 10
        return centres[y] + noise * torch.randn(count, num_features, generator=generator), y

    (train_x, train_y), (test_x, test_y) = cloud(train), cloud(test)
    mean, std = train_x.mean(), train_x.std()
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    bounds = (float(train_x.min()), float(train_x.max()))
    return Digits("blobs", TensorDataset(train_x, train_y), test_x, test_y, num_features, 10, bounds)


def splits(wanted: TrainingConfig, digits: Digits | None = None) -> Splits:
    """What a recipe for digits prepares."""
    return split(digits or blobs(), wanted.task.data.validation)


@dataclass
class Step:
    """What was switched on, and set, in the forward pass and the optimizer of a committed step."""

    epoch: int
    phase: str
    switches: Switches
    training: bool
    groups: list[tuple[float, float]]


@dataclass
class Run:
    """What came of a job."""

    job: RecordingJob
    rank: SoloRank
    events: list[tuple[str, dict[str, Any]]]
    result: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None

    def told(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [fields for each, fields in self.events if each == kind]

    @property
    def evaluations(self) -> list[Sums]:
        return [sums for _, name, sums in self.job.history if name == "evaluate"]

    @property
    def verdicts(self) -> dict[str, bool]:
        """By gate, those that were told."""
        return {fields["gate"]: fields["passed"] for fields in self.told("gate")}


class RecordingJob(Job):
    """The real Job; what is measured may be measured in several `parts`, one after the other, as ranks would."""

    parts = 1

    def __init__(self, model: Any, optimizer: Any, dataset: Any, *, evaluate: Part, **named: Any) -> None:
        self.steps: list[Step] = []
        self.optimizer, self.scheduler = optimizer, named["scheduler"]
        super().__init__(model, optimizer, dataset, evaluate=self._by_parts(evaluate), **named)

    def step(self, loss: Tensor) -> None:
        before = self.committed
        groups = [(group["lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        now = Step(self.epoch, self.phase, switches(self.model), self.model.training, groups)
        super().step(loss)
        if self.committed > before:
            self.steps.append(now)

    def collect(self, name: str, fn: Part, *, observe: bool = False, phase: str | None = None) -> Sums:
        return super().collect(name, self._by_parts(fn), observe=observe, phase=phase)

    def _by_parts(self, fn: Part) -> Part:
        return lambda part, parts: added([fn(number, self.parts) for number in range(self.parts)])


def added(results: list[Sums]) -> Sums:
    """The results of all parts as the exchange would reduce them; the keys must be the same."""
    assert all(each.keys() == results[0].keys() for each in results)
    kinds = {key: {isinstance(each[key], Largest) for each in results} for key in results[0]}
    assert all(len(kind) == 1 for kind in kinds.values())
    return {
        key: Largest(max(each[key] for each in results)) if True in kinds[key] else sum(each[key] for each in results)
        for key in results[0]
    }


def switches(model: torch.nn.Module) -> Switches:
    """What is on in a model; all quantizers of a kind must agree, but for those that stay in full precision."""
    modules = [module for module in model.modules() if not getattr(module, "fp32", False)]

    def common(kinds: Any, attribute: str) -> bool:
        values = {bool(getattr(module, attribute)) for module in modules if isinstance(module, kinds)}
        assert len(values) <= 1
        return True in values

    return Switches(
        weights=common(QuantizedLayer, "fake_quant"),
        activations=common(QuantActivation, "fake_quant"),
        state=common(StateQuantizer, "fake_quant"),
        observing=common(RangeObserver, "observing"),
    )


class _Link:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def send(self, report: Any) -> None:
        text = report.note.json
        self.events.append((report.note.kind, json.loads(text, parse_constant=_refuse)))


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@contextmanager
def bound(wanted: TrainingConfig) -> Iterator[tuple[SoloRank, _Link]]:
    """In this block, this process is a gang of one rank that has made no Job."""
    before = elastic._binding, elastic._job
    rank, link = SoloRank(), _Link()
    rank.link = link  # type: ignore[assignment]
    elastic.bind(elastic.Binding(rank, wanted))  # type: ignore[arg-type]
    try:
        yield rank, link
    finally:
        elastic._binding, elastic._job = before


def run(
    wanted: TrainingConfig,
    prepared: Any = None,
    *,
    parts: int = 1,
    job_class: type[RecordingJob] = RecordingJob,
    fails: type[Exception] | None = None,
) -> Run:
    """Run the recipe to its end, or to an exception of the class `fails`, which must come then."""
    jobs: list[RecordingJob] = []
    result: dict[str, Any] = {}
    error: Exception | None = None

    def make_job(*arguments: Any, **named: Any) -> RecordingJob:
        jobs.append(job_class(*arguments, **named))
        jobs[0].parts = parts
        return jobs[0]

    with bound(wanted) as (rank, link):
        recipe = load(wanted)
        prepared = prepared if prepared is not None else splits(wanted)
        try:
            result = recipe.run(wanted, make_job, prepared)
        except Exception as caught:
            if fails is None or not isinstance(caught, fails):
                raise
            error = caught
        else:
            assert fails is None, f"no {fails} was raised"
            jobs[0].conclude(result)
    return Run(jobs[0], rank, link.events, result, error)
