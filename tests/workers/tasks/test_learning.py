"""Optimizers and schedules of recipes."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from workers.config import TrainingConfig
from workers.errors import TaskError
from workers.tasks.learning import NO_DECAY, OWN_RATE, StepSchedule, learning_rate_factor, make_optimizer


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


def settings(step: int) -> dict[str, float]:
    return {"lr": 1.0 / (1 + step), "weight_decay": 0.5 * step}


def groups() -> list[dict[str, Any]]:
    """One that follows the schedule, and those that keep something of their own."""
    own: list[dict[str, Any]] = [{}, {NO_DECAY: True}, {OWN_RATE: True}, {NO_DECAY: True, OWN_RATE: True}]
    return [{"params": [nn.Parameter(torch.zeros(1))], "lr": 9.0, "weight_decay": 7.0, **group} for group in own]


def now(optimizer: Optimizer) -> list[tuple[float, float]]:
    return [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]


def test_the_schedule_sets_rate_and_decay_by_the_committed_steps() -> None:
    optimizer = make_optimizer(config(optimizer={"name": "adamw"}), groups())
    schedule = StepSchedule(optimizer, settings)
    for step in range(4):
        lr, decay = settings(step).values()
        assert now(optimizer) == [(lr, decay), (lr, 7.0), (9.0, decay), (9.0, 7.0)]
        schedule.step()


def test_a_schedule_that_goes_on_elsewhere_is_at_the_same_step() -> None:
    first, second = (make_optimizer(config(), groups()) for _ in range(2))
    one, other = StepSchedule(first, settings), StepSchedule(second, settings)
    for _ in range(3):
        one.step()
    other.load_state_dict(one.state_dict())
    other.step()
    one.step()
    assert now(second) == now(first) and one.state_dict() == other.state_dict() == {"committed": 4}


def test_what_has_changed_meanwhile_is_taken_over_without_a_step() -> None:
    rate = {"lr": 1.0, "weight_decay": 0.0}
    optimizer = make_optimizer(config(), [nn.Parameter(torch.zeros(1))])
    schedule = StepSchedule(optimizer, lambda step: rate)
    rate["lr"] = 0.25
    assert now(optimizer) == [(1.0, 0.0)]
    schedule.refresh()
    assert now(optimizer) == [(0.25, 0.0)] and schedule.state_dict() == {"committed": 0}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TaskError, match="'linear'; write constant or cosine"):
        learning_rate_factor(0, 10, "linear", 0)
    unknown = cast(TrainingConfig, SimpleNamespace(optimizer=SimpleNamespace(name="lamb")))
    with pytest.raises(TaskError, match="'lamb'; write sgd, adam or adamw"):
        make_optimizer(unknown, [])
