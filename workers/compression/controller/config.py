"""The constants of CC-14 and CC-17 to CC-22."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from workers.compression.choice import Choice
from workers.settings import Config, Count, unit


def _known_choice(text: str) -> str:
    return str(Choice.parse(text))


class ControllerConfig(Config):
    """How the codec of each bucket is chosen."""

    policy: Literal["adaptive", "latency_ladder", "fixed"] = Field(
        "adaptive",
        description="`adaptive` measures and decides; `latency_ladder` goes by the round-trip time; `fixed` is `codec`.",
    )
    codec: Annotated[str, AfterValidator(_known_choice)] = Field(
        "none", description="The codec of the policy `fixed`: `int8`, `topk 0.01`, `powersgd-int8 4`."
    )
    error_budget: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest share of the gradient's energy, 1 − |decoded|²/|g+e|² over the whole model, that a step may "
        "leave to error feedback. Above 0.1 is looser than the rule of GraVAC.",
    )
    tight_share: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Of the error budget, what the first and the last layer have, and all while gradients change fast.",
    )
    critical_change: float = Field(
        0.5, gt=0, description="Relative change of the gradient norm between windows above which gradients change fast."
    )
    every: Count = Field(20, description="Steps of a window; at its end is a decision.", json_schema_extra=unit("steps"))
    worth: float = Field(0.03, ge=0, lt=1, description="Share of time that a plan has to save over one that loses less.")
    change: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Predicted gain without which no bucket changes, or after a collapse the plan as a whole.",
    )
    windows: Count = Field(3, description="How many windows in a row must predict that gain.")
    pause: int = Field(
        100, ge=0, description="Steps in which a bucket changes once for a gain.", json_schema_extra=unit("steps")
    )
    collapse: float = Field(3.0, gt=1, description="How many times slower than of late a link has collapsed.")
    dense_steps: Count = Field(
        10, description="Least steps before `topk`, `threshold`, `sign` and low rank.", json_schema_extra=unit("steps")
    )
    dense_share: float = Field(0.05, ge=0, le=1, description="The same as a share of the planned steps.")
