"""Which tier a step is saved in, and what the lowest rank says of the checkpoints it finds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workers.config import CheckpointConfig, TrainingConfig
from workers.identity import Generation, StateId
from workers.keeper import Keeper, _rounded, another_plan, plan_of


def test_a_damaged_checkpoint_is_told_once(tmp_path: Path) -> None:
    """Also where the gang is formed again before its first step, and looks through the folder again."""
    posted: list[Any] = []
    rank: Any = SimpleNamespace(folder=tmp_path, worker="w", post=posted.append)
    keeper = Keeper(rank, SimpleNamespace(), TrainingConfig(name="job"))  # type: ignore[arg-type]
    for reason in ("a is damaged", "b is damaged", "a is damaged"):
        keeper._skipped(reason)
    assert [json.loads(report.note.json)["reason"] for report in posted] == ["a is damaged", "b is damaged"]


def test_ck1_every_checkpoint_is_exact_unless_the_jobspec_says_otherwise() -> None:
    assert [CheckpointConfig(every=10).due(step) for step in (1, 9, 10, 15, 80)] == [None, None, "exact", None, "exact"]
    assert CheckpointConfig(every=0, tier="qins").due(10) is None


@pytest.mark.parametrize(
    ("exact_every", "tiers"), [(1, ["exact"] * 6), (3, ["qins", "qins", "exact"] * 2), (100, ["qins"] * 6)]
)
def test_ck1_every_nth_checkpoint_is_exact(exact_every: int, tiers: list[str]) -> None:
    """By the step alone: a job that resumes goes on in the same rhythm."""
    checkpoint = CheckpointConfig(every=5, tier="qins", exact_every=exact_every)
    assert [checkpoint.due(step) for step in range(5, 35, 5)] == tiers


def config(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"name": "job", **values})


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({"task": {"recipe": "cnn"}}, 'task.recipe "mlp", but the JobSpec says "cnn"; write task.recipe: "mlp"'),
        ({"task": {"script": "x.py"}}, 'task.recipe "mlp", but the JobSpec says null; write task.recipe: "mlp"'),
        ({"phases": {"fp32_epochs": 6}}, "phases.fp32_epochs 5, but the JobSpec says 6; write phases.fp32_epochs: 5"),
        ({"global_batch": 256}, "global_batch 128, but the JobSpec says 256; write global_batch: 128"),
        (
            {"task": {"data": {"validation": 0.2}}},
            "task.data.validation 0.1, but the JobSpec says 0.2; write task.data.validation: 0.1",
        ),
        ({"qat": {"weight_bits": 4}}, "qat.weight_bits 8, but the JobSpec says 4; write qat.weight_bits: 8"),
        ({"qat": {"freeze_from": 9}}, "qat.freeze_from null, but the JobSpec says 9; write qat.freeze_from: null"),
    ],
)
def test_ck9_a_checkpoint_of_another_plan_is_one_sentence(ours: dict[str, Any], said: str) -> None:
    """QS-37: what was quantized when is decided by the JobSpec, so the steps behind a job must be of the same one."""
    saved = json.loads(json.dumps(plan_of(config())))
    assert another_plan(saved, plan_of(config(**ours))) == f"is of a job with {said}"


@pytest.mark.parametrize("ours", [{}, {"checkpoint": {"tier": "qins"}}, {"qat": {"lr": 1e-3}}, {"micro_batch": 16}])
def test_ck9_of_the_same_plan_all_else_may_change(ours: dict[str, Any]) -> None:
    assert another_plan(plan_of(config()), plan_of(config(**ours))) is None


def test_ck9_a_script_has_its_own_plan_and_an_old_checkpoint_none() -> None:
    script = {"task": {"script": "x.py"}}
    longer = plan_of(config(**script, phases={"fp32_epochs": 50}))
    assert another_plan(plan_of(config(**script)), longer) is None
    assert another_plan(None, plan_of(config())) is None


def test_ep9_what_a_lossy_checkpoint_made_of_a_state_has_an_id_of_its_own(tmp_path: Path) -> None:
    """Else a rank that holds the exact state would be told that it holds what was read."""
    (tmp_path / "manifest.json").write_text("{}")
    exact = StateId(7, 0, Generation(1, 2), 5)
    rounded = _rounded(exact, tmp_path)
    assert rounded[:3] == exact[:3] and rounded.lineage != exact.lineage
    (tmp_path / "manifest.json").write_text("{ }")
    assert _rounded(exact, tmp_path) != rounded
