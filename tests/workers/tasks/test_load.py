"""The seam for recipes."""

from __future__ import annotations

import pytest

from workers import tasks
from workers.config import TrainingConfig
from workers.errors import TaskError
from workers.tasks import RECIPES, load


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_has_the_interface(recipe: str) -> None:
    task = load(TrainingConfig.model_validate({"name": "job", "task": {"recipe": recipe}}))
    assert all(callable(getattr(task, name)) for name in ("preload", "run"))


def test_a_script_is_a_task() -> None:
    task = load(TrainingConfig.model_validate({"name": "job", "task": {"script": "train.py"}}))
    assert all(callable(getattr(task, name)) for name in ("preload", "run"))


def test_an_unknown_recipe_is_refused_with_those_that_exist() -> None:
    config = TrainingConfig.model_validate({"name": "job", "task": {"recipe": "letters"}})
    with pytest.raises(TaskError, match=r"'letters'.*write one of bytes, cnn, mlp, spiking.*task\.script"):
        tasks.load(config)
