"""CK-9, GM-17: which state a job begins with, and when it refuses to."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.workers.phases import Phases, config
from workers import resuming
from workers.checkpoint import list_checkpoints
from workers.checkpoint.errors import StorageError
from workers.config import TrainingConfig
from workers.errors import TaskError
from workers.identity import Generation, StateId
from workers.outer.config import SyncConfig
from workers.outer.sync import OuterSync
from workers.paths import DISTRUSTED
from workers.resuming import Finder, rounded
from workers.training_plan import another_plan, plan_of


def test_a_damaged_checkpoint_is_told_once(tmp_path: Path) -> None:
    """Also where the gang is formed again before its first step, and looks through the folder again."""
    posted: list[Any] = []
    rank: Any = SimpleNamespace(folder=tmp_path, worker="w", post=posted.append)
    finder = Finder(rank, SimpleNamespace(), TrainingConfig(name="job"))  # type: ignore[arg-type]
    for reason in ("a is damaged", "b is damaged", "a is damaged"):
        finder._tell_skipped(reason)
    assert [json.loads(report.note.json)["reason"] for report in posted] == ["a is damaged", "b is damaged"]


def test_cc24_what_is_attached_to_the_state_is_found_again(tmp_path: Path) -> None:
    """The outer momentum, and the Q of PowerSGD; of a job that has neither, they are another model's."""
    job = Phases(tmp_path, every=1)
    outer = OuterSync(job.engine.replica, SyncConfig(every=4), None)
    outer.load_state_dict({"weight": torch.full((2, 2), 3.0)})
    powersgd = {"1/weight": torch.full((1, 2), 5.0)}
    job.engine.compression.state_dict = lambda: powersgd  # type: ignore[method-assign]
    job.take(1)
    snapshot = job.finder.find()
    assert snapshot is not None and snapshot.state.step == 1
    assert torch.equal(snapshot.captured.tensors["outer.weight"], torch.full((2, 2), 3.0))
    assert torch.equal(snapshot.captured.tensors["compression.1/weight"], powersgd["1/weight"])
    del job.engine.replica.attached["outer"]
    with pytest.raises(TaskError, match=r"the model has no tensor 'outer\.weight'"):
        job.finder.find()


def test_gm17_a_checkpoint_that_is_distrusted_is_put_aside_in_a_later_start_too(tmp_path: Path) -> None:
    """A job that ended because its ranks differed has left word of it."""
    job = Phases(tmp_path, every=1)
    for step in (1, 2, 3):
        job.take(step)
    control = tmp_path / "control"
    for at_most, expected in ((None, 2), (1, 1)):  # who asks may know more
        (control / DISTRUSTED).write_text('{"after": 2}')
        snapshot = job.finder.find(at_most)
        assert snapshot is not None and snapshot.state.step == expected
    assert [entry.step for entry in list_checkpoints(tmp_path / "checkpoints")] == [1]
    (control / DISTRUSTED).write_text("torn")
    snapshot = job.finder.find()
    assert snapshot is not None and snapshot.state.step == 1


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
        ({"sync": {"every": 4}}, "sync.every 1, but the JobSpec says 4; write sync.every: 1"),
        ({"qat": {"weight_bits": 4}}, "qat.weight_bits 8, but the JobSpec says 4; write qat.weight_bits: 8"),
        ({"qat": {"freeze_from": 9}}, "qat.freeze_from null, but the JobSpec says 9; write qat.freeze_from: null"),
    ],
)
def test_ck9_a_checkpoint_of_another_plan_is_one_sentence(ours: dict[str, Any], said: str) -> None:
    """QS-37: what was quantized when is decided by the JobSpec, so the steps behind a job must be of the same one."""
    saved = json.loads(json.dumps(plan_of(config())))
    assert another_plan(saved, plan_of(config(**ours))) == f"is of a job with {said}"


def test_qs23_a_checkpoint_of_other_stages_is_of_another_plan() -> None:
    """One that was written before there were any has none."""
    plain, stages = (plan_of(config(qat={"weight_bits": 4, **more})) for more in ({}, {"bits_before": [8]}))
    said = another_plan(json.loads(json.dumps(stages)), plain)
    assert said == "is of a job with qat.bits_before [8], but the JobSpec says []; write qat.bits_before: [8]"
    assert another_plan(json.loads(json.dumps(stages)), stages) is None
    older = {key: value for key, value in plain.items() if key != "qat.bits_before"}
    assert another_plan(older, plain) is None


@pytest.mark.parametrize("ours", [{}, {"checkpoint": {"tier": "qins"}}, {"qat": {"lr": 1e-3}}, {"micro_batch": 16}])
def test_ck9_of_the_same_plan_all_else_may_change(ours: dict[str, Any]) -> None:
    assert another_plan(plan_of(config()), plan_of(config(**ours))) is None


def test_ck9_a_script_has_its_own_plan_and_an_old_checkpoint_none() -> None:
    script = {"task": {"script": "x.py"}}
    longer = plan_of(config(**script, phases={"fp32_epochs": 50}))
    assert another_plan(plan_of(config(**script)), longer) is None
    rounds = plan_of(config(**script, sync={"every": 4}))  # its steps are others
    assert another_plan(rounds, longer) == "is of a job with sync.every 4, but the JobSpec says 1; write sync.every: 4"
    assert another_plan(None, plan_of(config())) is None


def test_ep9_what_a_lossy_checkpoint_made_of_a_state_has_an_id_of_its_own(tmp_path: Path) -> None:
    """Else a rank that holds the exact state would be told that it holds what was read."""
    (tmp_path / "manifest.json").write_text("{}")
    exact = StateId(7, 0, Generation(1, 2), 5)
    read = rounded(exact, tmp_path)
    assert read[:3] == exact[:3] and read.lineage != exact.lineage
    (tmp_path / "manifest.json").write_text("{ }")
    assert rounded(exact, tmp_path) != read


def test_ck9_storage_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume takes no older checkpoint, nor none, because of it; after a while the job ends, and may be started again."""
    job = Phases(tmp_path, every=1)
    job.take(1)
    looking, refusals = resuming.load_newest, [2]

    def refuse(*arguments: Any) -> Any:
        if refusals[0]:
            refusals[0] -= 1
            raise StorageError("cannot read s3://bucket/x: the store answers: SlowDown")
        return looking(*arguments)

    monkeypatch.setattr(resuming, "load_newest", refuse)
    monkeypatch.setattr(resuming, "PAUSES", (0.0, 0.0))
    snapshot = job.finder.find()
    assert snapshot is not None and snapshot.state.step == 1
    refusals[0] = 3
    with pytest.raises(TaskError, match="SlowDown; start again with --resume once it answers") as refusal:
        job.finder.find()
    assert refusal.value.exit_code == 4
