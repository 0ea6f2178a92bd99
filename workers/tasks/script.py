"""A user's own script as the task: a plain PyTorch program that uses `workers.elastic.Job`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.errors import TaskError

if TYPE_CHECKING:
    from workers.config import TrainingConfig


def preload(config: TrainingConfig) -> None:
    """Import torch, and see that the script is there; it runs only in `run`, for it makes its own Job.

    Raises:
        TaskError: the script is missing.
    """
    script_path(config)
    import torch.utils.data  # noqa: F401  takes over a second


def run(config: TrainingConfig, make_job: Callable[..., Any], prepared: None = None) -> dict[str, Any]:
    """Run the script as `python script.py` would, and return its global `RESULT`, or {} if it sets none.

    The script makes its own `Job`, so `make_job` is not used. `sys.exit()` in it is an end like any other.

    Raises:
        TaskError: the script is missing, `RESULT` is no dict, or it ended with an exit status other than 0.
    """
    script = script_path(config)
    arguments, path = sys.argv, sys.path
    sys.argv, sys.path = [str(script)], [str(script.parent), *path]
    try:
        result = runpy.run_path(str(script), run_name="__main__").get("RESULT", {})
    except SystemExit as end:
        if end.code not in (None, 0):
            status = f"exit status {end.code}" if isinstance(end.code, int) else f"the words {str(end.code)!r}"
            raise TaskError(f"{script} ended by sys.exit() with {status}", exit_code=1) from None
        result = {}
    finally:
        sys.argv, sys.path = arguments, path
    if not isinstance(result, dict):
        raise TaskError(f"{script} sets RESULT to a {type(result).__name__}; make it a dict of plain values")
    return result


def script_path(config: TrainingConfig) -> Path:
    """The absolute path of `task.script`; raises TaskError where there is no such file."""
    path = Path(config.task.script or "").absolute()
    if not path.is_file():
        raise TaskError(f"task.script is '{config.task.script}', but there is no file {path}")
    return path
