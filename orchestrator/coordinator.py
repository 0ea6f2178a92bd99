"""The coordinator: the membership machine with a clock, a gRPC server, a journal and Ray round it (EP-8 to EP-15).

It sees beats, reports and exits; it never sees a tensor, and training goes on while it is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2 as op
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator import membership as ms
from orchestrator import placement
from orchestrator.directives import directive
from orchestrator.hosts import RayHosts
from orchestrator.jobspec import JobSpec
from orchestrator.journal import Journal
from orchestrator.probe import BUDGET_SECONDS, Findings, LinkProbe
from orchestrator.topology import complaints, told_group
from workers import wire
from workers.protocol import Answer, RankState

logger = logging.getLogger("quantarion.coordinator")

TICK_SECONDS = 0.1
LOOK_AT_JOURNAL_TICKS = 10
LOOK_FOR_HOSTS_SECONDS = 0.5
RECOVERY_SETTLE_SECONDS = 6.0
DRIVER_LEASE_SECONDS = 60.0


@dataclass
class Seen:
    """The last beat of one worker."""

    step: int = 0
    state: str = "starting"
    moved: tuple[int, int] = (0, 0)


@dataclass
class HostStream:
    """An attached agent: what is to be sent to it."""

    outbox: asyncio.Queue[pb.CoordinatorMessage | None] = field(default_factory=asyncio.Queue)
    agent_pid: int = 0


class Coordinator:
    """One incarnation, on one event loop."""

    def __init__(self, spec: JobSpec, folder: Path, hosts: RayHosts, store_address: str, address: str) -> None:
        self.spec, self.folder, self.ray_hosts, self.store_address = spec, folder, hosts, store_address
        self._address = address
        self._epoch = time.time() - time.monotonic()
        self.journal = Journal(folder, json.loads((folder / "job.json").read_text())["started"])
        self.machine = ms.Membership(_rules(spec), self.journal.incarnation)
        self.streams: dict[str, HostStream] = {}
        self.seen: dict[str, Seen] = {}
        self.total_steps = 0
        self.phase = "waiting"
        self.message = ""
        self.exit_code = 0
        self.done = asyncio.Event()
        self._ray = ThreadPoolExecutor(1, "ray")
        self._spawner = ThreadPoolExecutor(1, "spawn")
        self._driver_seen = time.monotonic()
        self._agents_lost: dict[str, float] = {}
        self._waiting_since = self.now()
        self._offered = 0  # hosts that could be taken, seen last
        self._slots: list[placement.HostSlot] = []  # taken by this incarnation
        self._complained = bool(self.journal.remembered.hosts)  # a predecessor took them
        self._probe: LinkProbe | None = None
        self._probing: asyncio.Task[None] | None = None
        self._events = os.open(folder / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def now(self) -> float:
        """Unix seconds that never jump."""
        return self._epoch + time.monotonic()

    # ------------------------------------------------------------------ life

    async def run(self) -> None:
        """Serve until the job has ended and nobody needs the answer any more."""
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
        rpc.add_ControlServicer_to_server(ControlService(self), server)
        rpc.add_OperatorServicer_to_server(OperatorService(self), server)
        port = server.add_insecure_port(f"{self._address}:0")
        remembered = self.journal.remembered
        took_over = self.journal.begin()
        if took_over:
            await asyncio.get_running_loop().run_in_executor(self._ray, self.ray_hosts.adopt, remembered.hosts)
            addresses = {host: str(entry["address"]) for host, entry in remembered.hosts.items()}
            self.machine.recover(
                addresses,
                remembered.generation,
                remembered.formed,
                remembered.members,
                self.now(),
                RECOVERY_SETTLE_SECONDS,
                {host: str(entry["group"]) for host, entry in remembered.hosts.items()},
            )
        await server.start()
        self.journal.announce(f"{self._address}:{port}", time.time())
        self.event("coordinator_started", {"incarnation": self.journal.incarnation, "recovered": took_over})
        looking = asyncio.create_task(self._look_for_hosts())
        ticking = asyncio.create_task(self._tick())
        await self.done.wait()
        looking.cancel()
        await self._wind_down()
        ticking.cancel()
        await server.stop(1.0)

    async def _tick(self) -> None:
        for tick in itertools.count():
            await asyncio.sleep(TICK_SECONDS)
            self.do(self.machine.tick(self.now()))
            if self.journal.remembered.stopping and self.machine.recovering_until is None:
                self.do(self.machine.stop("asked for before the coordinator was restarted", self.now()))
            if tick % LOOK_AT_JOURNAL_TICKS == 0 and self.journal.deposed:
                logger.error("a later incarnation has taken over")
                os._exit(0)
            if time.monotonic() - self._driver_seen > DRIVER_LEASE_SECONDS:
                self._driver_seen = float("inf")
                self.do(self.machine.stop("the process that started the job is gone", self.now()))

    async def _look_for_hosts(self) -> None:
        """Take hosts that appear in the cluster, up to hosts.max; say what is missing; give up after hosts.wait."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                if len(self.ray_hosts.placed) < self.spec.hosts.max and not self.machine.stopping:
                    await loop.run_in_executor(self._ray, self._place)
                self._say_what_is_missing()
            except Exception:
                logger.exception("looking for hosts failed; trying again")
            await asyncio.sleep(LOOK_FOR_HOSTS_SECONDS)

    def _place(self) -> None:
        """In the Ray thread."""
        loop = self._loop
        offers = self.ray_hosts.offers()
        self._offered = len(offers)
        room = self.spec.hosts.max - len(self.ray_hosts.placed)
        if not self.machine.formed and len(offers) + len(self.ray_hosts.placed) < self.spec.hosts.min:
            return  # a gang is held whole or not at all (EP-13)
        for slot in offers[:room]:
            placed = self.ray_hosts.start(slot)
            if placed is not None:
                group = told_group(slot, self.spec.topology) or self.journal.remembered.probed.get(slot.address, "")
                self.journal.write({"entry": "host", **asdict(placed), "group": group})
                self._slots.append(slot)
                loop.call_soon_threadsafe(self._expect, placed.host, placed.address, group)

    def _expect(self, host: str, address: str, group: str) -> None:
        self.event("host_up", {"host": host, "address": address, "group": group})
        self.do(self.machine.expect_host(host, address, self.now(), group))

    def _say_what_is_missing(self) -> None:
        if self.machine.phase is ms.JobPhase.WAITING and not self.machine.formed:
            found = len(self.ray_hosts.placed)
            if found >= self.spec.hosts.min:
                self.message = f"starting {found} host{'s' if found != 1 else ''}"
                return
            message = placement.missing(self.spec.hosts.min, found + self._offered, self.spec.ranks_per_host)
            if message != self.message:
                self.message = message
                self.event("waiting", {"message": message})
            if self.now() - self._waiting_since > self.spec.hosts.wait:
                self.do([ms.EndJob(7, f"{message}; gave up after {self.spec.hosts.wait:g} s (hosts.wait)")])

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self.__loop

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop that the Ray threads post to."""
        self.__loop = loop
        self.ray_hosts.on_dead = self._stillborn

    def _stillborn(self, host: str) -> None:
        """In a thread of `RayHosts`."""
        self._loop.call_soon_threadsafe(lambda: self.do(self.machine.stillborn(host, self.now())))

    async def _wind_down(self) -> None:
        """Everybody has been told to leave: wait for them a little, remove the hosts, stay for the last question."""
        for _ in range(100):
            if not self.machine.workers:
                break
            await asyncio.sleep(0.05)
        self._spawner.shutdown(wait=False, cancel_futures=True)
        await asyncio.get_running_loop().run_in_executor(self._ray, self.ray_hosts.drop_all)
        self.journal.write({"entry": "ended", "exit_code": self.exit_code})
        self.phase = "finished" if self.exit_code in (0, 130) else "failed"
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline and self._driver_seen != float("inf"):
            await asyncio.sleep(0.2)

    # ------------------------------------------------------------------ actions

    def do(self, actions: list[ms.Action]) -> None:
        """Carry out what the machine decided, in order; what must be on record first comes first."""
        for action in actions:
            match action:
                case ms.SendPrepare() | ms.SendConfigure() | ms.SendJoin() | ms.SendExit():
                    message = directive(action, self.store_address)
                    self._post(action.worker, pb.CoordinatorMessage(directive=message))
                case ms.KillWorker(worker, reason):
                    self._post(worker, pb.CoordinatorMessage(kill=pb.Kill(worker=worker, reason=reason)))
                case ms.SpawnWorker(host, delay):
                    self._loop.call_later(delay, self._spawn, host)
                case ms.DropHost(host):
                    self.journal.write({"entry": "host_dropped", "host": host})
                    self.streams.pop(host, None)
                    self._spawner.submit(self.ray_hosts.drop, host)
                case ms.MeasureLinks(addresses):
                    self._probing = asyncio.create_task(self._measure_links(addresses))
                case ms.Record(kind, fields):
                    self._record(kind, fields)
                case ms.EndJob(code, message):
                    self._end(code, message)

    def _spawn(self, host: str) -> None:
        if not self.done.is_set():
            self._spawner.submit(_logged, self.ray_hosts.spawn_worker, host)

    def _post(self, worker: str, message: pb.CoordinatorMessage) -> None:
        view = self.machine.workers.get(worker)
        if view is not None:
            self._post_to_host(view.host, message)

    def _post_to_host(self, host: str, message: pb.CoordinatorMessage) -> None:
        stream = self.streams.get(host)
        if stream is not None:
            stream.outbox.put_nowait(message)  # an agent that is away is told again when it attaches

    def _record(self, kind: str, fields: dict[str, object]) -> None:
        if kind == "generation":
            self._complain()
            self.journal.write({"entry": "generation", **fields})
            self.journal.fence(self.machine.generation)
            self.message = ""
        elif kind == "stopping":
            self.journal.write({"entry": "stopping"})
        elif kind == "agent_lost":
            self._agents_lost[str(fields["host"])] = self.now()
        self.event(kind, fields)

    async def _measure_links(self, addresses: dict[str, str]) -> None:
        """Whatever comes of it, the job goes on (CC-9)."""
        findings, found = Findings(addresses), dict[str, str]()
        told = {host.host: host.group for host in self.machine.hosts.values() if host.group}
        try:
            self._probe = LinkProbe(addresses, self._post_to_host)
            findings = self._probe.findings
            await asyncio.wait_for(self._probe.run(), BUDGET_SECONDS + 1.0)
            found = findings.groups(told)
        except Exception as error:
            logger.exception("the probe failed")
            findings.failures.append(f"the probe failed: {error or type(error).__name__}")
        self._probe = None
        by_address = {addresses[host]: group for host, group in found.items()}
        self.journal.write({"entry": "probed", "groups": found, "by_address": by_address})
        self.journal.remembered.probed = by_address
        self.event("topology", findings.record(told, found))
        self.do(self.machine.probed(found, self.now()))

    def _complain(self) -> None:
        """Once, as the job starts: about hosts that it names and has not."""
        if self._complained:
            return
        self._complained = True
        for message in complaints(self._slots, self.spec.topology):
            self.event("topology_warning", {"message": message})

    def event(self, kind: str, fields: dict[str, object]) -> None:
        """A line of events.jsonl and of the log."""
        try:
            os.write(self._events, (json.dumps({"t": self.now(), "kind": kind, **fields}) + "\n").encode())
        except OSError as error:  # a full disk must not stop what follows
            logger.error("events.jsonl cannot be written: %s", error)
        logger.info("%s %s", kind, fields)

    def _end(self, exit_code: int, message: str) -> None:
        if self.done.is_set():
            return
        self.exit_code, self.message = exit_code, message
        self.phase = "stopping"
        self.done.set()

    # ------------------------------------------------------------------ what agents say

    def attach(self, hello: pb.HostHello) -> HostStream | None:
        """An agent's first message; None where its host is not part of the job."""
        if hello.host not in self.machine.hosts:
            return None
        stream = self.streams[hello.host] = HostStream(agent_pid=hello.agent_pid)
        stream.outbox.put_nowait(pb.CoordinatorMessage(welcome=pb.Welcome(incarnation=self.journal.incarnation)))
        lost_at = self._agents_lost.pop(hello.host, None)
        if lost_at is not None:
            self.event("agent_back", {"host": hello.host, "seconds": self.now() - lost_at})
        described = [_describe(up, hello.host) for up in hello.workers]
        for up in hello.workers:
            self.ray_hosts.met(hello.host, up.pid)
        for left in hello.exits:
            self.do(self.machine.worker_exit(left.worker, _status(left), self.now()))
        self.do(self.machine.attach(hello.host, hello.address, described, self.now()))
        return stream

    def detach(self, host: str, stream: HostStream) -> None:
        """The stream broke."""
        if self.streams.get(host) is stream:
            del self.streams[host]
            if self._probe is not None:
                self._probe.lost(host)
            self.do(self.machine.detach(host, self.now()))

    def hear(self, host: str, message: pb.AgentMessage) -> None:
        """Anything but a hello."""
        match message.WhichOneof("body"):
            case "beat":
                self._beat(message.beat)
            case "worker_up":
                self.ray_hosts.met(host, message.worker_up.pid)
                self.do(self.machine.worker_up(*_describe(message.worker_up, host), self.now()))
            case "worker_exit":
                left = message.worker_exit
                self.seen.pop(left.worker, None)
                self.do(self.machine.worker_exit(left.worker, _status(left), self.now()))
            case "report":
                self._report(message.report)
            case "probe_port" if self._probe is not None:
                self._probe.port(host, message.probe_port)
            case "measured_link" if self._probe is not None:
                self._probe.measured(host, message.measured_link)

    def _beat(self, beat: pb.Beat) -> None:
        now = self.now()
        for progress in beat.progress:
            seen = self.seen.setdefault(progress.worker, Seen())
            moved = (progress.micro_batch, progress.exchanges)
            if moved != seen.moved:
                self.machine.activity(progress.worker, now)
            seen.step, seen.state, seen.moved = progress.step, progress.state, moved
            self.machine.busy(progress.worker, progress.busy)
            self.machine.progress(progress.step, progress.step_seconds, now)

    def _report(self, report: pb.RankReport) -> None:
        machine, worker, now = self.machine, report.worker, self.now()
        match report.WhichOneof("body"):
            case "prepared":
                self.do(machine.prepared(worker, wire.answer_from_wire(report.prepared), now))
            case "ready":
                self.do(machine.ready(worker, wire.state_from_wire(report.ready.state), now))
            case "running":
                running = report.running
                generation = wire.generation_from_wire(running.generation)
                self.do(machine.running(worker, generation, running.how, running.seconds, now))
            case "exchange_failed":
                failed = report.exchange_failed
                generation = wire.generation_from_wire(failed.generation)
                self.do(machine.exchange_failed(worker, generation, failed.error, now))
            case "published":
                published = report.published
                fields = {"path": published.path, "tier": published.tier, "step": published.step}
                sizes = {"bytes": published.bytes, "raw_bytes": published.raw_bytes, "seconds": published.seconds}
                self.event("checkpoint", {**fields, **sizes})
            case "finished":
                machine.progress(wire.state_from_wire(report.finished.state).step, 0.0, now)  # no beat says it any more
                self.do(machine.finished(worker, now))
            case "failed":
                self._failed(report)
            case "note":
                self._note(worker, report.note, now)

    def _failed(self, report: pb.RankReport) -> None:
        failed = report.failed
        self.do(self.machine.failed(report.worker, failed.exit_code, failed.error, failed.step, self.now()))
        if failed.traceback and self.machine.phase is ms.JobPhase.ENDED:
            (self.folder / "traceback.txt").write_text(failed.traceback)

    def _note(self, worker: str, note: pb.Note, now: float) -> None:
        if note.kind == "apply_failed":
            self.do(self.machine.apply_failed(worker, note.json, now))
        elif note.kind == "join_failed":
            self.do(self.machine.join_failed(worker, now))
        else:
            fields = json.loads(note.json)
            if note.kind == "plan":
                self.total_steps = int(fields["total_steps"])
            self.event(note.kind, fields)

    # ------------------------------------------------------------------ what operators ask

    def status(self, driver: bool) -> op.StatusReply:
        """The job as it is now."""
        if driver and self._driver_seen != float("inf"):
            self._driver_seen = time.monotonic()
        machine = self.machine
        phase = self.phase if self.phase in ("finished", "failed", "stopping") else _phase(machine)
        reply = op.StatusReply(
            job=self.spec.name,
            phase=phase,
            step=machine.pace.step,
            total_steps=self.total_steps,
            generation=wire.generation_to_wire(machine.generation),
            message=self.message or _held(machine, self.spec),
            exit_code=self.exit_code,
            coordinator_pid=os.getpid(),
            discarded=machine.discarded,
        )
        for view in sorted(machine.workers.values(), key=lambda w: (w.rank is None, w.rank or 0)):
            seen = self.seen.get(view.worker, Seen())
            state = seen.state if view.role is ms.Role.MEMBER else view.role.value
            rank = -1 if view.rank is None or view.role is not ms.Role.MEMBER else view.rank
            reply.ranks.add(rank=rank, host=view.host, pid=view.pid, state=state, step=seen.step, worker=view.worker)
        for host in machine.hosts.values():
            stream = self.streams.get(host.host)
            state = "healthy" if host.attached else "detached" if host.host in self._agents_lost else "starting"
            reply.hosts.add(
                host=host.host,
                address=host.address,
                state=state,
                agent_pid=stream.agent_pid if stream else 0,
                group=host.group,
            )
        return reply

    def stop(self, reason: str, now: bool) -> None:
        """Checkpoint and end, or end at once."""
        if now:
            self.do([ms.SendExit(worker, reason) for worker in self.machine.workers])
            self.event("stopping", {"reason": reason})
            self._end(130, "stopped at once, without a checkpoint")
        else:
            self.do(self.machine.stop(reason, self.now()))


class ControlService(rpc.ControlServicer):
    """Streams of agents."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.CoordinatorMessage]:
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an agent speaks HostHello first")
            return
        host = first.hello.host
        stream = self._coordinator.attach(first.hello)
        if stream is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{host} is not a host of this job")
            return
        reader = asyncio.create_task(self._read(host, stream, request_iterator))
        try:
            while (message := await stream.outbox.get()) is not None:
                yield message
        finally:
            reader.cancel()
            self._coordinator.detach(host, stream)

    async def _read(self, host: str, stream: HostStream, messages: AsyncIterator[pb.AgentMessage]) -> None:
        try:
            async for message in messages:
                self._coordinator.hear(host, message)
        except Exception:
            logger.exception("the stream of %s broke", host)
        finally:
            stream.outbox.put_nowait(None)


class OperatorService(rpc.OperatorServicer):
    """Questions and commands of people."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def Status(self, request: op.StatusRequest, context: grpc.aio.ServicerContext[Any, Any]) -> op.StatusReply:
        del context
        return self._coordinator.status(request.driver)

    async def Stop(self, request: op.StopRequest, context: grpc.aio.ServicerContext[Any, Any]) -> op.StopReply:
        del context
        self._coordinator.stop(request.reason or "an operator asked for it", request.now)
        return op.StopReply(accepted=True, message="stopping")


def _rules(spec: JobSpec) -> ms.Rules:
    return ms.Rules(
        hosts_min=spec.hosts.min,
        hosts_max=spec.hosts.max,
        ranks_per_host=spec.ranks_per_host,
        spares_per_host=spec.spares_per_host,
        agent_grace=spec.limits.agent_grace,
        exits_allowed=spec.limits.exits_allowed,
        exits_window=spec.limits.exits_window,
        replace_wait=spec.hosts.replace_wait,
        probe=spec.topology.probe,
    )


def _describe(up: pb.WorkerUp, host: str) -> tuple[ms.WorkerView, RankState, Answer]:
    rank = up.rank if up.rank >= 0 else None
    view = ms.WorkerView(
        up.worker, host, up.pid, up.peer_address, up.shared_memory, rank=rank, state=wire.state_from_wire(up.state)
    )
    answer = Answer(
        wire.generation_from_wire(up.promised),
        wire.state_from_wire(up.state),
        wire.state_from_wire(up.previous),
        up.healed,
        wire.generation_from_wire(up.generation),
    )
    return view, RankState(up.phase), answer


def _status(left: pb.WorkerExit) -> int:
    return -9 if left.unknown else left.status


def _phase(machine: ms.Membership) -> str:
    if machine.stopping:
        return "stopping"
    match machine.phase:
        case ms.JobPhase.WAITING:
            return "starting" if machine.hosts else "waiting"
        case ms.JobPhase.TRAINING:
            return "training"
        case ms.JobPhase.FORMING if machine.below_min_since is not None:
            return "waiting"
        case _:
            return "starting" if not machine.pace.step else "training"


def _held(machine: ms.Membership, spec: JobSpec) -> str:
    if machine.below_min_since is None:
        return ""
    return f"training is held: fewer than hosts.min={spec.hosts.min} hosts are ready"


def _logged(function: Callable[..., None], *arguments: Any) -> None:
    try:
        function(*arguments)
    except Exception:
        logger.exception("%s%r failed", getattr(function, "__name__", function), arguments)


class CoordinatorActor:
    """The coordinator as a detached, restartable Ray actor."""

    def __init__(self, *, spec: dict[str, Any], folder: str, namespace: str) -> None:
        from workers.actors import settle

        path = Path(folder)
        settle(path / "logs" / "coordinator.log")
        self._thread = threading.Thread(
            target=self._body, args=(JobSpec.model_validate_json(json.dumps(spec)), path, namespace), daemon=True
        )
        self._thread.start()

    def ping(self) -> int:
        """Its process id."""
        return os.getpid()

    def _body(self, spec: JobSpec, folder: Path, namespace: str) -> None:
        try:
            asyncio.run(self._serve(spec, folder, namespace))
        except BaseException:
            logger.exception("the coordinator failed")
            logging.shutdown()
            os._exit(1)

    async def _serve(self, spec: JobSpec, folder: Path, namespace: str) -> None:
        import ray
        from torch.distributed import TCPStore

        address = ray.util.get_node_ip_address()
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        hosts = RayHosts(job=spec.name, job_folder=folder, ranks_per_host=spec.ranks_per_host, namespace=namespace)
        coordinator = Coordinator(spec, folder, hosts, f"{address}:{store.port}", address)
        coordinator.bind_loop(asyncio.get_running_loop())
        await coordinator.run()
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor("coordinator", namespace), no_restart=True)
