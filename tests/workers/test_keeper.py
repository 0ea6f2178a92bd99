"""What the lowest rank says of the checkpoints it finds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from workers.config import TrainingConfig
from workers.keeper import Keeper


def test_a_damaged_checkpoint_is_told_once(tmp_path: Path) -> None:
    """Also where the gang is formed again before its first step, and looks through the folder again."""
    posted: list[Any] = []
    rank: Any = SimpleNamespace(folder=tmp_path, worker="w", post=posted.append)
    keeper = Keeper(rank, SimpleNamespace(), TrainingConfig(name="job"))  # type: ignore[arg-type]
    for reason in ("a is damaged", "b is damaged", "a is damaged"):
        keeper._skipped(reason)
    assert [json.loads(report.note.json)["reason"] for report in posted] == ["a is damaged", "b is damaged"]
