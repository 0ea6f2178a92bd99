"""The gRPC streams of simulated hosts to the coordinator: one of each host, or one of each leader with its group."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import grpc
from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc

from workers.announced import announced
from workers.uplink import CHANNEL_OPTIONS, RECONNECT_SECONDS

GATHER_SECONDS = 0.25
"""For which a leader keeps the beats of its group at most; anything else goes out at once, with what has gathered."""

OPTIONS = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
"""As an agent's; and streams of one process do not share a connection."""

Hear = Callable[[pb.CoordinatorMessage], None]


class Uplink:
    """The stream of one agent.

    Args:
        hello: what the agent of the stream says first, each time that it attaches.
        hear: takes what the coordinator sends.
        on_loss: called when the stream has ended though nobody has closed it; it is opened again.
    """

    def __init__(self, folder: Path, hello: Callable[[], pb.HostHello], hear: Hear, on_loss: Callable[[str], None]) -> None:
        self._folder, self._hello, self._hear, self._on_loss = folder, hello, hear, on_loss
        self._outbox: asyncio.Queue[pb.AgentMessage | None] = asyncio.Queue()
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._task = asyncio.create_task(self._stay_attached())

    def say(self, host: str, message: pb.AgentMessage) -> None:
        """Of the host whose stream it is."""
        del host
        self._outbox.put_nowait(message)

    def hang_up(self) -> None:
        """What was said goes out, and then the stream ends."""
        self._is_closed = True
        self._outbox.put_nowait(None)

    def reset(self) -> None:
        """As when the machine is gone."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()

    async def _stay_attached(self) -> None:
        while not self._is_closed:
            coordinator = announced(self._folder)
            if coordinator is not None:
                reason = await self._attached(coordinator.address)
                if not self._is_closed:
                    self._on_loss(reason)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _attached(self, address: str) -> str:
        """Until the stream ends; why it has."""
        async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
            self._outbox = asyncio.Queue()
            for message in self._greetings():
                self._outbox.put_nowait(message)
            try:
                async for message in rpc.ControlStub(channel).Attach(self._outgoing(self._outbox)):
                    self._hear(message)
            except (grpc.aio.AioRpcError, OSError) as error:
                return str(error)
        return "the coordinator has ended it"

    def _greetings(self) -> Iterable[pb.AgentMessage]:
        return [pb.AgentMessage(hello=self._hello())]

    @staticmethod
    async def _outgoing(outbox: asyncio.Queue[pb.AgentMessage | None]) -> AsyncIterator[pb.AgentMessage]:
        while (message := await outbox.get()) is not None:
            yield message


class Leader(Uplink):
    """The stream of an agent that leads a group.

    Args:
        members: what the other agents of the group have said to it first.
    """

    def __init__(
        self,
        folder: Path,
        hello: Callable[[], pb.HostHello],
        hear: Hear,
        on_loss: Callable[[str], None],
        members: Callable[[], list[pb.HostHello]],
    ) -> None:
        super().__init__(folder, hello, hear, on_loss)
        self._members = members
        self._gathered: list[pb.AgentMessage] = []
        self._is_due = asyncio.Event()
        self._flushing: asyncio.Task[None] | None = None

    def open(self) -> None:
        super().open()
        self._flushing = asyncio.create_task(self._flush())

    def say(self, host: str, message: pb.AgentMessage) -> None:
        message.host = host
        self._gathered.append(message)
        if not message.HasField("beat"):
            self._is_due.set()

    def reset(self) -> None:
        super().reset()
        if self._flushing is not None:
            self._flushing.cancel()

    def _greetings(self) -> Iterable[pb.AgentMessage]:
        self._gathered = []
        members = [pb.AgentMessage(hello=hello, host=hello.host) for hello in self._members()]
        return [*super()._greetings(), pb.AgentMessage(gathered=pb.Gathered(messages=members))]

    async def _flush(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_due.wait(), GATHER_SECONDS)
            self._is_due.clear()
            if self._gathered:
                gathered, self._gathered = self._gathered, []
                self._outbox.put_nowait(pb.AgentMessage(gathered=pb.Gathered(messages=gathered)))
