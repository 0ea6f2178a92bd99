"""GM-32: a real coordinator that loses many hosts at once has the job saved."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.orchestrator.real_coordinator import RealCoordinator


def test_gm32_after_a_mass_failure_a_checkpoint_is_asked_for(tmp_path: Path) -> None:
    async def body() -> None:
        with RealCoordinator.opened(tmp_path, hosts=6) as job:
            job.train()
            for host in job.names[:2]:
                job.do(job.machine.host_lost(host, "its node is dead", job.now()))
            job.govern()
            assert job.saving.step == 0
            job.do(job.machine.host_lost(job.names[2], "its node is dead", job.now()))
            job.govern()
            assert job.saving.step > 0
            asked = job.saving.step
            job.govern()
            assert job.saving.step == asked and job.journal.remembered.save == 0  # of an earlier coordinator
            assert [event["reasons"] for event in job.events("verdict") if "MASS_FAILURE" in event["reasons"]] == [
                ["MASS_FAILURE"]
            ]

    asyncio.run(body())
