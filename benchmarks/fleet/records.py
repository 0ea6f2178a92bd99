"""The raw results as JSON, read again so that a run of one fleet keeps those of the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fleet.scenario import Death, Quiet, Result


def read(path: Path) -> list[Result]:
    """What stands there; nothing where there is no file."""
    return list(map(_result, json.loads(path.read_text()))) if path.exists() else []


def replaced(results: Sequence[Result], newest: Result) -> list[Result]:
    """With this one in the place of the one of the same fleet; the smaller fleets first."""
    others = [each for each in results if (each.hosts, each.leaders) != (newest.hosts, newest.leaders)]
    return sorted([*others, newest], key=lambda each: (each.hosts, each.leaders))


def _result(plain: dict[str, Any]) -> Result:
    quiet = plain["quiet"]
    parts = {
        "quiet": Quiet(**{**quiet, "late": tuple(quiet["late"])}),
        "deaths": [Death(**death) for death in plain["deaths"]],
    }
    return Result(**{**plain, **parts})
