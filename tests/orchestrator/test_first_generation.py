"""EP-13: the first generation has all hosts that are being started, however long that takes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orchestrator.membership import JobPhase
from orchestrator.streams import HostStream
from tests.orchestrator.real_coordinator import RealCoordinator


def test_ep13_while_hosts_are_being_started_the_first_generation_waits(tmp_path: Path) -> None:
    """The first one is up before it is known that there is another."""

    async def body() -> None:
        with RealCoordinator.opened(tmp_path, hosts=1) as job:
            machine = job.machine
            machine.roster.most_hosts = 2
            machine.placing = True
            job.attach(job.hello("host-1"), HostStream("host-1"))
            job.do(machine.tick(job.now()))
            assert machine.phase is JobPhase.WAITING
            job.recruitment.expect("host-2", "10.0.0.2", "")
            machine.placing = False
            job.do(machine.tick(job.now()))
            assert machine.phase is JobPhase.WAITING
            job.attach(job.hello("host-2"), HostStream("host-2"))
            assert machine.waiting == {"w1", "w2"}

    asyncio.run(body())
