"""A process that simulates hosts: their agents speak the protocol over real gRPC streams, their ranks train nothing.

    python -m benchmarks.fleet.generator FOLDER NUMBER

It writes what befalls its hosts to `generator-NUMBER.jsonl` in the job's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantarion.v1 import control_pb2 as pb

from benchmarks.fleet.exchange import Exchange
from benchmarks.fleet.measures import Measured, Measures
from benchmarks.fleet.orders import Order, listen
from benchmarks.fleet.ranks import Seats, SimulatedRank
from benchmarks.fleet.settings import Node, Settings
from benchmarks.fleet.uplinks import Leader, Uplink
from workers import wire
from workers.installed import software
from workers.page import Signals
from workers.protocol import PrepareOrder
from workers.uplink import BEAT_SECONDS

TURN_SECONDS = 0.05
TURNS_OF_BEAT = round(BEAT_SECONDS / TURN_SECONDS)
SETTLED_STEPS = 5
"""Of a generation, before a rank says how long it works on a sample (GM-14)."""

PACE_SECONDS = 1.0
"""Between two lines about how well this process keeps up."""

KILLED = -9


@dataclass
class SimulatedHost:
    """`slow`: times as long as its peers it works on a sample. `lives`: nobody has killed it, and it may be in the job."""

    node: Node
    uplink: Uplink | None = None
    ranks: dict[str, SimulatedRank] = field(default_factory=dict)
    slow: float = 1.0
    lives: bool = True

    def hello(self, software: Mapping[str, str]) -> pb.HostHello:
        node = self.node
        workers = [rank.up(node.address) for rank in self.ranks.values()]
        return pb.HostHello(
            host=node.host,
            node_id=node.node_id,
            address=node.address,
            agent_pid=100_000 + node.number,
            workers=workers,
            software=software,
        )


class Generator:
    """All hosts of one process, on one event loop."""

    def __init__(self, folder: Path, settings: Settings, number: int) -> None:
        self.folder, self.settings, self.number = folder, settings, number
        self.hosts = {node.host: SimulatedHost(node) for node in settings.simulated_by(number)}
        self.owners: dict[str, SimulatedHost] = {}  # by the name of a worker
        every = list(self.hosts.values())
        self._beating = [every[turn::TURNS_OF_BEAT] for turn in range(TURNS_OF_BEAT)]  # in which turn
        self.exchange = Exchange(Path(settings.sockets, "exchange"), settings.generators)
        self.measures = Measures(settings.seed, number)
        self.seats: Seats | None = None  # of the generation that was configured last
        self._packed = b""
        self._to_configure = self._training = 0
        self._closing: list[SimulatedRank] = []  # at a step that is not committed yet
        self._names = itertools.count(1)
        self._next_step_at = 0.0
        self._log = os.open(folder / f"generator-{number}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._late = 0.0
        self._beats = 0

    def log(self, kind: str, **fields: Any) -> None:
        os.write(self._log, (json.dumps({"t": time.time(), "kind": kind, **fields}) + "\n").encode())

    async def run(self) -> None:
        """Until somebody ends the process."""
        listen(Path(self.settings.sockets), self.number, self.obey)
        self.log("ready", pid=os.getpid(), hosts=len(self.hosts))
        loop = asyncio.get_running_loop()
        due, told = loop.time(), loop.time()
        for turn in itertools.count():
            due += TURN_SECONDS
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._late = max(self._late, loop.time() - due)
            due = max(due, loop.time() - BEAT_SECONDS)  # what was missed for longer is left out
            self._turn(turn)
            if loop.time() - told >= PACE_SECONDS:
                self.log("pace", late=self._late, beats=self._beats, seconds=loop.time() - told)
                told, self._late, self._beats = loop.time(), 0.0, 0

    # ------------------------------------------------------------------ what it is told to do

    def obey(self, order: Order) -> None:
        match order["do"]:
            case "attach":
                self._attach()
            case "spawn":
                self._spawn(self.hosts[order["host"]])
            case "drop":
                self._leave(self.hosts[order["host"]])
            case "kill":
                self._kill(self.hosts[order["host"]], silently=order["silently"])
            case "slow":
                self.hosts[order["host"]].slow = order["times"]
                self.log("slow", host=order["host"], times=order["times"])

    def _attach(self) -> None:
        """All hosts at once."""
        for nodes in self.settings.streams([host.node for host in self.hosts.values()]):
            hosts = [self.hosts[node.host] for node in nodes]
            uplink = self._uplink(hosts)
            for host in hosts:
                host.uplink = uplink
            uplink.open()

    def _uplink(self, hosts: list[SimulatedHost]) -> Uplink:
        def lost(reason: str) -> None:
            self.log("stream_lost", host=hosts[0].node.host, reason=reason[:300])

        installed = software(self.folder)

        def hello() -> pb.HostHello:
            return hosts[0].hello(installed)

        def hear(message: pb.CoordinatorMessage) -> None:
            uplink = hosts[0].uplink
            if uplink is not None and (message.lead.hosts or message.lead.observed):  # it says yes, and nobody goes there
                uplink.say(hosts[0].node.host, pb.AgentMessage(leads=pb.Leads(term=message.lead.term, port=1)))
            self._hear(message)

        if not self.settings.leaders:
            return Uplink(self.folder, hello, hear, lost)

        def members() -> list[pb.HostHello]:
            return [host.hello(installed) for host in hosts[1:] if host.lives]

        return Leader(self.folder, hello, hear, lost, members)

    def _spawn(self, host: SimulatedHost) -> None:
        """A worker process, which is up at once."""
        if not host.lives:
            return
        number = next(self._names)
        pid = 200_000 + self.settings.generators * number + self.number
        rank = SimulatedRank(f"w{pid}-{self.number:08x}", host.node.host, pid)
        host.ranks[rank.worker] = rank
        self.owners[rank.worker] = host
        if host.uplink is not None:
            host.uplink.say(host.node.host, pb.AgentMessage(worker_up=rank.up(host.node.address)))

    def _kill(self, host: SimulatedHost, *, silently: bool) -> None:
        """Its agent has seen its ranks die before it is gone, or, `silently`, the neighbours of its ranks have to tell."""
        self.log("killed", host=host.node.host, silently=silently)
        peers = {peer for worker in host.ranks if self.seats is not None for peer in self.seats.neighbours(worker)}
        for rank in list(host.ranks.values()):
            self._end(host, rank, KILLED, tell=not silently)
        self._part(host, reset=silently)
        if silently:
            for worker in sorted(peers & self.owners.keys()):
                self._say(self.owners[worker], self.owners[worker].ranks[worker].failed())

    def _leave(self, host: SimulatedHost) -> None:
        """It is not part of the job any more."""
        for rank in list(host.ranks.values()):
            self._end(host, rank, KILLED, tell=False)
        self._part(host, reset=False)

    def _part(self, host: SimulatedHost, *, reset: bool) -> None:
        """Its agent is gone."""
        if not host.lives:
            return
        host.lives = False
        if host.uplink is None:
            return
        if self.settings.leaders:  # also of the first host of a group, whose stream goes on: nobody is elected here
            host.uplink.say(host.node.host, pb.AgentMessage(host_away=pb.HostAway()))
        elif reset:
            host.uplink.reset()
        else:
            host.uplink.hang_up()

    def _end(self, host: SimulatedHost, rank: SimulatedRank, status: int, *, tell: bool) -> None:
        """The process exits."""
        with self._counted(rank):
            rank.lives = False
        del host.ranks[rank.worker], self.owners[rank.worker]
        if tell and host.uplink is not None:
            left = pb.WorkerExit(worker=rank.worker, pid=rank.pid, status=status, time=time.time())
            host.uplink.say(host.node.host, pb.AgentMessage(worker_exit=left))

    # ------------------------------------------------------------------ what the coordinator says

    def _hear(self, message: pb.CoordinatorMessage) -> None:
        match message.WhichOneof("body"):
            case "directive":
                self._direct(message.directive)
            case "kill" if message.kill.worker in self.owners:
                host = self.owners[message.kill.worker]
                self.log("kill_order", worker=message.kill.worker, reason=message.kill.reason)
                self._end(host, host.ranks[message.kill.worker], KILLED, tell=True)
            case "refused":
                self.log("refused", host=message.host, reason=message.refused.reason)

    def _direct(self, directive: pb.Directive) -> None:
        if directive.HasField("configure"):
            self._take_seats(directive.configure)
        for worker in directive.workers:
            host = self.owners.get(worker)
            if host is not None:
                self._obey(host, host.ranks[worker], directive)

    def _obey(self, host: SimulatedHost, rank: SimulatedRank, directive: pb.Directive) -> None:
        match directive.WhichOneof("body"):
            case "prepare":
                generation = wire.generation_from_wire(directive.prepare.generation)
                rank.prepare(PrepareOrder(generation, directive.prepare.at_step))
                if not self._close(host, rank):
                    self._closing.append(rank)
            case "configure":
                self._configure(host, rank)
            case "join" if self.seats is not None:
                self._say(host, rank.join(self.seats.line, self._step()))
            case "exit":
                self._end(host, rank, 0, tell=True)

    def _close(self, host: SimulatedHost, rank: SimulatedRank) -> bool:
        """PREPARED, if it is time; False where that is still to come."""
        with self._counted(rank):
            rank.reach(self._step())
            self._say(host, rank.close())
        return rank.machine.order is None

    def _take_seats(self, packed: bytes) -> None:
        """Of a generation that is new to this process."""
        if packed == self._packed:
            return
        self.seats, self._packed = Seats.read(packed), packed
        self._to_configure = sum(worker in self.owners for worker in self.seats.ring)
        self._training = 0
        self.exchange.train(self.number, self.seats.generation, 0)

    def _configure(self, host: SimulatedHost, rank: SimulatedRank) -> None:
        assert self.seats is not None
        with self._counted(rank):
            report = rank.configure(self.seats)
        if report is None:
            return
        self._say(host, report)
        self._to_configure -= 1
        if self._to_configure == 0:
            self.log("configured", generation=list(self.seats.generation), members=len(self.seats.ring))
        if self.seats.stop:
            rank.machine.finish()
            finished = pb.Finished(state=wire.state_to_wire(rank.machine.state))
            self._say(host, pb.RankReport(worker=rank.worker, finished=finished))

    @contextlib.contextmanager
    def _counted(self, rank: SimulatedRank) -> Iterator[None]:
        """Nobody gets on unless all train: others see at once how many of ours do."""
        before = self._trains(rank)
        yield
        change = self._trains(rank) - before
        if change and self.seats is not None:
            self._training += change
            self.exchange.train(self.number, self.seats.generation, self._training)

    def _trains(self, rank: SimulatedRank) -> bool:
        return self.seats is not None and rank.is_training(self.seats.generation)

    def _say(self, host: SimulatedHost, report: pb.RankReport | None) -> None:
        if report is not None and host.uplink is not None:
            host.uplink.say(host.node.host, pb.AgentMessage(report=report))

    # ------------------------------------------------------------------ as time passes

    def _turn(self, turn: int) -> None:
        self._commit()
        closing, self._closing = self._closing, []
        self._closing = [rank for rank in closing if rank.lives and not self._close(self.owners[rank.worker], rank)]
        hosts = [host for host in self._beating[turn % TURNS_OF_BEAT] if host.lives and host.uplink is not None]
        step = self._step()
        for host, measured in zip(hosts, self.measures.draw(len(hosts), step), strict=True):
            self._beat(host, measured, step)
        self._beats += len(hosts)

    def _step(self) -> int:
        """The last one that is committed."""
        if self.seats is None:
            return 0
        return self.exchange.step(self.seats.generation) or self.seats.authority.step

    def _commit(self) -> None:
        """The next step, if it is time and all members train; the first generator does it for all."""
        seats, now = self.seats, time.monotonic()
        if self.number or seats is None or now < self._next_step_at:
            return
        if self.exchange.training(seats.generation) == len(seats.ring):
            self.exchange.commit(seats.generation, self._step() + 1)
            self._next_step_at = max(now, self._next_step_at + self.settings.step_seconds)

    def _beat(self, host: SimulatedHost, measured: Measured, step: int) -> None:
        message = pb.AgentMessage()
        message.beat.time, message.beat.temperature = time.time(), measured.temperature
        reports = []
        for rank in host.ranks.values():
            rank.reach(step)
            reached, signals = rank.machine.state.step, measured.signals if rank.steps >= SETTLED_STEPS else Signals()
            message.beat.progress.add(
                worker=rank.worker,
                step=reached,
                generation=wire.generation_to_wire(rank.machine.generation),
                micro_batch=reached,
                exchanges=reached,
                state=rank.machine.phase.value,
                step_seconds=self.settings.step_seconds if reached else 0.0,
                **signals._replace(work=signals.work * host.slow)._asdict(),
            )
            reports.append(rank.digest())
        if host.uplink is not None:
            host.uplink.say(host.node.host, message)
        for report in reports:
            self._say(host, report)


def main() -> None:
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    asyncio.run(Generator(folder, Settings.read(folder), number).run())


if __name__ == "__main__":
    main()
