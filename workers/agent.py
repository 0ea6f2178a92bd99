"""HostAgent: one per host. Watches its ranks, relays between them and the coordinator, kills what does not answer.

It decides nothing about membership and answers for nobody (EP-8). It needs neither torch nor Ray, so it starts quickly
and survives what a rank does to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantarion.v1 import control_pb2 as pb

from workers import packets, stacks, wire
from workers.exits import exit_status
from workers.host_sensors import HostSensors
from workers.identity import Generation
from workers.installed import software
from workers.leading import Leading
from workers.link import page_path, socket_path
from workers.memory_file import memory_folder, memory_path, remove_abandoned
from workers.packets import Outgoing
from workers.page import Page
from workers.probing import Probing
from workers.resources import read_resources
from workers.sensors import Thermometer
from workers.sockets import Traffic
from workers.uplink import Uplink

logger = logging.getLogger("quantarion.agent")

HOST_TEST_SECONDS = 30.0
REUNION_SECONDS = 15.0
"""How long a restarted agent looks for the ranks of the one before it; less than `limits.agent_grace`."""


@dataclass
class LocalWorker:
    """A worker process of this host, as its agent sees it."""

    up: pb.WorkerUp
    pidfd: int
    directives: Outgoing
    page: Page
    promised: Generation = field(default=Generation(0, 0))
    killers: dict[Generation, asyncio.TimerHandle] = field(default_factory=dict)


class HostAgent:
    """The agent's work, on one event loop."""

    def __init__(self, *, host: str, node_id: str, address: str, job_folder: Path, runtime: Path, parent: int = 0) -> None:
        self.host, self.node_id, self.address = host, node_id, address
        self.job_folder, self.runtime = job_folder, runtime
        self._memory_folder = memory_folder(runtime)
        self.parent = parent  # pid of the raylet that has to outlive this agent; 0: nobody
        self.workers: dict[str, LocalWorker] = {}
        self.exits: list[pb.WorkerExit] = []
        self._server: socket.socket | None = None
        self._stopped = asyncio.Event()
        self._uplink = Uplink(
            host, job_folder, hello=self._hello, beat=self.beat, begins=self._begin, obey=self._obey, ends=self._end
        )
        self._tell = self._uplink.tell
        self._leading = Leading(host, address, job_folder, self._tell, lambda: self._uplink.is_open)
        self._appointed: asyncio.Task[None] | None = None
        self._probing = Probing(address, self._tell)
        self._testing: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._thermometer = Thermometer()
        self._software: dict[str, str] = {}
        traffic = Traffic(lambda: [local.up.pid for local in list(self.workers.values())])
        self._sensors = HostSensors(lambda: read_resources((job_folder, runtime)), traffic.look)
        self._notice: tuple[str, float] | None = None  # that the host will be taken away: why, and since when

    async def run(self) -> None:
        """Serve until `stop`."""
        self._software = await asyncio.to_thread(software, self.job_folder)  # which may be on slow storage
        before = self._left_behind()  # who says hello from here on is noted in their place
        self._listen()
        self._sensors.start()
        try:
            await self._reunite(before)
            remove_abandoned(self._memory_folder)  # by ranks that ended while there was no agent
            await self._uplink.run(self._stopped)
        finally:
            await self._leading.close()
            self._close()

    def stop(self) -> None:
        self._stopped.set()

    def drain(self, reason: str) -> None:
        """The host is about to be taken away (GM-38); a coordinator that comes later is told, too."""
        if self._notice is None:
            logger.warning("this host will be taken away: %s", reason)
            self._notice = reason, time.monotonic()
            self._tell_notice()

    def _tell_notice(self) -> None:
        if self._notice is not None:
            reason, since = self._notice
            self._tell(pb.AgentMessage(draining=pb.Draining(reason=reason, age=time.monotonic() - since)))

    # ------------------------------------------------------------------ ranks of this host

    def _listen(self) -> None:
        self.runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = socket_path(self.runtime, self.host)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # of the agent that was here before
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server.bind(str(path))
        server.listen(128)
        server.setblocking(False)
        self._server = server
        asyncio.get_running_loop().add_reader(server, self._accept)

    def _accept(self) -> None:
        assert self._server is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                link, _ = self._server.accept()
                link.setblocking(False)
                asyncio.get_running_loop().add_reader(link, self._receive, link, Outgoing(link))

    def _receive(self, link: socket.socket, directives: Outgoing) -> None:
        while True:
            try:
                packet = packets.receive(link)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                asyncio.get_running_loop().remove_reader(link)
                directives.close()
                link.close()
                return
            message = pb.AgentMessage.FromString(packet)
            if message.HasField("worker_up"):
                self._adopt(message.worker_up, directives)
            else:
                self._heard(message.report)
                self._tell(message)

    def _adopt(self, up: pb.WorkerUp, directives: Outgoing) -> None:
        """A worker says hello: a new process, or one that outlived the agent before us."""
        known = self.workers.get(up.worker)
        if known is not None:
            known.directives, known.up = directives, up
        else:
            try:
                pidfd = os.pidfd_open(up.pid)
                page = Page(page_path(self.runtime, up.worker))
            except OSError as error:
                logger.warning("worker %s left before it could be watched: %s", up.worker, error)
                return
            self.workers[up.worker] = LocalWorker(up, pidfd, directives, page)
            asyncio.get_running_loop().add_reader(pidfd, self._exited, up.worker)
            self._note_roster()
        self._tell(pb.AgentMessage(worker_up=up))

    def _exited(self, worker: str) -> None:
        local = self.workers.pop(worker)
        self._note_roster()
        asyncio.get_running_loop().remove_reader(local.pidfd)
        status = exit_status(local.pidfd, local.up.pid)
        os.close(local.pidfd)
        for timer in local.killers.values():
            timer.cancel()
        message = pb.WorkerExit(
            worker=worker, pid=local.up.pid, status=status or 0, unknown=status is None, time=time.time()
        )
        if not self._uplink.is_open:
            self.exits.append(message)
        if status and local.page.owed:
            lost = json.dumps({"worker": worker, "residual_lost_norm": local.page.owed})
            report = pb.RankReport(worker=worker, note=pb.Note(kind="residual_lost", json=lost))
            self._tell(pb.AgentMessage(report=report))
        self._tell(pb.AgentMessage(worker_exit=message))
        local.page.close()
        for path in (local.page.path, stacks.stack_path(self.runtime, worker)):
            path.unlink(missing_ok=True)
        self._remove_memory(worker)

    def _remove_memory(self, worker: str) -> None:
        memory_path(self._memory_folder, worker).unlink(missing_ok=True)

    def _heard(self, report: pb.RankReport) -> None:
        """Keep what the next HostHello must say about this rank."""
        local = self.workers.get(report.worker)
        if local is None:
            return
        if report.HasField("prepared"):
            prepared = report.prepared
            local.promised = wire.generation_from_wire(prepared.generation)
            for generation in [g for g in local.killers if g <= local.promised]:
                local.killers.pop(generation).cancel()
            local.up.state.CopyFrom(prepared.state)
            local.up.previous.CopyFrom(prepared.previous)
            local.up.promised.CopyFrom(prepared.generation)
            local.up.generation.CopyFrom(prepared.configured)
            local.up.healed = prepared.healed
            local.up.phase = "prepared"
        elif report.HasField("running"):
            local.up.generation.CopyFrom(report.running.generation)
            local.up.state.CopyFrom(report.running.state)
            local.up.healed = True
            local.up.rank = report.running.rank
            local.up.phase = "training"
        elif report.HasField("finished"):
            local.up.phase = "finished"
        elif report.HasField("ready"):
            local.up.state.CopyFrom(report.ready.state)

    def _direct(self, directive: pb.Directive) -> None:
        packet = directive.SerializeToString()
        for local in [self.workers[worker] for worker in directive.workers if worker in self.workers]:
            local.directives.put(packet)
            local.page.ring()
            if directive.HasField("prepare"):
                self._expect_answer(local, directive.prepare)

    def _expect_answer(self, local: LocalWorker, prepare: pb.Prepare) -> None:
        """In time, or the rank is killed."""
        generation = wire.generation_from_wire(prepare.generation)
        if generation > local.promised and generation not in local.killers and prepare.timeout > 0:
            loop = asyncio.get_running_loop()
            busy_until = loop.time() + prepare.busy_timeout
            local.killers[generation] = loop.call_later(
                prepare.timeout, self._run_out, local.up.worker, generation, busy_until
            )

    def _run_out(self, worker: str, generation: Generation, busy_until: float) -> None:
        """The time for a PREPARE is over: kill, or look again where the rank is in code of the task."""
        local = self.workers.get(worker)
        if local is None:
            return
        loop = asyncio.get_running_loop()
        if local.page.busy and loop.time() < busy_until:
            local.killers[generation] = loop.call_later(0.5, self._run_out, worker, generation, busy_until)
            return
        self._kill(worker, f"did not answer PREPARE {generation}")

    def _kill(self, worker: str, reason: str) -> None:
        """An agent never answers for a rank: one that cannot answer is killed first (EP-8)."""
        local = self.workers.get(worker)
        if local is None:
            return
        logger.warning("killing %s (pid %d): %s", worker, local.up.pid, reason)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(local.pidfd, signal.SIGKILL)

    # ------------------------------------------------------------------ the agent before us

    @property
    def _roster(self) -> Path:
        return self.runtime / f"{self.host}.ranks"

    def _note_roster(self) -> None:
        """Who is to be looked for by the agent after us."""
        partial = self._roster.with_suffix(".partial")
        partial.write_text(json.dumps({worker: local.up.pid for worker, local in self.workers.items()}))
        partial.replace(self._roster)

    def _left_behind(self) -> dict[str, int]:
        """Ranks of the agent before us, with their pids."""
        try:
            return {str(worker): int(pid) for worker, pid in json.loads(self._roster.read_text()).items()}
        except FileNotFoundError:
            return {}

    async def _reunite(self, before: Mapping[str, int]) -> None:
        """Wait until each of these ranks has said hello or is dead.

        The coordinator takes a process that HostHello does not name for dead (EP-14), and a rank says hello only at its
        next poll point.
        """
        deadline = time.monotonic() + REUNION_SECONDS
        while time.monotonic() < deadline and not self._stopped.is_set():
            if not any(_runs(worker, pid) for worker, pid in before.items() if worker not in self.workers):
                return
            await asyncio.sleep(0.01)

    # ------------------------------------------------------------------ the coordinator

    def _begin(self) -> None:
        """HostHello is on its way, and what must not be lost follows."""
        self._leading.let_go()
        self._tell_notice()
        self.exits.clear()

    def _end(self) -> None:
        """There is no way to the coordinator any more."""
        self._probing.close()
        self._leading.let_go()

    def _obey(self, message: pb.CoordinatorMessage) -> None:
        if self._leading.hand_on(message):
            return
        match message.WhichOneof("body"):
            case "directive":
                self._direct(message.directive)
            case "kill":
                self._kill(message.kill.worker, message.kill.reason)
            case "probe_open":
                self._probing.open(message.probe_open)
            case "probe_link":
                self._probing.begin(message.probe_link)
            case "probe_close":
                self._probing.close()
            case "host_test":
                self._testing = asyncio.get_running_loop().create_task(self._test_host())
            case "lead":
                self._appointed = asyncio.get_running_loop().create_task(self._leading.lead(message.lead))
            case "follow":
                self._uplink.follow(message.follow)
            case "ask_stacks":
                self._looking = asyncio.get_running_loop().create_task(self._show_stacks(message.ask_stacks.workers))

    async def _test_host(self) -> None:
        """In a process of its own, which may crash or hang. What keeps it from ending tells nothing of the host."""
        begun, result = time.monotonic(), pb.HostTested()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "workers.host_test", str(self.runtime), stdout=subprocess.PIPE, env=environment
            )
            try:
                output, _ = await asyncio.wait_for(process.communicate(), HOST_TEST_SECONDS)
                result.failures.extend(json.loads(output))
            except TimeoutError:
                process.kill()
                result.error = f"the host test did not end within {HOST_TEST_SECONDS:g} s"
        except (OSError, ValueError) as error:
            result.error = f"the host test could not be done: {error}"
        result.seconds = time.monotonic() - begun
        self._tell(pb.AgentMessage(host_tested=result))

    async def _show_stacks(self, workers: Iterable[str]) -> None:
        """Where these ranks stand (GM-19)."""
        known = {worker: local for worker in workers if (local := self.workers.get(worker)) is not None}
        asked = {
            worker: stacks.Asked(local.up.pid, local.page.thread, stacks.stack_path(self.runtime, worker))
            for worker, local in known.items()
        }
        found = await stacks.look(asked)
        shown = [pb.Stack(worker=worker, frames=frames) for worker, frames in found.items()]
        self._tell(pb.AgentMessage(stacks=pb.Stacks(stacks=shown)))

    def _hello(self) -> pb.HostHello:
        return pb.HostHello(
            host=self.host,
            node_id=self.node_id,
            address=self.address,
            agent_pid=os.getpid(),
            workers=[local.up for local in self.workers.values()],
            exits=self.exits,
            software=self._software,
        )

    def _abandon_host(self) -> None:
        """Ray's process on this host is dead: nobody could ever end what runs here. The host counts as lost."""
        logger.error("the raylet of this host died: ending its %d workers and this agent", len(self.workers))
        for worker in list(self.workers):
            self._kill(worker, "the raylet of this host died")
            self._remove_memory(worker)
        logging.shutdown()
        os._exit(1)

    def beat(self) -> pb.Beat:
        """Progress of every rank of this host, read from its page."""
        if self.parent and os.getppid() != self.parent:
            self._abandon_host()
        beat = pb.Beat(time=time.time(), temperature=self._thermometer.read())
        for local in self.workers.values():
            progress, signals = local.page.progress(), local.page.signals
            beat.progress.add(
                worker=local.up.worker,
                step=progress.step,
                generation=wire.generation_to_wire(progress.generation),
                micro_batch=progress.micro_batch,
                exchanges=progress.exchanges,
                state=progress.state.value,
                step_seconds=progress.longest_step,
                busy=local.page.busy,
                polls=progress.polls,
                collectives=progress.collectives,
                **signals._asdict(),
            )
        self._sensors.tell(beat)
        return beat

    def _close(self) -> None:
        self._sensors.stop()
        if self._server is not None:
            self._server.close()
        socket_path(self.runtime, self.host).unlink(missing_ok=True)
        if self._stopped.is_set():  # else an agent follows, and our ranks live on
            self._roster.unlink(missing_ok=True)


def _runs(worker: str, pid: int) -> bool:
    """True while the process has the worker's page mapped: its pid alone may belong to another by now."""
    try:
        return f"/{worker}.page" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False
