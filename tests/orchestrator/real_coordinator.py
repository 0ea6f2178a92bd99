"""A real Coordinator without Ray and without a server, whose hosts are what the test says of them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from quantarion.v1 import control_pb2 as pb

from orchestrator.coordinator import Coordinator
from orchestrator.hosts import RayHosts
from orchestrator.jobspec import JobSpec
from orchestrator.membership import JobPhase
from orchestrator.records import Record, read_events
from orchestrator.streams import HostStream
from workers import wire
from workers.identity import GENESIS
from workers.installed import software


class NoHosts:
    """What `RayHosts` does, without doing it."""

    def __init__(self) -> None:
        self.placed: dict[str, object] = {}
        self.dropped: list[str] = []

    def met(self, host: str, pid: int) -> None:
        pass

    def spawn_worker(self, host: str) -> None:
        pass

    def drop(self, host: str) -> None:
        self.dropped.append(host)


class RealCoordinator(Coordinator):
    """Of `hosts` hosts with one rank and no spare each: worker `w1` on `host-1`, and so on. Needs a running loop.

    `more` goes into JobSpec's `hosts`.
    """

    def __init__(self, folder: Path, hosts: int = 2, **more: int) -> None:
        spec = {
            "name": "job",
            "storage": str(folder),
            "ranks_per_host": 1,
            "spares_per_host": 0,
            "topology": {"probe": False},
        }
        (folder / "job.json").write_text(json.dumps({"started": 1.0}))
        sizes = {"min": 1, "max": hosts, **more}
        hosts_of_ray = cast(RayHosts, NoHosts())
        super().__init__(JobSpec.model_validate({**spec, "hosts": sizes}), folder, hosts_of_ray, "127.0.0.1:1", "127.0.0.1")
        self.bind_loop(asyncio.get_running_loop())
        self._opened: list[HostStream] = []
        self.names = [f"host-{number}" for number in range(1, hosts + 1)]
        for host in self.names:
            self.recruitment.expect(host, f"10.0.0.{host[5:]}", "")

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, hosts: int = 2, **more: int) -> Iterator[RealCoordinator]:
        """Closes its files in the end."""
        coordinator = cls(folder, hosts, **more)
        try:
            yield coordinator
        finally:
            log: Any = coordinator.governing._governor._log
            for file in (coordinator._events, coordinator.journal._fd, log._file):
                os.close(file)

    def train(self) -> None:
        """All hosts attach, and their ranks go through the first generation, at the pace of this call."""
        for host in self.names:
            assert self.attach(self.hello(host), HostStream(host)) is None
        for host in self.names:
            self.hear(host, self.report(host, prepared=self.prepared()))
        for host in self.names:
            running = pb.Running(generation=wire.generation_to_wire(self.machine.generation), how="went_on")
            self.hear(host, self.report(host, running=running))
        assert self.machine.phase is JobPhase.TRAINING

    def attach(self, hello: pb.HostHello, stream: HostStream) -> str | None:
        self._opened.append(stream)
        return super().attach(hello, stream)

    @property
    def attached(self) -> list[str]:
        """Hosts that hang on a stream."""
        return sorted({host for stream in self._opened for host in self.streams.hosts(stream)})

    def worker(self, host: str) -> str:
        return f"w{host[5:]}"

    def hello(self, host: str, **changes: Any) -> pb.HostHello:
        up = pb.WorkerUp(worker=self.worker(host), pid=100 + int(host[5:]), phase="idle", rank=-1, **changes)
        return pb.HostHello(host=host, address=f"10.0.0.{host[5:]}", workers=[up], software=software(self.folder))

    def report(self, host: str, **body: Any) -> pb.AgentMessage:
        return pb.AgentMessage(report=pb.RankReport(worker=self.worker(host), **body))

    def prepared(self) -> pb.Prepared:
        """The answer to the round that is open."""
        state = wire.state_to_wire(GENESIS)
        generation = wire.generation_to_wire(self.machine.round_generation)
        return pb.Prepared(generation=generation, state=state, previous=state)

    def beat(self, host: str, **progress: Any) -> pb.AgentMessage:
        told = {"worker": self.worker(host), "state": "training", **progress}
        return pb.AgentMessage(beat=pb.Beat(progress=[pb.Progress(**told)]))

    def events(self, kind: str) -> list[Record]:
        return [event for event in read_events(self.folder) if event["kind"] == kind]

    @property
    def membership(self) -> str:
        """All that is known of hosts, workers and the job's course."""
        machine = self.machine
        roster = (machine.hosts, machine.workers, sorted(machine.waiting), sorted(machine.expected_hosts))
        course = (
            machine.phase,
            machine.generation,
            machine.round_generation,
            machine.counter,
            machine.plan,
            machine.attempt,
        )
        line = (machine.stopping, machine.formed, machine.discarded, machine.rolling_back, sorted(machine.failed_steps))
        pace = (machine.pace, machine.incidents.open, list(machine.apply_failures), machine.exchange_error_at)
        told = (self.reports.seen, self.reports.total_steps, self.exit_code, self.agreement.sound, self.attached)
        return repr((roster, course, line, pace, told))
