"""GM-4: the streams of agents over real gRPC: one of each host, or a leader's, which carries its group."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, cast

import grpc
import pytest
from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator.admission import Admission
from orchestrator.coordinator import Coordinator
from orchestrator.services import SERVER_OPTIONS, ControlService
from orchestrator.streams import HostStream, Streams
from orchestrator.turned_away import Tally
from tests.orchestrator.guarded import Appointed

PATIENCE_SECONDS = 30.0


class Listener:
    """What the service does with a coordinator, on record; it knows the hosts 1 to 4."""

    def __init__(self) -> None:
        self.streams = Streams()
        self.leaders = Appointed()
        self.heard: list[tuple[str, ...]] = []

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        self._note("begins")
        yield
        self._note("ends")

    def refuses(self, host: str, message: pb.AgentMessage, *, first: bool = False) -> str | None:
        return None

    def attach(self, hello: pb.HostHello, stream: HostStream) -> str | None:
        if hello.host not in {f"host-{number}" for number in range(1, 5)}:
            return "is not a host of this job"
        self.streams.attach(hello.host, stream, hello.agent_pid)
        self.streams.post(hello.host, pb.CoordinatorMessage(welcome=pb.Welcome(incarnation=1)))
        self._note("attach", hello.host)
        return None

    def detach(self, host: str, stream: HostStream) -> None:
        self.streams.detach(host)
        self._note("detach", host)

    def heard_of(self, host: str) -> None:
        self._note("heard of", host)

    def hear(self, host: str, message: pb.AgentMessage) -> None:
        self._note(str(message.WhichOneof("body")), host)

    def _note(self, *what: str) -> None:
        self.heard.append(what)

    async def has_heard(self, *what: str) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while what not in self.heard:
                await asyncio.sleep(0.005)


def said(host: str, **body: Any) -> pb.AgentMessage:
    return pb.AgentMessage(host=host, **body)


def hello(host: str) -> pb.HostHello:
    return pb.HostHello(host=host)


Talk = Callable[[Listener, rpc.ControlStub], Coroutine[Any, Any, None]]


def converse(talk: Talk) -> None:
    """With a service on a port of its own."""

    async def body() -> None:
        listener = Listener()
        server = grpc.aio.server(options=SERVER_OPTIONS)
        rpc.add_ControlServicer_to_server(
            ControlService(cast(Coordinator, listener), Admission(None, Tally(lambda fields: None, time.time))), server
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await talk(listener, rpc.ControlStub(channel))
        await server.stop(None)

    asyncio.run(body())


async def outgoing(outbox: asyncio.Queue[pb.AgentMessage | None]) -> AsyncIterator[pb.AgentMessage]:
    while (message := await outbox.get()) is not None:
        yield message


def test_gm4_a_leader_speaks_for_its_group_and_what_comes_together_is_heard_together() -> None:
    async def talk(listener: Listener, stub: rpc.ControlStub) -> None:
        outbox: asyncio.Queue[pb.AgentMessage | None] = asyncio.Queue()
        outbox.put_nowait(pb.AgentMessage(hello=hello("host-1")))
        messages = [
            said("host-2", hello=hello("host-2")),
            said("host-2", beat=pb.Beat()),
            said("host-3", beat=pb.Beat()),  # it has not attached
            said("stranger", hello=hello("stranger")),
            said("host-1", beat=pb.Beat()),
        ]
        outbox.put_nowait(pb.AgentMessage(gathered=pb.Gathered(messages=messages)))
        stream = stub.Attach(outgoing(outbox))
        answers = [await stream.read() for _ in range(3)]
        assert [(answer.WhichOneof("body"), answer.host) for answer in answers] == [
            ("welcome", ""),
            ("welcome", "host-2"),
            ("refused", "stranger"),
        ]
        assert answers[2].refused.reason == "stranger is not a host of this job"
        away = [said("host-2", host_away=pb.HostAway()), said("host-2", beat=pb.Beat())]
        outbox.put_nowait(pb.AgentMessage(gathered=pb.Gathered(messages=away)))
        await listener.has_heard("detach", "host-2")
        outbox.put_nowait(None)
        await listener.has_heard("detach", "host-1")
        assert listener.heard == [
            ("attach", "host-1"),
            ("begins",),
            ("attach", "host-2"),
            ("beat", "host-2"),
            ("beat", "host-1"),
            ("ends",),
            ("begins",),
            ("detach", "host-2"),
            ("ends",),
            ("begins",),
            ("detach", "host-1"),
            ("ends",),
        ]

    converse(talk)


def test_gm4_by_the_stream_of_a_leader_nobody_speaks_for_another() -> None:
    async def talk(listener: Listener, stub: rpc.ControlStub) -> None:
        outbox: asyncio.Queue[pb.AgentMessage | None] = asyncio.Queue()
        outbox.put_nowait(pb.AgentMessage(hello=hello("host-1")))
        messages = [said("host-2", hello=hello("host-3")), said("host-1", hello=hello("host-1"))]
        outbox.put_nowait(pb.AgentMessage(gathered=pb.Gathered(messages=messages)))
        stream = stub.Attach(outgoing(outbox))
        answers = [await stream.read() for _ in range(3)]
        assert [(each.WhichOneof("body"), each.host) for each in answers[:2]] == [("welcome", ""), ("refused", "host-2")]
        assert answers[2].HasField("refused")
        assert [what for what in listener.heard if what[0] == "attach"] == [("attach", "host-1")]

    converse(talk)


def test_gm18_heartbeats_by_another_way_count_from_whom_it_was_asked_for() -> None:
    async def talk(listener: Listener, stub: rpc.ControlStub) -> None:
        listener.leaders.heard = {("host-1", "host-3")}
        outbox: asyncio.Queue[pb.AgentMessage | None] = asyncio.Queue()
        outbox.put_nowait(pb.AgentMessage(hello=hello("host-1")))
        messages = [said("host-2", seen=pb.Seen()), said("host-3", seen=pb.Seen())]
        outbox.put_nowait(pb.AgentMessage(gathered=pb.Gathered(messages=messages)))
        stream = stub.Attach(outgoing(outbox))
        assert (await stream.read()).HasField("welcome")
        await listener.has_heard("ends")
        assert listener.heard == [("attach", "host-1"), ("begins",), ("heard of", "host-3"), ("ends",)]

    converse(talk)


def test_gm4_with_the_stream_of_a_leader_all_hosts_that_hang_on_it_are_away() -> None:
    async def talk(listener: Listener, stub: rpc.ControlStub) -> None:
        leader: asyncio.Queue[pb.AgentMessage | None] = asyncio.Queue()
        own: asyncio.Queue[pb.AgentMessage | None] = asyncio.Queue()
        leader.put_nowait(pb.AgentMessage(hello=hello("host-1")))
        members = [said(f"host-{number}", hello=hello(f"host-{number}")) for number in (2, 3)]
        leader.put_nowait(pb.AgentMessage(gathered=pb.Gathered(messages=members)))
        stream = stub.Attach(outgoing(leader))
        for _ in range(3):
            await stream.read()
        own.put_nowait(pb.AgentMessage(hello=hello("host-3")))
        other = stub.Attach(outgoing(own))
        assert (await other.read()).HasField("welcome")
        stream.cancel()
        await listener.has_heard("detach", "host-2")
        assert ("detach", "host-1") in listener.heard and ("detach", "host-3") not in listener.heard
        own.put_nowait(pb.AgentMessage(beat=pb.Beat()))
        await listener.has_heard("beat", "host-3")

    converse(talk)


def test_ep14_a_host_that_is_not_of_the_job_and_one_that_does_not_say_hello_are_refused() -> None:
    async def talk(listener: Listener, stub: rpc.ControlStub) -> None:
        for first, code in (
            (pb.AgentMessage(hello=hello("stranger")), grpc.StatusCode.PERMISSION_DENIED),
            (pb.AgentMessage(beat=pb.Beat()), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            outbox: asyncio.Queue[pb.AgentMessage | None] = asyncio.Queue()
            outbox.put_nowait(first)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Attach(outgoing(outbox)).read()
            assert refused.value.code() is code
        assert listener.heard == []

    converse(talk)
