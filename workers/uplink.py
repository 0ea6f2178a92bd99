"""An agent's ways to the coordinator: one stream for everything, and one on which only its heartbeats go (GM-4, GM-18).

The first is the agent's own, or goes through the agent that leads its group; the second ends at a leader. Where a leader is
gone the agent attaches by a stream of its own again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc

from workers import tls
from workers.announced import announced

logger = logging.getLogger("quantarion.agent")

BEAT_SECONDS = 0.5
RECONNECT_SECONDS = 0.2
OBSERVER_SECONDS = 1.0
"""Between two attempts to reach the leader that listens for heartbeats."""

REACH_SECONDS = 3.0
"""To connect to where a host is to go next, while it has another way."""

WELCOME_SECONDS = REACH_SECONDS + 3.0
"""For the coordinator to answer by way of a leader."""

CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
]
"""A silent host loss shows within 3 s, without waiting for TCP."""

Outbox = asyncio.Queue[pb.AgentMessage]
Stream = AsyncIterable[pb.CoordinatorMessage]


@dataclass(frozen=True)
class Place:
    """Where a server listens: the coordinator's, or a leader's."""

    address: str
    server_name: str = ""  # that its certificate is for; empty: it speaks without TLS


NOWHERE = Place("")


@dataclass(eq=False)
class _Way:
    """A stream to `place`, from when it is tried."""

    place: Place
    is_led: bool
    has_spoken: bool = False  # HostHello is on its way
    welcome: asyncio.Event = field(default_factory=asyncio.Event)  # somebody has answered
    task: asyncio.Task[None] = field(init=False)


class Uplink:
    """Of the agent of `host`, on its event loop.

    Args:
        hello: makes what is said first, as everything that is said later follows from it.
        beat: makes a heartbeat.
        begins: called when `hello` is on its way, with the way for what follows open.
        obey: takes what the coordinator says.
        ends: called when there is no way any more.
    """

    def __init__(
        self,
        host: str,
        job_folder: Path,
        *,
        hello: Callable[[], pb.HostHello],
        beat: Callable[[], pb.Beat],
        begins: Callable[[], None],
        obey: Callable[[pb.CoordinatorMessage], None],
        ends: Callable[[], None],
    ) -> None:
        self._host, self._folder = host, job_folder
        self._hello, self._make_beat, self._begins, self._obey, self._ends = hello, beat, begins, obey, ends
        self._outbox: Outbox | None = None
        self._leader = self._observer = NOWHERE  # as ordered; a leader only until it was no use
        self._is_turned = asyncio.Event()
        self._observing: asyncio.Task[None] | None = None
        self._term = 0

    @property
    def is_open(self) -> bool:
        """What is told now is on its way."""
        return self._outbox is not None

    def tell(self, message: pb.AgentMessage) -> None:
        """Lost where it is not open, or breaks: `hello` has to say what must not be lost."""
        if self._outbox is not None:
            self._outbox.put_nowait(message)

    def follow(self, order: pb.Follow) -> None:
        """Go through this leader from now on, and let that observer hear the heartbeats. Earlier orders are over."""
        if order.term < self._term:
            return
        self._term = order.term
        leader, observer = (Place(way.address, way.server_name) for way in (order.leader, order.observer))
        if leader != self._leader:
            self._leader = leader
            self._is_turned.set()
        if observer != self._observer:
            self._observer = observer
            self._stop_observing()
            if observer != NOWHERE:
                self._observing = asyncio.create_task(self._observed(observer))

    async def run(self, stopped: asyncio.Event) -> None:
        """Attached, as far as it can be, until it is stopped."""
        present: _Way | None = None
        try:
            while not stopped.is_set():
                self._is_turned.clear()
                way = self._next()
                if way is not None:
                    present = await self._turn(way, present, stopped)
                    await _first(present.task, self._is_turned, stopped)
                    if not present.task.done():
                        continue  # turned: this stream goes on until the next one is welcome
                    if not present.task.cancelled():
                        present.task.result()
                    if present.place == self._leader:
                        self._leader = NOWHERE
                    present = None
                await _first(None, stopped, self._is_turned, seconds=RECONNECT_SECONDS)
        finally:
            self._stop_observing()
            if present is not None:
                present.task.cancel()
                await asyncio.gather(present.task, return_exceptions=True)

    # ------------------------------------------------------------------ the way for everything

    def _next(self) -> _Way | None:
        """That is to be gone now; None where nobody has said where the coordinator is."""
        if self._leader != NOWHERE:
            return _Way(self._leader, is_led=True)
        coordinator = announced(self._folder)
        return None if coordinator is None else _Way(Place(coordinator.address, coordinator.server_name), is_led=False)

    async def _turn(self, way: _Way, before: _Way | None, stopped: asyncio.Event) -> _Way:
        """Go `way`; the way there is then. That is the one before where nobody can be reached on this one; where somebody
        was reached but did not answer, it is neither."""
        way.task = asyncio.create_task(self._attached(way, reach_first=way.is_led or before is not None))
        seconds = WELCOME_SECONDS if way.is_led else None
        try:
            await _first(way.task, way.welcome, stopped, self._is_turned, seconds=seconds)
        except asyncio.CancelledError:
            way.task.cancel()
            raise
        if way.is_led and not way.welcome.is_set():
            way.task.cancel()
            await asyncio.wait([way.task])
            if self._leader == way.place:
                self._leader = NOWHERE
        if before is None:
            return way
        if not way.has_spoken and not before.task.done():
            way.task.cancel()
            return before
        before.task.cancel()
        return way

    async def _attached(self, way: _Way, *, reach_first: bool) -> None:
        """Until the stream ends. Nothing is said there before it is reached."""
        outbox = Outbox()
        try:
            async with self._channel(way.place) as channel:
                if reach_first:
                    async with asyncio.timeout(REACH_SECONDS):
                        await channel.channel_ready()
                outbox.put_nowait(pb.AgentMessage(hello=self._hello()))
                self._outbox = outbox  # all that follows goes after this hello, and not by an earlier stream
                way.has_spoken = True
                self._begins()
                async with _stream(channel, outbox, self._beat(outbox)) as stream:
                    async for message in stream:
                        if message.HasField("refused") and message.host in ("", self._host):
                            logger.info("refused by way of %s: %s", way.place.address, message.refused.reason)
                            return
                        way.welcome.set()
                        self._obey(message)
        except (grpc.aio.AioRpcError, OSError, tls.Damaged) as error:
            logger.info("the way to the coordinator by %s is gone: %s", way.place.address, error)
        finally:
            if self._outbox is outbox:
                self._outbox = None
                self._ends()

    async def _beat(self, outbox: Outbox) -> None:
        while True:
            outbox.put_nowait(pb.AgentMessage(beat=self._make_beat()))
            await asyncio.sleep(BEAT_SECONDS)

    # ------------------------------------------------------------------ the way for heartbeats

    async def _observed(self, place: Place) -> None:
        """Again and again, until it is cancelled. The observer may say whom to follow."""
        while True:
            outbox = Outbox()
            hello = pb.HostHello(host=self._host, heartbeats_only=True)
            outbox.put_nowait(pb.AgentMessage(hello=hello))
            try:
                async with self._channel(place) as channel, _stream(channel, outbox, self._show_life(outbox)) as stream:
                    async for message in stream:
                        if message.HasField("follow"):
                            self._obey(message)
            except (grpc.aio.AioRpcError, OSError, tls.Damaged) as error:
                logger.info("the observer at %s is gone: %s", place.address, error)
            except Exception:
                logger.exception("heartbeats to the observer at %s cannot be sent; trying again", place.address)
            await asyncio.sleep(OBSERVER_SECONDS)

    @staticmethod
    async def _show_life(outbox: Outbox) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            outbox.put_nowait(pb.AgentMessage(seen=pb.Seen()))

    # ------------------------------------------------------------------ streams

    def _channel(self, place: Place) -> grpc.aio.Channel:
        if not place.server_name:
            return grpc.aio.insecure_channel(place.address, options=CHANNEL_OPTIONS)
        credentials = tls.channel_credentials(tls.tls_folder(self._folder), tls.agent_file(self._host))
        options = [*CHANNEL_OPTIONS, *tls.server_is(place.server_name)]
        return grpc.aio.secure_channel(place.address, credentials, options=options)

    def _stop_observing(self) -> None:
        if self._observing is not None:
            self._observing.cancel()
            self._observing = None


@contextlib.asynccontextmanager
async def _stream(channel: grpc.aio.Channel, outbox: Outbox, beating: Coroutine[Any, Any, None]) -> AsyncIterator[Stream]:
    """On which everything in `outbox` goes, and what `beating` puts into it."""
    beats = asyncio.create_task(beating)
    stream = rpc.ControlStub(channel).Attach(_outgoing(outbox))
    try:
        yield stream
    finally:
        stream.cancel()
        beats.cancel()


async def _outgoing(outbox: Outbox) -> AsyncIterator[pb.AgentMessage]:
    while True:
        yield await outbox.get()


async def _first(stream: asyncio.Task[None] | None, *events: asyncio.Event, seconds: float | None = None) -> None:
    """Until the stream has ended or one of the events is set; at most for so long."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        ends = waiting if stream is None else [stream, *waiting]
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
