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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grpc
from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator import membership as ms
from orchestrator.agreement import Agreement
from orchestrator.commands import Commands
from orchestrator.directives import Directives, Sending, runs
from orchestrator.drains import Drains
from orchestrator.entrance import Entrance
from orchestrator.errors import ExitCode, UserError
from orchestrator.gauging import Gauges
from orchestrator.governing import Governing, Removal, Way
from orchestrator.governor.codes import Code
from orchestrator.governor.config import Pools
from orchestrator.governor.log import Governor, Outset
from orchestrator.host_tests import HostTests
from orchestrator.hosts import RayHosts
from orchestrator.jobspec import JobSpec
from orchestrator.journal import Journal
from orchestrator.leaders import Leaders
from orchestrator.link_measurement import LinkMeasurement
from orchestrator.messages import Known, check
from orchestrator.observing import Observing
from orchestrator.recruitment import Recruitment
from orchestrator.relief import Relief
from orchestrator.reports import Reports
from orchestrator.sameness import Sameness
from orchestrator.saving import Saving
from orchestrator.services import SERVER_OPTIONS, ControlService, OperatorService
from orchestrator.streams import HostStream, Streams
from orchestrator.violations import Violations
from workers import wire
from workers.installed import software
from workers.protocol import Answer, RankState

logger = logging.getLogger("quantarion.coordinator")

Result = TypeVar("Result")

TICK_SECONDS = 0.1
LOOK_AT_JOURNAL_TICKS = 10
RECOVERY_SETTLE_SECONDS = 6.0
DRIVER_LEASE_SECONDS = 60.0


class Coordinator:
    """One incarnation, on one event loop."""

    def __init__(self, spec: JobSpec, folder: Path, hosts: RayHosts, store_address: str, address: str) -> None:
        self.spec, self.folder, self.ray_hosts = spec, folder, hosts
        self._directives = Directives(store_address)
        self.journal = Journal(folder, json.loads((folder / "job.json").read_text())["started"])
        outset = Outset(spec.governor, spec.hosts.max, spec.hosts.min, spec.seed, self.journal.launch)
        governor = Governor.open_or_anew(folder / "governor.jsonl", outset)
        self._epoch = max(time.time(), governor.state.time) - time.monotonic()  # a clock that was set back meanwhile
        self.entrance = Entrance(spec, folder, address, self.event, lambda: self.ray_hosts.placed)
        self.machine = ms.Membership(_rules(spec), self.journal.incarnation)
        self.streams = Streams()
        self.phase = "waiting"
        self.message = ""
        self.exit_code = 0
        self.done = asyncio.Event()
        self._ray = ThreadPoolExecutor(1, "ray")
        self._spawner = ThreadPoolExecutor(1, "spawn")
        self._driver_seen = time.monotonic()
        self._agents_lost: dict[str, float] = {}
        self._events = os.open(folder / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.governing = Governing(governor, self.event)
        self.observing, self._violations = Observing(), Violations()
        self.relief = Relief(spec.governor, self.governing, self.machine, self._post)
        self.agreement, self.reports = Agreement(self), Reports(self)
        self._software = self.journal.remembered.software or software(folder)
        self._sameness = Sameness(self._software, lambda fields: self.event("join_refused", fields))
        self._observed_at = self.now()
        self.machine.roster.most_hosts = self.journal.remembered.hosts_max or spec.hosts.max
        self.drains, self.saving, self.host_tests = Drains(self), Saving(self), HostTests(self)
        self.recruitment, self._links = Recruitment(self), LinkMeasurement(self)
        self.leaders = Leaders(self)
        self.gauges = Gauges(self.event)

    def now(self) -> float:
        """Unix seconds that never jump, nor fall behind what the governor was told before."""
        return self._epoch + time.monotonic()

    # ------------------------------------------------------------------ life

    async def run(self) -> None:
        """Serve until the job has ended and nobody needs the answer any more."""
        server = grpc.aio.server(options=SERVER_OPTIONS)
        admission = self.entrance.admission
        rpc.add_ControlServicer_to_server(ControlService(self, admission), server)
        operators = OperatorService(Commands(self), self.folder / "events.jsonl", self.done, admission)
        rpc.add_OperatorServicer_to_server(operators, server)
        remembered = self.journal.remembered
        took_over = self.journal.begin()
        self.journal.write({"entry": "software", "software": self._software})
        await self.in_ray(self.ray_hosts.adopt, remembered.hosts, remembered.names)
        if took_over:
            self._recover()
        try:
            await self.entrance.open(server)
        except (UserError, OSError) as error:
            if took_over:
                raise  # Ray starts another, which tries again
            self._cannot_begin(f"nobody can be let in to the coordinator: {error}")
            return
        await server.start()
        self.journal.announce(self.entrance.address, time.time(), self.entrance.server_name)
        self.event("coordinator_started", {"incarnation": self.journal.incarnation, "recovered": took_over})
        looking = asyncio.create_task(self.recruitment.look())
        ticking = asyncio.create_task(self._tick())
        watching = asyncio.create_task(self.drains.watch())
        await self.done.wait()
        looking.cancel()
        watching.cancel()
        await self._wind_down()
        ticking.cancel()
        await server.stop(1.0)
        await self.entrance.close()

    def _cannot_begin(self, message: str) -> None:
        """On record for the driver, who cannot ask."""
        self.event("failed", {"step": 0, "message": message, "exit_code": int(ExitCode.STORAGE)})
        self.journal.write({"entry": "ended", "exit_code": int(ExitCode.STORAGE)})

    def _recover(self) -> None:
        """Go on with the hosts of the coordinator before this one."""
        remembered, now = self.journal.remembered, self.now()
        known = {host: entry for host, entry in remembered.hosts.items() if not self.governing.is_cooling(host)}
        for host in remembered.hosts.keys() - known.keys():
            entry = remembered.hosts[host]
            self.host_tests.place(host, str(entry["address"]), str(entry["group"]))
        self.machine.recover(
            {host: str(entry["address"]) for host, entry in known.items()},
            remembered.generation,
            remembered.formed,
            remembered.members,
            now,
            RECOVERY_SETTLE_SECONDS,
            {host: str(entry["group"]) for host, entry in known.items()},
            {host: str(entry.get("leaving", "")) for host, entry in known.items()},
            remembered.rolling_back,
            remembered.voters,
        )
        self._sameness.admitted.update(known)
        self.machine.hangs.remember(remembered.hung)
        self.relief.give()

    async def _tick(self) -> None:
        for tick in itertools.count():
            await asyncio.sleep(TICK_SECONDS)
            self.do(self.machine.tick(self.now()))
            try:
                self.drains.tick()
                self.saving.tick()
                self.govern()
                self.leaders.tick()
            except Exception:
                logger.exception("what is to become of hosts could not be done; trying again")
            remembered = self.journal.remembered
            if remembered.stopping and self.machine.recovering_until is None:
                reason = remembered.requeue or "asked for before the coordinator was restarted"
                self.do(self.machine.stop(reason, self.now(), requeue=bool(remembered.requeue)))
            if tick % LOOK_AT_JOURNAL_TICKS == 0 and self.journal.deposed:
                logger.error("a later incarnation has taken over")
                os._exit(0)
            if time.monotonic() - self._driver_seen > DRIVER_LEASE_SECONDS:
                self._driver_seen = float("inf")
                self.do(self.machine.stop("the process that started the job is gone", self.now()))

    def in_ray(self, function: Callable[..., Result], *arguments: Any) -> asyncio.Future[Result]:
        """What may block on Ray, in a thread of its own."""
        return self.loop.run_in_executor(self._ray, function, *arguments)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.__loop

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop that the Ray threads post to."""
        self.__loop = loop
        self.ray_hosts.on_dead = self._stillborn

    def _stillborn(self, host: str) -> None:
        """In a thread of `RayHosts`."""
        self.loop.call_soon_threadsafe(lambda: self.do(self.machine.stillborn(host, self.now())))

    async def _wind_down(self) -> None:
        """Everybody has been told to leave: wait for them a little, remove the hosts, stay for the last question."""
        for _ in range(100):
            if not self.machine.workers:
                break
            await asyncio.sleep(0.05)
        self._spawner.shutdown(wait=False, cancel_futures=True)
        self.drains.close()
        self.gauges.close()
        await self.recruitment.close()
        await self.in_ray(self.ray_hosts.drop_all)
        self.journal.write({"entry": "ended", "exit_code": self.exit_code})
        self.phase = "finished" if self.exit_code in (0, 130) else "failed"
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline and self._driver_seen != float("inf"):
            await asyncio.sleep(0.2)

    # ------------------------------------------------------------------ actions

    def do(self, actions: list[ms.Action]) -> None:
        """Carry out what the machine decided, in order; what must be on record first comes first."""
        for run in runs(actions):
            action = run[0]
            match action:
                case ms.SendPrepare() | ms.SendConfigure() | ms.SendJoin() | ms.SendExit() | ms.SendSave():
                    self._direct(action, run)
                case ms.KillWorker(worker, reason):
                    self._post(worker, pb.CoordinatorMessage(kill=pb.Kill(worker=worker, reason=reason)))
                case ms.AskStacks(host, workers):
                    self.streams.post(host, pb.CoordinatorMessage(ask_stacks=pb.AskStacks(workers=workers)))
                case ms.SpawnWorker(host, delay):
                    self.loop.call_later(delay, self._spawn, host)
                case ms.DropHost(host):
                    self.drop(host)
                case ms.MeasureLinks(addresses):
                    self._links.begin(addresses)
                case ms.Record(kind, fields):
                    self._record(kind, fields)
                case ms.EndJob(code, message):
                    self._end(code, message)

    def _spawn(self, host: str) -> None:
        if not self.done.is_set():
            self._spawner.submit(_logged, self.ray_hosts.spawn_worker, host)

    def _direct(self, action: Sending, run: list[ms.Action]) -> None:
        views = [self.machine.workers.get(each.worker) for each in run if isinstance(each, Sending)]
        workers = [(view.host, view.worker) for view in views if view is not None]
        self.streams.direct(self._directives.make(action), workers)

    def _post(self, worker: str, message: pb.CoordinatorMessage) -> None:
        view = self.machine.workers.get(worker)
        if view is not None:
            self.streams.post(view.host, message)

    def _record(self, kind: str, fields: dict[str, object]) -> None:
        self._tell_governor(kind, fields)
        if kind == "generation":
            self.recruitment.complain()
            self.reports.non_finite.forget()
            self.journal.write({"entry": "generation", **fields})
            self.journal.fence(self.machine.generation)
            self.message = ""
        elif kind in ("stopping", "host_leaves", "rolls_back", "rolled_back", "host_lost"):
            self.journal.write({"entry": kind, **fields})
            if kind == "rolled_back":
                self.journal.trust()
        elif kind == "hang":
            self.journal.write({"entry": kind, "t": self.now(), "culprits": fields["culprits"]})
        elif kind == "agent_lost":
            self._agents_lost[str(fields["host"])] = self.now()
        self.event(kind, fields)

    def _tell_governor(self, kind: str, fields: dict[str, object]) -> None:
        machine, host, now = self.machine, str(fields.get("host", "")), self.now()
        if machine.stopping:
            return
        match kind:
            case "generation":
                assert machine.plan is not None
                hosts = {member.host: member.group for member in machine.plan.members}
                self.governing.generation(hosts, now, first=machine.plan.first)
                self.gauges.generation(machine.plan.generation, hosts)
            case "host_lost":
                self.governing.lost(host, now)
            case "host_left":
                self.governing.left(host, now)
            case "evidence":
                if machine.can_spare(host):
                    self.governing.convict(host, Code(str(fields["code"])), now)

    def govern(self) -> None:
        """Whatever follows from how the governor sees the hosts, as far as it was not done already."""
        machine, now = self.machine, self.now()
        if machine.phase is ms.JobPhase.ENDED or machine.stopping or machine.recovering_until is not None:
            return
        members = machine.roster.members
        busy = {worker.host for worker in members if worker.busy}
        attached = {worker.host: machine.hosts[worker.host].attached for worker in members}
        self.governing.watch(attached, busy, machine.pace.step_at, now)
        if not members:
            self._observed_at = now
        elif now - self._observed_at >= self.spec.governor.evaluation:
            self._observed_at = now
            addresses = {host: machine.hosts[host].address for host in sorted(attached)}
            light = machine.light_hosts
            singles = self.observing.singles(addresses, light) if self.spec.governor.pool is Pools.STEPS else ()
            window = self.observing.window(addresses, light)
            self.governing.observed(window, machine.pace.step, now, singles)
            share = self.spec.global_batch / len(members)
            self.gauges.window((each.busy for each in window.values()), share, machine.pace.step_seconds)
            self.relief.give()
        for host in self.reports.non_finite.guilty(now):
            if machine.can_spare(host):
                self.governing.convict(host, Code.NONFINITE_HOST, now)
        self.remove_convicted()
        if self.governing.emergency:
            self.governing.emergency = False
            self.saving.ask()
        self.host_tests.tick()

    def remove_convicted(self) -> None:
        """The hosts that the governor wants to go."""
        for removal in self.governing.removals(self.machine.hosts, self.ray_hosts.placed, self.now()):
            self._remove(removal)

    def _remove(self, removal: Removal) -> None:
        """It may be gone or have been told to go already; who alone has the state is kept, whatever speaks against it."""
        view = self.machine.hosts.get(removal.host)
        if view is None or view.leaving or not self.machine.can_spare(removal.host):
            return
        if removal.way is Way.LOST:
            self.do(self.machine.host_lost(removal.host, removal.reason, self.now(), certain=removal.is_dead))
        else:
            at_once = removal.way is Way.AT_ONCE
            heirs = removal.is_trusted
            self.do(self.machine.leave(removal.host, removal.reason, self.now(), at_once=at_once, bequeaths=heirs))

    def drop(self, host: str) -> None:
        """Take its agent and its placement away."""
        self.journal.write({"entry": "host_dropped", "host": host})
        self.streams.detach(host)
        self.leaders.forget(host)
        self._sameness.admitted.discard(host)
        self._spawner.submit(_logged, self.ray_hosts.drop, host)

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

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What comes within follows from one message: what is to be done about it is decided on once."""
        self.machine.is_held = True
        try:
            yield
        finally:
            self.do(self.machine.go_on(self.now()))

    def attach(self, hello: pb.HostHello, stream: HostStream) -> str | None:
        """An agent's first message, on a stream of its own or its leader's. Returns why its host is not attached, as the
        end of a sentence about it; None where it is."""
        is_tested = self.host_tests.awaits(hello.host)
        if not is_tested and hello.host not in self.machine.hosts:
            return "is not a host of this job"
        if (objection := self._sameness.objection(hello.host, hello.software)) is not None:
            return objection
        self.streams.attach(hello.host, stream, hello.agent_pid)
        welcome = pb.Welcome(incarnation=self.journal.incarnation)
        self.streams.post(hello.host, pb.CoordinatorMessage(welcome=welcome))
        if is_tested:  # it wants to come back
            self.host_tests.begin(hello.host)
            return None
        lost_at = self._agents_lost.pop(hello.host, None)
        if lost_at is not None:
            self.event("agent_back", {"host": hello.host, "seconds": self.now() - lost_at})
        described = [_describe(up, hello.host) for up in hello.workers]
        for up in hello.workers:
            self.ray_hosts.met(hello.host, up.pid)
        for left in hello.exits:
            self.do(self.machine.worker_exit(left.worker, _status(left), self.now()))
        if hello.host in self.machine.hosts:  # and has not left with the last of its ranks
            self.do(self.machine.attach(hello.host, hello.address, described, self.now()))
        self.leaders.attached(hello.host, stream.host)
        return None

    def detach(self, host: str, stream: HostStream) -> None:
        """The stream broke, or the leader whose it is has lost the host."""
        if self.streams.carries(stream, host):
            self.streams.detach(host)
            self._links.lost(host)
            self.host_tests.give_up(host, "its agent's stream was reset")
            self.leaders.detached(host)
            self.do(self.machine.detach(host, self.now()))

    def refuses(self, host: str, message: pb.AgentMessage, *, first: bool = False) -> str | None:
        """Why nothing is done about a message, as the end of a sentence about it; None where it is taken."""
        refusal = check(host, message, Known.of(self.machine), first=first)
        if refusal is None:
            return None
        logger.info("a message of %s is refused: it %s", host, refusal.text)
        if refusal.counts and host in self.machine.hosts:
            told = self._violations.add(host, refusal, self.now())
            if told is not None:
                self.event("message_refused", told)
            if self._violations.is_evidence(host) and self.machine.can_spare(host):
                self.governing.convict(host, Code.PROTOCOL_VIOLATION, self.now())
        return refusal.text

    def hear(self, host: str, message: pb.AgentMessage) -> None:
        """Anything but a hello."""
        if self.refuses(host, message) is not None:
            return
        match message.WhichOneof("body"):
            case "beat":
                self.governing.beat(host, self.now())
                self.streams.heard(host, self.now())
                self.observing.heard(host, message.beat)
                self.reports.beat(message.beat)
            case "worker_up":
                self.ray_hosts.met(host, message.worker_up.pid)
                self.do(self.machine.worker_up(*_describe(message.worker_up, host), self.now()))
            case "worker_exit":
                left = message.worker_exit
                self.reports.seen.pop(left.worker, None)
                self.do(self.machine.worker_exit(left.worker, _status(left), self.now()))
            case "report":
                self.reports.told(message.report)
            case "stacks":
                for stack in message.stacks.stacks:
                    self.machine.hangs.shown(stack.worker, stack.frames)
            case "host_tested":
                self.host_tests.told(host, message.host_tested)
            case "draining":
                self.drains.told_by_agent(host, message.draining)
            case "leads":
                self.leaders.listens(host, message.leads)
            case "probe_port" | "measured_link":
                self._links.told(host, message)

    def heard_of(self, host: str) -> None:
        """Its heartbeat has come by another than its own way. Where that has been silent for so long that a host would
        count as dead, it is gone, though nobody has said so."""
        now, stream = self.now(), self.streams.of(host)
        self.governing.beat(host, now)
        if stream is not None and self.streams.silent_for(host, now) > self.governing.dead_limit:
            logger.info("%s is heard, but not by its own way any more", host)
            self.detach(host, stream)
            if stream.host == host:
                stream.outbox.put_nowait(None)

    # ------------------------------------------------------------------ what operators ask

    def driver_lives(self) -> None:
        """The process that started the job has asked for something."""
        if self._driver_seen != float("inf"):
            self._driver_seen = time.monotonic()

    def stop(self, reason: str, now: bool) -> None:
        """Checkpoint and end, or end at once."""
        if now:
            self.do([ms.SendExit(worker, reason) for worker in self.machine.workers])
            self.event("stopping", {"reason": reason})
            self._end(130, "stopped at once, without a checkpoint")
        else:
            self.do(self.machine.stop(reason, self.now()))

    def drain(self, host: str, reason: str) -> None:
        """It leaves, and is not taken again before it is forgiven."""
        self.journal.write({"entry": "drained", "host": host})
        self.journal.remembered.drained.add(host)
        self.do(self.machine.leave(host, reason, self.now()))

    def forgive(self, host: str) -> bool:
        """A drained host may be taken again; False where it is none."""
        if host not in self.journal.remembered.drained:
            return False
        self.journal.write({"entry": "readmitted", "host": host})
        self.journal.remembered.drained.discard(host)
        return True

    def scale(self, hosts: int) -> list[str]:
        """As many as that at most from now on; the hosts that leave for it, the least trusted ones first."""
        self.journal.write({"entry": "scaled", "hosts": hosts})
        self.event("scaled", {"hosts": hosts})
        self.governing.scaled(hosts, self.now())
        spares = self.machine.roster.spares
        staying = [view.host for view in self.machine.hosts.values() if not view.leaving and view.host not in spares]
        places = {host: place for place, host in enumerate(staying)}
        staying.sort(key=lambda host: (self.governing.trust(host), -places[host]))
        leaving = staying[: max(0, len(staying) - hosts)]
        self.do(self.machine.scaled(hosts, self.now()))  # first: no spare is to come in the place of those that leave
        for host in leaving:
            self.do(self.machine.leave(host, f"the job was scaled to {hosts} hosts", self.now()))
        return leaving


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
        hosts = RayHosts(
            job=spec.name,
            job_folder=folder,
            ranks_per_host=spec.ranks_per_host,
            namespace=namespace,
            only=spec.hosts.only,
        )
        coordinator = Coordinator(spec, folder, hosts, f"{address}:{store.port}", address)
        coordinator.bind_loop(asyncio.get_running_loop())
        await coordinator.run()
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor("coordinator", namespace), no_restart=True)
