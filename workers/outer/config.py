"""The JobSpec's group `sync`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from workers.compression.choice import Choice
from workers.settings import Config, Count, unit


def _known_choice(text: str) -> str:
    return str(Choice.parse(text))


class SyncConfig(Config):
    """Outer synchronisation (DiLoCo): ranks or hosts train alone for some steps, and merge by an outer Nesterov step."""

    every: Count = Field(
        1,
        description="Steps that are trained alone before a merge, which is what is committed, counted and logged as a step "
        "then; 1: gradients are summed in every step.",
        json_schema_extra=unit("steps"),
    )
    within: Literal["rank", "host"] = Field(
        "rank",
        description="Who trains alone: every `rank`, or every `host`, whose ranks sum their gradients in each step through "
        "the memory they share.",
    )
    outer_lr: float = Field(0.7, gt=0, description="Learning rate of the outer step.")
    outer_momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum of the outer step.")
    codec: Annotated[str, AfterValidator(_known_choice)] = Field(
        "int8", description="How parameter differences travel between hosts, with error feedback: `none`, `int8`, `int4`."
    )

    @property
    def merges(self) -> bool:
        """Whether there are steps that are trained alone."""
        return self.every > 1
