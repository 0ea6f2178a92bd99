"""Which state is saved when, in which tier, and what the lowest rank says of it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.phases import FIRST, Phases
from workers.checkpoint import background, load
from workers.checkpoint.errors import StorageError
from workers.config import CheckpointConfig
from workers.identity import StateId


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
