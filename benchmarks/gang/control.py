"""The real coordinator over hosts that the zygote starts instead of Ray, with faults of its own.

`gang.json` in the job's folder says what nodes there are, how patient the coordinator is, and at which points it kills
itself: `before:<action>#<n>`, `after:<action>#<n>` (an action of the membership machine), `record:<event>#<n>`,
`heard:<report>#<n>` (a report of a rank that is about to be handled), `half:SendConfigure#<n>` (the CONFIGURE of the
round reaches the first host only). n counts from 1 over the life of one process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from quantarion.v1 import control_pb2 as pb

from benchmarks.gang.gang import LIMITS, read_settings
from benchmarks.gang.zygote import ask
from orchestrator import membership as ms
from orchestrator import operator_commands, status, stop
from orchestrator.coordinator import Coordinator, CoordinatorActor, logger
from orchestrator.errors import UserError
from orchestrator.hosts import NodeNames, PlacedHost, RayHosts
from orchestrator.jobspec import JobSpec
from orchestrator.pace import Pace
from orchestrator.placement import HostSlot
from workers import wire
from workers.actors import settle
from workers.identity import Generation


@dataclass
class ZygoteHosts:
    """What `RayHosts` does, by forks of the zygote."""

    folder: Path
    zygote: str
    placed: dict[str, PlacedHost]
    names: NodeNames = field(default_factory=NodeNames)

    def adopt(self, hosts: dict[str, dict[str, Any]], names: dict[str, str]) -> None:
        for host, entry in hosts.items():
            self.placed[host] = PlacedHost(host, str(entry["node_id"]), str(entry["address"]))
        self.names = NodeNames(names)

    def dead(self, hosts: Collection[str]) -> list[str]:
        """Machines that are there no more; one whose cable is cut may live."""
        settings = read_settings(self.folder)
        living = {f"node-{address}" for address in (*settings["nodes"], *settings["out_of_reach"])}
        return [host for node, host in self.names.known.items() if node not in living and host in hosts]

    def name(self, slot: HostSlot) -> str:
        return self.names.of(slot.node_id)

    def draining(self) -> dict[str, float]:
        draining = read_settings(self.folder)["draining"]
        return {h: draining[each.address] for h, each in list(self.placed.items()) if each.address in draining}

    def offers(self) -> list[HostSlot]:
        settings = read_settings(self.folder)
        kept = {placed.address for placed in self.placed.values()} | settings["draining"].keys()
        return [HostSlot(address, f"node-{address}") for address in settings["nodes"] if address not in kept]

    def start(self, slot: HostSlot) -> PlacedHost:
        placed = PlacedHost(self.name(slot), slot.node_id, slot.address)
        self.placed[placed.host] = placed
        self._fork("agent", placed)
        return placed

    def spawn_worker(self, host: str) -> None:
        if host in self.placed:
            self._fork("worker", self.placed[host])

    def met(self, host: str, pid: int) -> None:
        pass

    def drop(self, host: str) -> None:
        placed = self.placed.pop(host, None)
        if placed is not None and placed.address not in read_settings(self.folder)["out_of_reach"]:
            ask(self.zygote, do="remove", gang=str(self.folder), host=host)

    def drop_all(self) -> None:
        for host in list(self.placed):
            self.drop(host)

    def _fork(self, kind: str, placed: PlacedHost) -> None:
        ask(self.zygote, do="fork", gang=str(self.folder), kind=kind, host=placed.host, address=placed.address)


class GangCoordinator(Coordinator):
    """Dies where it is told to, once in the life of a job."""

    def __init__(self, *arguments: Any, deaths: list[str]) -> None:
        super().__init__(*arguments)
        self._deaths = deaths
        self._seen: Counter[str] = Counter()
        self._half: str | None = None
        self._limits: tuple[float, float] = (0.0, 0.0)

    def govern(self) -> None:
        super().govern()
        limits = round(self.governing.dead_limit, 3), round(self.machine.pace.patience, 3)
        if limits != self._limits:
            self._limits = limits
            line = {"t": self.now(), "dead": limits[0], "hang": limits[1]}
            with (self.folder / LIMITS).open("a") as file:
                file.write(json.dumps(line) + "\n")

    def do(self, actions: list[ms.Action]) -> None:
        for action in actions:
            name = type(action).__name__
            if isinstance(action, ms.SendPrepare):
                self._take_down("asked", action.worker, action.generation, action.at_step)
            self._pass(f"before:{name}")
            if isinstance(action, ms.SendConfigure) and self._is_lost(action):
                continue
            super().do([action])
            self._pass(f"after:{name}")

    def event(self, kind: str, fields: dict[str, object]) -> None:
        super().event(kind, fields)
        self._pass(f"record:{kind}")

    def hear(self, host: str, message: pb.AgentMessage) -> None:
        if self._half is not None and message.WhichOneof("body") == "beat":
            self._die(self._half)  # what was sent to the first host is there by now
        kind = message.report.WhichOneof("body") if message.HasField("report") else None
        if kind == "prepared":
            answer = message.report.prepared
            self._take_down("answered", message.report.worker, wire.generation_from_wire(answer.generation))
        if kind is not None:
            self._pass(f"heard:{kind}")
        super().hear(host, message)

    def _take_down(self, what: str, worker: str, generation: Generation, at_step: int = 0) -> None:
        """`answers.jsonl`: when a rank was sent PREPARE, and when its PREPARED came, seconds of the coordinator's clock."""
        line = {"what": what, "worker": worker, "generation": list(generation), "at_step": at_step, "t": self.now()}
        with (self.folder / "answers.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _is_lost(self, action: ms.SendConfigure) -> bool:
        self._seen["half:SendConfigure"] += 1
        point = f"half:SendConfigure#{self._seen['half:SendConfigure']}"
        if point in self._deaths and not self._has_died(point):
            self._half = point
        mine = next(m for m in action.plan.members if m.worker == action.worker)
        return self._half is not None and mine.host != action.plan.members[0].host

    def _pass(self, point: str) -> None:
        self._seen[point] += 1
        numbered = f"{point}#{self._seen[point]}"
        if numbered in self._deaths and not self._has_died(numbered):
            self._die(numbered)

    def _has_died(self, point: str) -> bool:
        return death_file(self.folder, point).exists()

    def _die(self, point: str) -> None:
        file = death_file(self.folder, point)
        file.parent.mkdir(exist_ok=True)
        file.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class GangCoordinatorActor(CoordinatorActor):
    """The actor without Ray."""

    def __init__(self, folder: Path) -> None:
        settle(folder / "logs" / "coordinator.log")
        values = json.loads((folder / "job.json").read_text())
        spec = JobSpec.model_validate_json(json.dumps({key: values[key] for key in JobSpec.model_fields}))
        self._settings = read_settings(folder)
        threading.Thread(target=self._body, args=(spec, folder, ""), daemon=True).start()

    async def _serve(self, spec: JobSpec, folder: Path, namespace: str) -> None:
        from torch.distributed import TCPStore

        limits = self._settings["limits"]
        if "prepare" in limits:
            _limit(Pace, "answer_limit", limits["prepare"])
        if "patience" in limits:
            _limit(ms.Membership, "_patience", limits["patience"])
        address = self._settings["address"]
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        hosts = cast(RayHosts, ZygoteHosts(folder, self._settings["zygote"], {}))
        coordinator = GangCoordinator(
            spec, folder, hosts, f"{address}:{store.port}", address, deaths=self._settings["deaths"]
        )
        coordinator.bind_loop(asyncio.get_running_loop())
        await coordinator.run()
        logger.info("the coordinator is done")


def observe(folder: Path) -> None:
    """What the driver asks the coordinator, from a process that reaches it; the answer lies in `status.json`."""

    def body() -> None:
        while True:
            state = status.fetch(folder, driver=True)
            (folder / "status.json.new").write_text(json.dumps(state))
            (folder / "status.json.new").replace(folder / "status.json")
            if state is not None and state["phase"] in ("finished", "failed"):
                return  # the coordinator answers once more, and then it ends
            time.sleep(0.1)

    threading.Thread(target=body, daemon=True).start()


def operate(folder: Path, command: str, host: str = "") -> None:
    """`quantarion drain`, `readmit` or `stop`, from a process that reaches the coordinator, which ends with it."""
    code = 0
    try:
        match command:
            case "drain":
                code = operator_commands.drain(folder.name, host, "the host is to be looked at", folder.parent)
            case "readmit":
                code = operator_commands.readmit(folder.name, host, folder.parent)
            case "stop":
                stop.ask(folder, False, "the benchmark is over")
    except UserError as error:
        print(f"{command} {host}: {error}")
        code = int(error.exit_code)
    sys.stdout.flush()
    os._exit(int(code))


def _limit(owner: type, name: str, seconds: float) -> None:
    assert isinstance(getattr(owner, name), property)
    setattr(owner, name, property(lambda _: seconds))


def death_file(folder: Path, point: str) -> Path:
    """Where the coordinator remembers that it has died at `point`."""
    return folder / "faults" / f"coordinator-{point}"
