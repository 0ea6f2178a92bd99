"""A coordinator's services behind its real entrance, on real sockets, with nobody behind them who does anything."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2 as op
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator.certificates import Certificates
from orchestrator.commands import Commands
from orchestrator.coordinator import Coordinator
from orchestrator.entrance import Entrance
from orchestrator.jobspec import JobSpec
from orchestrator.services import ControlService, OperatorService
from orchestrator.streams import HostStream, Streams
from workers import tls

JOB = "demo"
SERVER = "coordinator.demo"
PATIENCE_SECONDS = 60.0
"""For anything to happen on a machine that does much else."""

Fields = dict[str, object]


@dataclass
class Appointed:
    """Whom agents were appointed to lead, and to hear, as pairs of leader and host; nobody unless it is said."""

    led: set[tuple[str, str]] = field(default_factory=set)
    heard: set[tuple[str, str]] = field(default_factory=set)

    def may_attach(self, leading: str, host: str) -> bool:
        return (leading, host) in self.led

    def observes(self, leading: str, host: str) -> bool:
        return (leading, host) in self.heard


@dataclass
class Behind:
    """Notes what has come through."""

    attached: list[str] = field(default_factory=list)
    left: queue.Queue[str] = field(default_factory=queue.Queue)  # hosts whose stream has ended
    asked: list[str] = field(default_factory=list)
    streams: Streams = field(default_factory=Streams)
    leaders: Appointed = field(default_factory=Appointed)

    def refuses(self, host: str, message: pb.AgentMessage, *, first: bool = False) -> str | None:
        return None

    def attach(self, hello: pb.HostHello, stream: HostStream) -> str | None:
        self.attached.append(hello.host)
        self.streams.attach(hello.host, stream, hello.agent_pid)
        self.streams.post(hello.host, pb.CoordinatorMessage(welcome=pb.Welcome(incarnation=7)))
        return None

    @contextmanager
    def together(self) -> Iterator[None]:
        yield

    def detach(self, host: str, stream: HostStream) -> None:
        self.streams.detach(host)
        self.left.put(host)

    def hear(self, host: str, message: pb.AgentMessage) -> None:
        pass

    def status(self, driver: bool) -> op.StatusReply:
        self.asked.append("Status")
        return op.StatusReply(job=JOB)

    def stop(self, request: op.StopRequest) -> op.StopReply:
        self.asked.append("Stop")
        return op.StopReply(accepted=True)

    def change(self, command: str, request: object) -> op.OperatorReply:
        self.asked.append(command)
        return op.OperatorReply(accepted=True)


class Guarded:
    """It runs in a loop of its own thread; `refused` gets the events of those who were turned away."""

    def __init__(self, folder: Path, address: str, plaintext: str) -> None:
        self.folder, self.behind = folder, Behind()
        self.certificates = Certificates(folder, JOB)
        self.refused: queue.Queue[Fields] = queue.Queue()
        self.events: list[tuple[str, Fields]] = []
        self.ports: list[int] = []
        security = {"plaintext": plaintext}
        spec = JobSpec.model_validate({"name": JOB, "storage": folder.parent, "security": security})
        self.entrance = Entrance(spec, folder, address, self._event, lambda: ["host-1", "host-2"])
        self._loop = asyncio.new_event_loop()
        self._ready: Future[None] = Future()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def _event(self, kind: str, fields: Fields) -> None:
        self.events.append((kind, fields))
        if kind == "peer_refused":
            self.refused.put(fields)

    async def _serve(self) -> None:
        try:
            server = grpc.aio.server()
            admission = self.entrance.admission
            control = ControlService(cast(Coordinator, self.behind), admission)
            (self.folder / "events.jsonl").touch()
            commands = cast(Commands, self.behind)
            operators = OperatorService(commands, self.folder / "events.jsonl", asyncio.Event(), admission)
            rpc.add_ControlServicer_to_server(control, server)
            rpc.add_OperatorServicer_to_server(operators, server)
            add = server.add_insecure_port

            def noted(address: str) -> int:
                self.ports.append(add(address))
                return self.ports[-1]

            server.add_insecure_port = noted  # type: ignore[method-assign]
            await self.entrance.open(server)
            await server.start()
            self._ready.set_result(None)
        except BaseException as error:
            self._ready.set_exception(error)
            raise
        await self._end.wait()
        await server.stop(None)
        await self.entrance.close()

    def start(self) -> None:
        self._thread.start()
        self._ready.result(PATIENCE_SECONDS)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        self._loop.close()

    def look(self, now: float | None = None) -> None:
        """What the entrance does from time to time."""
        looking = self.entrance.look(time.time() if now is None else now)
        asyncio.run_coroutine_threadsafe(looking, self._loop).result(PATIENCE_SECONDS)

    # ------------------------------------------------------------------ clients

    @contextmanager
    def connected(self, own: str, folder: Path | None = None, name: str = SERVER) -> Iterator[grpc.Channel]:
        """A channel with the certificate in the file `own`."""
        credentials = tls.channel_credentials(folder or self.certificates.folder, own)
        with secure(self.entrance.address, credentials, name) as channel:
            yield channel

    def ask(self, own: str, folder: Path | None = None) -> str:
        """The job's name, as an answer to Status; else the code of the refusal."""
        with self.connected(own, folder) as channel:
            return ask(channel)


@contextmanager
def secure(address: str, credentials: grpc.ChannelCredentials, name: str = SERVER) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(address, credentials, [("grpc.enable_http_proxy", 0), *tls.server_is(name)]) as channel:
        yield channel


def ask(channel: grpc.Channel) -> str:
    """The job's name, as an answer to Status; else the code of the refusal."""
    try:
        return str(rpc.OperatorStub(channel).Status(op.StatusRequest(), timeout=PATIENCE_SECONDS).job)
    except grpc.RpcError as error:
        return str(cast(Any, error).code().name)


class Attached:
    """An agent's stream, and what comes of it."""

    def __init__(self, channel: grpc.Channel, host: str) -> None:
        self._outgoing: queue.Queue[pb.AgentMessage | None] = queue.Queue()
        self._outgoing.put(pb.AgentMessage(hello=pb.HostHello(host=host)))
        self._call = rpc.ControlStub(channel).Attach(iter(self._outgoing.get, None), timeout=PATIENCE_SECONDS)

    def welcome(self) -> int:
        """The incarnation in the first message."""
        return int(next(self._call).welcome.incarnation)

    def gather(self, *hosts: str) -> None:
        """Say that it leads these hosts."""
        messages = [pb.AgentMessage(host=host, hello=pb.HostHello(host=host)) for host in hosts]
        self._outgoing.put(pb.AgentMessage(gathered=pb.Gathered(messages=messages)))

    def next(self) -> pb.CoordinatorMessage:
        """What comes next."""
        message: pb.CoordinatorMessage = next(self._call)
        return message

    def refusal(self) -> tuple[str, str]:
        """Code and details of how it ends; nothing comes before."""
        try:
            message = next(self._call, None)
        except grpc.RpcError as error:
            call = cast(Any, error)
            return str(call.code().name), str(call.details())
        finally:
            self.close()
        raise AssertionError(f"it was let in: {message}")

    def close(self) -> None:
        self._outgoing.put(None)
        self._call.cancel()


@contextmanager
def guarded(storage: Path, *, address: str = "127.0.0.1", plaintext: str = "never") -> Iterator[Guarded]:
    folder = storage / JOB
    folder.mkdir(parents=True)
    served = Guarded(folder, address, plaintext)
    served.start()
    try:
        yield served
    finally:
        served.stop()
