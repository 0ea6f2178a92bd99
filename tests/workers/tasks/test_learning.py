"""Optimizers and schedules of recipes."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from workers.config import TrainingConfig
from workers.errors import TaskError
from workers.tasks.learning import learning_rate_factor, make_optimizer, make_schedule


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"name": "job", **values})


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_optimizer_is_the_one_described(name: str) -> None:
    wanted = config(optimizer={"name": name, "lr": 0.3, "weight_decay": 0.01})
    optimizer = make_optimizer(wanted, [nn.Parameter(torch.zeros(1))])
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == 0.3 and optimizer.param_groups[0]["weight_decay"] == 0.01
    assert name != "sgd" or optimizer.param_groups[0]["momentum"] == 0.9


def test_a_cosine_with_warmup_rises_and_falls() -> None:
    factors = [learning_rate_factor(step, 110, "cosine", 10) for step in range(111)]
    assert factors[:10] == [(step + 1) / 10 for step in range(10)]
    assert factors[10] == 1.0 and factors[60] == pytest.approx(0.5) and factors[110] == pytest.approx(0.0)
    assert all(late < early for early, late in pairwise(factors[10:]))


def test_a_constant_stays() -> None:
    assert [learning_rate_factor(step, 100, "constant", 2) for step in (0, 1, 2, 99)] == [0.5, 1.0, 1.0, 1.0]


def test_the_schedule_is_advanced_by_steps() -> None:
    wanted = config(optimizer={"lr": 0.4}, schedule={"name": "cosine", "warmup_steps": 4})
    optimizer = make_optimizer(wanted, [nn.Parameter(torch.zeros(1))])
    scheduler = make_schedule(wanted, optimizer, 20)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TaskError, match="'linear'; write constant or cosine"):
        learning_rate_factor(0, 10, "linear", 0)
    unknown = cast(TrainingConfig, SimpleNamespace(optimizer=SimpleNamespace(name="lamb")))
    with pytest.raises(TaskError, match="'lamb'; write sgd, adam or adamw"):
        make_optimizer(unknown, [])
