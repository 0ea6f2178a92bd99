"""GM-16: what the coordinator does about sums that are not what was put in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from quantarion.v1 import control_pb2 as pb

from orchestrator.errors import ExitCode
from orchestrator.membership import JobPhase
from orchestrator.wrong_sums import MOST_UNEXPLAINED
from tests.orchestrator.real_coordinator import RealCoordinator
from workers import wire
from workers.identity import Generation

MOST = ("host-1", "host-3")


def tell(
    job: RealCoordinator,
    owners: list[int],
    by: Sequence[str] = MOST,
    step: int = 200,
    generation: Generation | None = None,
) -> None:
    """The ranks on these hosts have found it."""
    named = wire.generation_to_wire(generation or job.machine.generation)
    found = pb.WrongSums(generation=named, step=step, right=step - 50, owners=owners)
    for host in by:
        job.hear(host, job.report(host, wrong_sums=found))


def run(folder: Path, body: Callable[[RealCoordinator], None]) -> None:
    async def work() -> None:
        with RealCoordinator.opened(folder, hosts=3) as job:
            job.train()
            job.agreement.agreed(180)
            body(job)

    asyncio.run(work())


def test_gm16_whose_sums_are_wrong_is_evicted_and_the_job_goes_back_to_before_the_last_check(tmp_path: Path) -> None:
    def body(job: RealCoordinator) -> None:
        tell(job, [1])
        (wrong,) = job.events("wrong_sums")
        assert (wrong["step"], wrong["hosts"], wrong["culprit"], wrong["sound"]) == (200, ["host-2"], "host-2", 150)
        (verdict,) = [event for event in job.events("verdict") if event["act"] == "evict"]
        assert (verdict["target"], verdict["reasons"][0]) == ("host-2", "REDUCE_CHECK")
        assert job.machine.hosts["host-2"].leaving and job.machine.rolling_back == 150 and job.agreement.sound == 150
        tell(job, [1], by=["host-2"])
        assert len(job.events("wrong_sums")) == len(job.events("rolls_back")) == 1

    run(tmp_path, body)


def test_gm16_one_host_that_lies_moves_nobody_however_often(tmp_path: Path) -> None:
    def body(job: RealCoordinator) -> None:
        for step in (200, 200, 250):
            tell(job, [1], by=["host-1"], step=step)
        tell(job, [0], by=["host-2"])  # another finding
        assert job.events("wrong_sums") == [] and job.machine.phase is JobPhase.TRAINING

    run(tmp_path, body)


def test_gm16_a_sound_step_of_before_the_last_check_counts(tmp_path: Path) -> None:
    def body(job: RealCoordinator) -> None:
        job.agreement.agreed(100)
        tell(job, [1])
        assert job.machine.rolling_back == 100

    run(tmp_path, body)


def test_gm16_of_another_generation_nothing_is_believed(tmp_path: Path) -> None:
    def body(job: RealCoordinator) -> None:
        tell(job, [1], generation=Generation(1, 0))
        assert job.events("wrong_sums") == [] and job.machine.phase is JobPhase.TRAINING

    run(tmp_path, body)


def test_gm16_where_nobody_knows_whose_fault_it_is_nobody_is_evicted_and_the_third_time_it_is_over(tmp_path: Path) -> None:
    """Of a ring there is no owner; and a rank that sends something else than it says spoils the pieces of all."""

    def body(job: RealCoordinator) -> None:
        for again, owners in enumerate(([-1], [0, 1, 2], [-1])):
            assert not job.done.is_set()
            tell(job, owners, step=200 + 50 * again)
            job.machine.rolling_back = None  # as if it had gone back, and on again
        assert [event["act"] for event in job.events("verdict")] == []
        assert [event["culprit"] for event in job.events("wrong_sums")] == [""] * MOST_UNEXPLAINED
        assert len(job.events("rolls_back")) == MOST_UNEXPLAINED - 1
        assert job.exit_code == ExitCode.BUG and "REDUCE_CHECK" in job.message

    run(tmp_path, body)
