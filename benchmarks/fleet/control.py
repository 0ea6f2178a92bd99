"""The process with the real coordinator, on hosts that other processes simulate; it says what its work costs.

    python -m benchmarks.fleet.control FOLDER

It writes to `load.jsonl` in the job's folder: how many beats it has heard, how late its event loop was, how long the
governor's evaluations took.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

from quantarion.v1 import control_pb2 as pb

from benchmarks.fleet.orders import send
from benchmarks.fleet.settings import Settings
from orchestrator import rayenv

rayenv.prepare(embedded=True)  # Ray, which has nothing to do here, reads it when it is imported

from orchestrator.coordinator import Coordinator  # noqa: E402
from orchestrator.hosts import PlacedHost, RayHosts  # noqa: E402
from orchestrator.jobspec import JobSpec  # noqa: E402
from orchestrator.placement import HostSlot  # noqa: E402
from orchestrator.topology import LABELS  # noqa: E402
from workers.actors import log_to  # noqa: E402

ADDRESS = "127.0.0.1"
STORE = f"{ADDRESS}:1"
"""Where ranks would meet; simulated ones do not."""

LOOK_SECONDS = 0.02
TELL_SECONDS = 1.0


class SimulatedHosts:
    """What `RayHosts` does, by orders to the processes that simulate hosts. Each host is offered once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._free = {
            node.node_id: HostSlot(node.address, node.node_id, labels={LABELS[0]: node.group_name})
            for node in settings.nodes
        }
        self._names = {node.node_id: node.host for node in settings.nodes}
        self.placed: dict[str, PlacedHost] = {}

    def adopt(self, hosts: dict[str, dict[str, Any]], names: dict[str, str]) -> None:
        """Of a coordinator before this one: there is none."""

    def name(self, slot: HostSlot) -> str:
        return self._names[slot.node_id]

    def offers(self) -> list[HostSlot]:
        return list(self._free.values())

    def start(self, slot: HostSlot) -> PlacedHost:
        del self._free[slot.node_id]
        placed = PlacedHost(self.name(slot), slot.node_id, slot.address)
        self.placed[placed.host] = placed
        return placed

    def spawn_worker(self, host: str) -> None:
        self._order("spawn", host)

    def met(self, host: str, pid: int) -> None:
        pass

    def drop(self, host: str) -> None:
        if self.placed.pop(host, None) is not None:
            self._order("drop", host)

    def drop_all(self) -> None:
        for host in list(self.placed):
            self.drop(host)

    def _order(self, do: str, host: str) -> None:
        settings = self._settings
        send(Path(settings.sockets), settings.generator(settings.by_host[host]), do=do, host=host)


class MeasuredCoordinator(Coordinator):
    """Counts, and changes nothing."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._load = os.open(self.folder / "load.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.beats = 0

    def hear(self, host: str, message: pb.AgentMessage) -> None:
        self.beats += message.HasField("beat")
        super().hear(host, message)

    def govern(self) -> None:
        """With an evaluation its time is all that follows from the end of a window: observations, policy and log."""
        before, begun = self._observed_at, time.perf_counter()
        super().govern()
        if self._observed_at != before and self.machine.roster.members:
            seconds = time.perf_counter() - begun
            self._say("evaluation", seconds=seconds, hosts=len(self.machine.roster.members))

    async def look(self) -> None:
        """How late the loop is: by how much a sleep takes longer."""
        loop, late, told = asyncio.get_running_loop(), list[float](), time.monotonic()
        while True:
            before = loop.time()
            await asyncio.sleep(LOOK_SECONDS)
            late.append(max(0.0, loop.time() - before - LOOK_SECONDS))
            if time.monotonic() - told >= TELL_SECONDS:
                self._say("load", beats=self.beats, late=sorted(late), seconds=time.monotonic() - told)
                self.beats, late, told = 0, [], time.monotonic()

    def _say(self, kind: str, **fields: Any) -> None:
        os.write(self._load, (json.dumps({"t": self.now(), "kind": kind, **fields}) + "\n").encode())


async def serve(folder: Path) -> None:
    """Until the job has ended."""
    values = json.loads((folder / "job.json").read_text())
    spec = JobSpec.model_validate_json(json.dumps({key: values[key] for key in JobSpec.model_fields}))
    hosts = cast(RayHosts, SimulatedHosts(Settings.read(folder)))
    coordinator = MeasuredCoordinator(spec, folder, hosts, STORE, ADDRESS)
    coordinator.bind_loop(asyncio.get_running_loop())
    looking = asyncio.create_task(coordinator.look())
    await coordinator.run()
    looking.cancel()


def main() -> None:
    folder = Path(sys.argv[1])
    log_to(folder / "logs" / "coordinator.log")
    asyncio.run(serve(folder))


if __name__ == "__main__":
    main()
