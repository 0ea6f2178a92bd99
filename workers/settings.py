"""What the models of the JobSpec are made of: a strict base, and kinds of values.

Types are strict: `"64"` is no number and `true` is no count, because a silent conversion hides a mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _refuse_url(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        raise ValueError(f"{value!r} is a URL, but must be a path; write the path of a folder or file on this machine")
    return value


Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
LocalPath = Annotated[Path, Field(strict=False), BeforeValidator(_refuse_url), AfterValidator(Path.expanduser)]
"""A path may be written as text although the models are strict; `~` is the user's home."""


def unit(name: str) -> dict[str, Any]:
    """The unit of a number, for error messages and the documentation."""
    return {"unit": name}


class Config(BaseModel):
    """Base of every model of the JobSpec: immutable, strict, without unknown keys, without NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
