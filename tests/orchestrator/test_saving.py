"""A checkpoint that is asked for: who is told of it, and until when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from orchestrator.actions import SendSave
from orchestrator.membership import JobPhase
from orchestrator.pace import Pace
from orchestrator.saving import AGAIN_SECONDS, Saving


class Job:
    """What a coordinator has of it; it trains with two members, and has just committed step 10 of 100."""

    def __init__(self, save: int = 0) -> None:
        self.time = 0.0
        self.reports = SimpleNamespace(total_steps=100)
        self.entries: list[dict[str, Any]] = []
        self.told: list[tuple[float, str, int]] = []
        members = [SimpleNamespace(worker="a"), SimpleNamespace(worker="b")]
        pace = Pace(step=10, step_at=0.0, step_seconds=0.5)
        self.machine = SimpleNamespace(phase=JobPhase.TRAINING, pace=pace, roster=SimpleNamespace(members=members))
        self.journal = SimpleNamespace(remembered=SimpleNamespace(save=save), write=self.entries.append)
        stand_in: Any = self
        self.saving = Saving(stand_in)

    def now(self) -> float:
        return self.time

    def do(self, actions: list[SendSave]) -> None:
        self.told += [(self.time, action.worker, action.step) for action in actions]

    def tick_at(self, *times: float) -> None:
        for self.time in times:
            self.saving.tick()


def test_all_members_are_told_of_a_step_to_come_until_it_lies_on_disk() -> None:
    job = Job()
    assert job.saving.ask() == 12 == job.saving.step
    job.tick_at(0.1, AGAIN_SECONDS + 0.1, AGAIN_SECONDS + 0.2)
    assert job.told == [(at, worker, 12) for at in (0.0, AGAIN_SECONDS + 0.1) for worker in "ab"]
    job.saving.published(11, "exact")
    job.saving.published(12, "qins")
    assert job.saving.step == 12
    job.saving.published(13, "exact")
    job.tick_at(10.0)
    assert job.saving.step == 0 and len(job.told) == 4
    assert job.entries == [{"entry": "save", "step": 12}, {"entry": "saved"}]
    job.saving.published(14, "exact")
    assert len(job.entries) == 2


def test_while_nobody_trains_nobody_is_told_and_then_at_once() -> None:
    job = Job()
    job.machine.phase = JobPhase.FORMING
    job.saving.ask()
    job.tick_at(0.5)
    assert job.told == []
    job.machine.phase = JobPhase.TRAINING
    job.tick_at(0.6)
    assert job.told == [(0.6, "a", 12), (0.6, "b", 12)]


def test_ep12_a_restarted_coordinator_asks_on() -> None:
    job = Job(save=7)
    job.tick_at(0.0)
    assert job.told == [(0.0, "a", 7), (0.0, "b", 7)]


def test_no_step_is_named_that_the_job_does_not_have_and_one_where_nothing_is_known() -> None:
    job = Job()
    job.reports.total_steps = 11
    assert job.saving.ask() == 11
    job.reports.total_steps, job.machine.pace = 0, Pace()
    assert job.saving.ask() == 1
