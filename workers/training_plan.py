"""The parts of a JobSpec that a job must have in common with the checkpoint it goes on from."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any

from workers.config import TrainingConfig

_PLAN = {
    "": ("seed", "global_batch"),
    "sync.": ("every",),
    "task.data.": ("source", "validation"),
    "task.text.": ("limit", "context"),
    "phases.": ("fp32_epochs", "qat_epochs"),
    "qat.": (
        *("weight_bits", "bits_before", "activation_bits", "state_bits"),
        *("activations_from", "state_from", "freeze_from"),
    ),
}
"""Parts of the JobSpec that decide which step reads what, and when what is quantized."""


def plan_of(config: TrainingConfig) -> dict[str, Any]:
    """What a job must have in common with the checkpoint it goes on from, by its key in the JobSpec.

    Of a recipe: which one, and what was quantized when. A script has its own plan, of which only what a step is, and the
    model, is checked.
    """
    if config.task.recipe is None:
        return {"task.recipe": None, "sync.every": config.sync.every}
    owners = {part: attrgetter(part[:-1])(config) if part else config for part in _PLAN}
    return {"task.recipe": config.task.recipe} | {
        part + key: getattr(owners[part], key) for part, keys in _PLAN.items() for key in keys
    }


def another_plan(saved: dict[str, Any] | None, ours: dict[str, Any]) -> str | None:
    """What is said of a checkpoint that was `saved` under another plan than `ours`; None where it fits, or is not known."""
    for key, value in ours.items():
        if saved is not None and saved.get(key, value) != value:
            theirs = json.dumps(saved.get(key))
            return f"is of a job with {key} {theirs}, but the JobSpec says {json.dumps(value)}; write {key}: {theirs}"
    return None
