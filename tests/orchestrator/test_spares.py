"""GM-37: how many spare hosts a job has, and that they can help."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantarion.v1 import control_pb2 as pb

from orchestrator import host_tests
from orchestrator.jobspec import HostsConfig
from orchestrator.roster import JobPhase, Role
from orchestrator.spares import ENOUGH, spares_for
from orchestrator.streams import HostStream
from tests.orchestrator.real_coordinator import RealCoordinator
from workers import wire


@pytest.mark.parametrize(("hosts", "spares"), [(1, 0), (16, 1), (128, 2), (888, 5), (10_000, 31)])
def test_gm37_spares_of_hosts_that_fail_once_in_a_thousand_hours_and_are_replaced_in_two(hosts: int, spares: int) -> None:
    assert spares_for(hosts) == spares


@given(st.integers(0, 300), st.floats(10.0, 1e4), st.floats(0.01, 5.0))
def test_gm37_they_are_the_fewest_that_are_enough(hosts: int, failure: float, replacement: float) -> None:
    fails = 1 - math.exp(-replacement / failure)
    found = spares_for(hosts, failure, replacement)

    def enough(spares: int) -> float:
        return math.fsum(math.comb(hosts, k) * fails**k * (1 - fails) ** (hosts - k) for k in range(spares + 1))

    assert 0 <= found <= hosts
    assert enough(found) >= ENOUGH - 1e-9
    assert found == 0 or enough(found - 1) <= ENOUGH + 1e-9


def test_gm37_a_job_holds_its_spares_beside_the_hosts_that_train() -> None:
    assert HostsConfig(max=4).most == 4
    assert HostsConfig(max=4, spares=2).most == 6
    assert HostsConfig(max=128, spares="auto").most == 130


def train(job: RealCoordinator, *hosts: str) -> dict[str, HostStream]:
    """All attach, and these train; the streams of all."""
    job.machine.roster.most_hosts = len(hosts)
    streams = {host: HostStream(host) for host in job.names}
    for host, stream in streams.items():
        job.attach(job.hello(host), stream)
    for host in hosts:
        job.hear(host, job.report(host, prepared=job.prepared()))
    running = pb.Running(generation=wire.generation_to_wire(job.machine.generation), how="went_on")
    for host in hosts:
        job.hear(host, job.report(host, running=running))
    assert job.machine.phase is JobPhase.TRAINING
    return streams


def test_gm37_a_job_that_is_scaled_down_takes_no_spare_for_those_that_leave(tmp_path: Path) -> None:
    async def body() -> None:
        with RealCoordinator.opened(tmp_path, hosts=3) as job:
            train(job, "host-1", "host-2")
            assert job.scale(1) == ["host-2"]
            assert job.machine.hosts["host-2"].leaving
            assert [worker.role for worker in job.machine.roster.on("host-3")] == [Role.IDLE]
            assert job.machine.roster.spares == ["host-3"]

    asyncio.run(body())


def test_gm37_a_spare_host_is_tested_now_and_then_and_given_up_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        with RealCoordinator.opened(tmp_path, hosts=2) as job:
            streams = train(job, "host-1")
            assert job.machine.roster.spares == ["host-2"]
            job.host_tests.tick()
            assert asked(streams) == []
            monkeypatch.setattr(host_tests, "SPARE_SECONDS", 0.0)
            job.host_tests.tick()
            assert asked(streams) == ["host-2"]
            job.hear("host-2", pb.AgentMessage(host_tested=pb.HostTested()))
            assert job.machine.roster.spares == ["host-2"]
            job.hear("host-2", pb.AgentMessage(host_tested=pb.HostTested(failures=["a wrong product"])))
            assert list(job.machine.hosts) == ["host-1"]
            (lost,) = job.events("host_lost")
            assert (lost["host"], lost["reason"]) == ("host-2", "a spare host has failed its test")

    def asked(streams: dict[str, HostStream]) -> list[str]:
        found = []
        for host, stream in streams.items():
            while not stream.outbox.empty():
                message = stream.outbox.get_nowait()
                if message is not None and message.HasField("host_test"):
                    found.append(host)
        return found

    asyncio.run(body())
