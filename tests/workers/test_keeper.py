"""Which tier a step is saved in, and what the lowest rank says of the checkpoints it finds."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from workers import keeper as keeper_module
from workers.checkpoint import background, list_checkpoints, load
from workers.checkpoint.errors import StorageError
from workers.collectives.exchange import Place, Topology
from workers.config import CheckpointConfig, TrainingConfig
from workers.engine import Engine
from workers.errors import TaskError
from workers.identity import GENESIS, Generation, StateId
from workers.keeper import Keeper, _rounded, another_plan, plan_of
from workers.outer.config import SyncConfig
from workers.outer.sync import OuterSync
from workers.paths import DISTRUSTED
from workers.protocol import RankMachine, RankState
from workers.rank import Rank

FIRST = Generation(1, 1)


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


class Phases:
    """A lowest rank, its state written by hand; the phases it enters, and what that saves."""

    def __init__(self, folder: Path, **checkpoint: Any) -> None:
        self.rank = Rank(job="job", host="a", address="127.0.0.1", folder=folder, runtime=folder, faults=[])
        self.rank.topology = Topology((Place(0, "a", "127.0.0.1"), Place(1, "b", "127.0.0.1")), 0)
        trained = {"generation": FIRST, "promised": FIRST, "healed": True, "phase": RankState.TRAINING}
        self.rank.machine = RankMachine(state=GENESIS, **trained)  # type: ignore[arg-type]
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.engine = Engine(model, optimizer, machine=self.rank.machine, faults=self.rank.faults)
        self.keeper = Keeper(self.rank, self.engine, config(checkpoint=checkpoint))
        (folder / "control").mkdir()
        (folder / "control" / "fence.json").write_text(json.dumps({"incarnation": 1, "counter": 1}))
        self.folder = folder

    def at(self, phase: str, step: int, round_: int = 0) -> None:
        self.rank.machine.state = StateId(step, round_, FIRST, 100 * step + round_)
        self.keeper.enter(phase)
        self.wait()

    def take(self, step: int) -> None:
        """Commit a step that may be due for a checkpoint."""
        self.rank.machine.state = StateId(step, 0, FIRST, 100 * step)
        self.keeper.after_step(step)
        self.wait()

    def wait(self) -> None:
        if self.keeper._writer is not None:
            assert self.keeper._writer.wait(60.0)

    @property
    def saved(self) -> list[str]:
        """Oldest first."""
        return [entry.path.name for entry in reversed(list_checkpoints(self.folder / "checkpoints"))]


def test_ck1_the_state_with_which_a_phase_begins_is_saved_exactly(tmp_path: Path) -> None:
    """Beside the periodic one of the same step, under a name of its own; once, however often the step begins again."""
    job = Phases(tmp_path, every=2, tier="qins", exact_every=100, keep=50)
    job.at("data", 0)
    for step, phase in ((0, "warm-up"), (1, "warm-up"), (2, "qat"), (3, "qat"), (3, "qat"), (4, "qat"), (5, "freeze")):
        if step:
            job.take(step)
        job.at(phase, step, round_=1)
        job.at(phase, step, round_=1)
    assert job.saved == [
        *("step-2-gen-1.1-qins", "step-2-gen-1.1-round-1", "step-4-gen-1.1-qins", "step-5-gen-1.1-round-1"),
    ]
    assert {load(job.folder / "checkpoints" / name).meta["state_id"][0] for name in job.saved} == {2, 4, 5}
    notes = [report.published for report in job.rank._posted]
    assert [(each.step, each.tier) for each in notes] == [(2, "qins"), (2, "exact"), (4, "qins"), (5, "exact")]


def test_ck1_phases_without_steps_of_their_own_are_saved_before_the_first(tmp_path: Path) -> None:
    job = Phases(tmp_path, every=100)
    job.at("warm-up", 6)
    job.at("calibration", 7, 2)
    for round_, phase in ((3, "calibration"), (40, "convert"), (43, "verify")):
        job.at(phase, 7, round_)
    assert job.saved == ["step-7-gen-1.1-round-2"]


def test_ck1_a_state_that_is_saved_exactly_already_is_not_saved_again(tmp_path: Path) -> None:
    """Without an evaluation it is the state of the periodic checkpoint."""
    job = Phases(tmp_path, every=2)
    job.at("warm-up", 1)
    job.take(2)
    job.at("qat", 2)
    assert job.saved == ["step-2-gen-1.1"] and len(job.rank._posted) == 1


def test_ck1_the_next_lowest_rank_saves_what_the_lowest_one_could_not(tmp_path: Path) -> None:
    """It was there when the phase began. One that was healed saves again: what it had begun before is not published."""
    job = Phases(tmp_path, every=100)
    job.rank.topology = replace(job.rank.topology, index=1)
    job.at("warm-up", 1)
    job.at("qat", 2, 1)
    assert job.saved == []
    job.rank.topology = replace(job.rank.topology, index=0)
    job.at("qat", 2, 1)
    assert job.saved == ["step-2-gen-1.1-round-1"]
    job.engine.restores += 1
    job.at("qat", 2, 1)
    job.at("qat", 3)
    assert job.saved == ["step-2-gen-1.1-round-1"] and len(job.rank._posted) == 2


def test_ck1_a_rank_that_joins_in_a_phase_has_seen_none_begin_and_every_0_saves_none(tmp_path: Path) -> None:
    (tmp_path / "joined").mkdir()
    joined = Phases(tmp_path / "joined", every=100)
    joined.at("qat", 5)
    joined.at("qat", 6)
    assert joined.saved == []
    (tmp_path / "never").mkdir()
    never = Phases(tmp_path / "never", every=0)
    never.at("warm-up", 1)
    never.at("qat", 2)
    assert never.saved == []


def test_gm21_the_first_of_the_ring_makes_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "disk_share", lambda path: 1.0)
    job = Phases(tmp_path, every=1, keep=4)
    for step in (1, 2, 3, 4):
        job.take(step)
    job.rank.topology = replace(job.rank.topology, index=1)
    job.keeper.relieve(3600.0, 0.8)
    job.wait()
    assert len(job.saved) == 4
    job.rank.topology = replace(job.rank.topology, index=0)
    job.keeper.relieve(3600.0, 0.8)
    job.wait()
    assert job.saved == ["step-3-gen-1.1", "step-4-gen-1.1"]
    job.take(5)
    assert job.saved == ["step-4-gen-1.1", "step-5-gen-1.1"]


def told(job: Phases) -> list[int]:
    """Steps of the checkpoints that were said to lie on disk."""
    return [report.published.step for report in job.rank._posted if report.HasField("published")]


def test_ck1_a_checkpoint_that_is_asked_for_is_exact_and_saved_once_however_often_that_is_said(tmp_path: Path) -> None:
    """Beside those that are due, or where none is."""
    job = Phases(tmp_path, every=0, tier="qins", exact_every=100)
    for step in range(1, 8):
        if step in (2, 3, 5):
            job.rank.save_after = 3
        job.take(step)
    assert job.saved == ["step-3-gen-1.1"] and told(job) == [3]
    job.rank.save_after = 6  # heard of too late: after the next step, then
    job.take(8)
    assert job.saved == ["step-3-gen-1.1", "step-8-gen-1.1"] and job.rank.save_after == 0


def test_ck1_what_is_asked_for_is_saved_by_the_next_first_rank_and_by_one_that_was_healed(tmp_path: Path) -> None:
    job = Phases(tmp_path, every=0)
    job.rank.topology = replace(job.rank.topology, index=1)
    job.rank.save_after = 2
    job.take(2)
    assert job.saved == [] and job.rank.save_after == 0
    job.rank.topology = replace(job.rank.topology, index=0)
    for step, healed in ((3, 0), (4, 1), (5, 1)):
        job.rank.save_after, job.engine.restores = 2, healed
        job.take(step)
    assert job.saved == ["step-3-gen-1.1", "step-4-gen-1.1"]


def test_gm6_what_a_stale_writer_could_not_save_is_saved_when_it_is_asked_for_again(tmp_path: Path) -> None:
    """Where the disk was full it is not: that is tried again anyway."""
    job = Phases(tmp_path, every=0)
    fence = tmp_path / "control" / "fence.json"
    fence.write_text(json.dumps({"incarnation": 1, "counter": 2}))
    job.rank.save_after = 2
    job.take(2)
    (failed,) = [json.loads(report.note.json) for report in job.rank._posted]
    assert job.saved == [] and failed["stale"] is True
    fence.write_text(json.dumps({"incarnation": 1, "counter": 1}))
    job.rank.save_after = 2
    job.take(3)
    assert job.saved == ["step-3-gen-1.1"]
    job.keeper._report(StorageError("the disk is full"))
    assert json.loads(job.rank._posted[-1].note.json) == {"error": "the disk is full", "stale": False}
    job.rank.save_after = 2
    job.take(4)
    assert job.saved == ["step-3-gen-1.1"]


def test_ep12_that_it_lies_on_disk_is_said_again_to_who_still_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that was away has not heard of it."""
    job = Phases(tmp_path, every=0)
    job.rank.save_after = 2
    job.take(2)
    began = time.monotonic()
    for step, later in ((3, 1.0), (4, 60.0), (5, 61.0)):
        job.rank.save_after = 2
        with monkeypatch.context() as clock:
            clock.setattr("workers.keeper.time.monotonic", lambda later=later: began + later)
            job.keeper.after_step(step)
    assert told(job) == [2, 2] and job.saved == ["step-2-gen-1.1"]


def test_ck1_what_is_asked_for_while_there_are_rounds_and_no_steps_is_saved_before_the_next_one(tmp_path: Path) -> None:
    job = Phases(tmp_path, every=0)
    job.at("calibration", 7, 2)
    job.rank.save_after = 7
    job.at("calibration", 7, 3)
    job.at("calibration", 7, 4)
    assert job.saved == ["step-7-gen-1.1-round-3"]


def test_gm33_what_a_rank_holds_while_the_gang_waits_is_saved_whoever_is_the_first(tmp_path: Path) -> None:
    job = Phases(tmp_path, every=0)
    job.rank.topology = replace(job.rank.topology, index=1)
    job.rank.machine.state = StateId(4, 1, FIRST, 401)
    job.keeper.save_held()
    job.wait()
    assert job.saved == ["step-4-gen-1.1-round-1"]


def test_cc24_what_is_attached_to_the_state_is_found_again(tmp_path: Path) -> None:
    """The outer momentum, and the Q of PowerSGD; of a job that has neither, they are another model's."""
    job = Phases(tmp_path, every=1)
    outer = OuterSync(job.engine.replica, SyncConfig(every=4), None)
    outer.load_state_dict({"weight": torch.full((2, 2), 3.0)})
    powersgd = {"1/weight": torch.full((1, 2), 5.0)}
    job.engine.compression.state_dict = lambda: powersgd  # type: ignore[method-assign]
    job.take(1)
    snapshot = job.keeper.found()
    assert snapshot is not None and snapshot.state.step == 1
    assert torch.equal(snapshot.captured.tensors["outer.weight"], torch.full((2, 2), 3.0))
    assert torch.equal(snapshot.captured.tensors["compression.1/weight"], powersgd["1/weight"])
    del job.engine.replica.attached["outer"]
    with pytest.raises(TaskError, match=r"the model has no tensor 'outer\.weight'"):
        job.keeper.found()


def test_gm17_a_checkpoint_that_is_distrusted_is_put_aside_in_a_later_start_too(tmp_path: Path) -> None:
    """A job that ended because its ranks differed has left word of it."""
    job = Phases(tmp_path, every=1)
    for step in (1, 2, 3):
        job.take(step)
    control = tmp_path / "control"
    for at_most, expected in ((None, 2), (1, 1)):  # who asks may know more
        (control / DISTRUSTED).write_text('{"after": 2}')
        snapshot = job.keeper.found(at_most)
        assert snapshot is not None and snapshot.state.step == expected
    assert [entry.step for entry in list_checkpoints(tmp_path / "checkpoints")] == [1]
    (control / DISTRUSTED).write_text("torn")
    snapshot = job.keeper.found()
    assert snapshot is not None and snapshot.state.step == 1


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
    rounded = _rounded(exact, tmp_path)
    assert rounded[:3] == exact[:3] and rounded.lineage != exact.lineage
    (tmp_path / "manifest.json").write_text("{ }")
    assert _rounded(exact, tmp_path) != rounded


def test_ck9_storage_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume takes no older checkpoint, nor none, because of it; after a while the job ends, and may be started again."""
    job = Phases(tmp_path, every=1)
    job.take(1)
    looking, refusals = keeper_module.load_newest, [2]

    def refuse(*arguments: Any) -> Any:
        if refusals[0]:
            refusals[0] -= 1
            raise StorageError("cannot read s3://bucket/x: the store answers: SlowDown")
        return looking(*arguments)

    monkeypatch.setattr(keeper_module, "load_newest", refuse)
    monkeypatch.setattr(keeper_module, "PAUSES", (0.0, 0.0))
    snapshot = job.keeper.found()
    assert snapshot is not None and snapshot.state.step == 1
    refusals[0] = 3
    with pytest.raises(TaskError, match="SlowDown; start again with --resume once it answers") as refusal:
        job.keeper.found()
    assert refusal.value.exit_code == 4
