"""What a job trains: a recipe of this package, or a user's script, chosen by the JobSpec."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from workers.errors import TaskError

if TYPE_CHECKING:
    from workers.config import TrainingConfig

RECIPES = {name: f"workers.tasks.{name}" for name in ("bytes", "cnn", "mlp", "spiking")}
"""Name in the JobSpec, and the module that follows `Task`. A recipe is imported when it is used."""

PROBES = {"preflight": "workers.tasks.preflight"}
"""Tasks that test a gang, and that no message offers to a user."""


class Task(Protocol):
    """The interface of a recipe; a module with these functions is one."""

    def preload(self, config: TrainingConfig) -> Any:
        """Import, read and build what takes time and does not depend on a rank; an idle worker does it ahead.

        Raises:
            DataError: the data is missing or damaged.
            TaskError: the task cannot be started.
        """

    def run(self, config: TrainingConfig, make_job: Callable[..., Any], prepared: Any = None) -> dict[str, Any]:
        """Train to the end and return what goes into `result.json`.

        `make_job` is `Job`, or something with its signature; `prepared` is what `preload` returned, if it was called.
        """


def load(config: TrainingConfig) -> Task:
    """The task that `config.task` names.

    Raises:
        TaskError: there is no such recipe.
    """
    if config.task.script is not None:
        return cast(Task, import_module("workers.tasks.script"))
    recipe, modules = config.task.recipe, RECIPES | PROBES
    if recipe not in modules:
        raise TaskError(
            f"task.recipe is {recipe!r}, which no recipe is called; write one of {', '.join(sorted(RECIPES))},"
            " or name a script of your own in task.script"
        )
    return cast(Task, import_module(modules[recipe]))
