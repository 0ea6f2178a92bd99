"""GM-16: what the coordinator does about sums that are not what was put in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantarion.v1 import control_pb2 as pb

from orchestrator.errors import ExitCode
from orchestrator.membership import JobPhase
from orchestrator.wrong_sums import MOST_UNEXPLAINED
from tests.orchestrator.real_coordinator import RealCoordinator


def tell(job: RealCoordinator, members: list[int], culprit: int, step: int = 200, **changes: Any) -> None:
    """By the rank on host-1."""
    generation = list(job.machine.generation)
    fields = {"step": step, "right": step - 50, "members": members, "culprit": culprit, "generation": generation, **changes}
    job.hear("host-1", job.report("host-1", note=pb.Note(kind="wrong_sums", json=json.dumps(fields))))


def run(folder: Path, body: Callable[[RealCoordinator], None]) -> None:
    async def work() -> None:
        with RealCoordinator.opened(folder, hosts=3) as job:
            job.train()
            job.digests.sound = 180
            body(job)

    asyncio.run(work())


def test_gm16_whose_sums_are_wrong_is_evicted_and_the_job_goes_back_to_before_the_last_check(tmp_path: Path) -> None:
    def body(job: RealCoordinator) -> None:
        tell(job, [1], 1)
        (wrong,) = job.events("wrong_sums")
        assert (wrong["step"], wrong["hosts"], wrong["culprit"], wrong["sound"]) == (200, ["host-2"], "host-2", 150)
        (verdict,) = [event for event in job.events("verdict") if event["act"] == "evict"]
        assert (verdict["target"], verdict["reasons"][0]) == ("host-2", "REDUCE_CHECK")
        assert job.machine.hosts["host-2"].leaving and job.machine.rolling_back == 150 and job.digests.sound == 150
        tell(job, [1], 1)  # by the next rank
        assert len(job.events("wrong_sums")) == len(job.events("rolls_back")) == 1

    run(tmp_path, body)


def test_gm16_a_sound_step_of_before_the_last_check_counts(tmp_path: Path) -> None:
    def body(job: RealCoordinator) -> None:
        job.digests.sound = 100
        tell(job, [1], 1)
        assert job.machine.rolling_back == 100

    run(tmp_path, body)


def test_gm16_of_another_generation_nothing_is_believed(tmp_path: Path) -> None:
    def body(job: RealCoordinator) -> None:
        tell(job, [1], 1, generation=[1, 0])
        assert job.events("wrong_sums") == [] and job.machine.phase is JobPhase.TRAINING

    run(tmp_path, body)


def test_gm16_where_nobody_knows_whose_fault_it_is_nobody_is_evicted_and_the_third_time_it_is_over(tmp_path: Path) -> None:
    def body(job: RealCoordinator) -> None:
        for again in range(MOST_UNEXPLAINED):
            assert not job.done.is_set()
            tell(job, [-1], -1, step=200 + 50 * again)
            job.machine.rolling_back = None  # as if it had gone back, and on again
        assert [event["act"] for event in job.events("verdict")] == []
        assert [event["culprit"] for event in job.events("wrong_sums")] == [""] * MOST_UNEXPLAINED
        assert len(job.events("rolls_back")) == MOST_UNEXPLAINED - 1
        assert job.exit_code == ExitCode.BUG and "REDUCE_CHECK" in job.message

    run(tmp_path, body)
