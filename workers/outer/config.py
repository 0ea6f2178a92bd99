"""The JobSpec's group `sync`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

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

    staleness: int = Field(
        0,
        ge=0,
        description="Steps before the end of a round at which the first differences go out already, so that the rest of "
        "it hides the exchange; what is learned in them goes with the next round. 0: all go when the round ends.",
        json_schema_extra=unit("steps"),
    )
    fragments: Count = Field(1, description="Parts in which differences go out, evenly over `staleness`.")

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.staleness and self.staleness >= self.every:
            raise ValueError(
                f"sync.staleness is {self.staleness}, but a round has no more than {self.every} steps (sync.every); write "
                f"sync.staleness: {self.every - 1}, or less"
            )
        if self.staleness and self.within == "host":
            raise ValueError(
                f"sync.staleness is {self.staleness}, but the ranks of a host that train together (sync.within: host) "
                "use the memory they share in every step; write sync.within: rank, or sync.staleness: 0"
            )
        if self.fragments > 1 and not self.staleness:
            raise ValueError(
                f"sync.fragments is {self.fragments}, but all differences go out when a round ends: sync.staleness is 0; "
                "write sync.fragments: 1, or how many steps before that they may begin"
            )
        return self

    @property
    def merges(self) -> bool:
        """Whether there are steps that are trained alone."""
        return self.every > 1
