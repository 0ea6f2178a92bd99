"""The agent that leads a group: other agents attach by its stream, or have it hear their heartbeats (GM-4, GM-18).

It hands on and decides nothing. What its followers say goes to the coordinator in the order in which each has said it; what
the coordinator says goes to the follower that it is for. Where the leader's own stream ends, its followers' end as well:
they attach again by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc

from workers import tls

logger = logging.getLogger("quantarion.agent")

Context = grpc.aio.ServicerContext[Any, Any]

GATHER_SECONDS = 0.1
"""That heartbeats wait for others. Whatever else comes goes on at once, and takes them along."""

LEAVE_SECONDS = 5.0
"""For hosts to go elsewhere when another leads them."""

MOST_BYTES = 4 << 20
"""In one message to the coordinator, which takes twice as many; of one follower, half as many."""

SERVER_OPTIONS = [("grpc.max_receive_message_length", MOST_BYTES // 2), ("grpc.http2.max_ping_strikes", 0)]


@dataclass(eq=False)
class Follower:
    """The stream of another host's agent: what is to go out on it, None to end it; and its ranks, as far as it says."""

    host: str
    heartbeats_only: bool
    outbox: asyncio.Queue[pb.CoordinatorMessage | None] = field(default_factory=asyncio.Queue)
    workers: set[str] = field(default_factory=set)

    def note(self, message: pb.AgentMessage) -> None:
        """Which ranks it has."""
        match message.WhichOneof("body"):
            case "hello":
                self.workers = {up.worker for up in message.hello.workers}
            case "worker_up":
                self.workers.add(message.worker_up.worker)
            case "worker_exit":
                self.workers.discard(message.worker_exit.worker)


class Leading(rpc.ControlServicer):
    """Of the agent of `host`, on its event loop.

    Args:
        address: IP address that other hosts reach this one by.
        job_folder: the job's; beside it lie its certificates.
        tell: hands a message to the coordinator.
        is_open: whether that has a way to it.
    """

    def __init__(
        self,
        host: str,
        address: str,
        job_folder: Path,
        tell: Callable[[pb.AgentMessage], None],
        is_open: Callable[[], bool],
    ) -> None:
        self._host, self._address, self._folder = host, address, job_folder
        self._tell, self._is_open = tell, is_open
        self._may_attach: frozenset[str] = frozenset()
        self._may_be_heard: frozenset[str] = frozenset()
        self._followers: dict[tuple[str, bool], Follower] = {}
        self._gathered: list[pb.AgentMessage] = []
        self._size = 0  # of what is gathered, bytes
        self._timer: asyncio.TimerHandle | None = None
        self._one_at_a_time = asyncio.Lock()
        self._server: grpc.aio.Server | None = None
        self._port = 0
        self._job = ""  # its name, where agents show certificates

    async def lead(self, order: pb.Lead) -> None:
        """Let these hosts in from now on, and no others. Where there are any, the coordinator is told where; where there
        are none the streams of those that are in end, after a time to find another way."""
        self._may_attach, self._may_be_heard = frozenset(order.hosts), frozenset(order.observed)
        if not self._may_attach and not self._may_be_heard:
            asyncio.get_running_loop().call_later(LEAVE_SECONDS, self._let_strangers_go)
            return
        async with self._one_at_a_time:
            try:
                await self._listen(order.job)
            except (OSError, RuntimeError, tls.Damaged) as error:
                logger.warning("%s cannot lead: %s", self._host, error)
            else:
                self._tell(pb.AgentMessage(leads=pb.Leads(term=order.term, port=self._port)))

    def hand_on(self, message: pb.CoordinatorMessage) -> bool:
        """Give followers what is for them. True where nothing of it is for this host."""
        if message.host and message.host != self._host:
            follower = self._followers.get((message.host, False)) or self._followers.get((message.host, True))
            if follower is not None:
                message.ClearField("host")
                follower.outbox.put_nowait(message)
            return True
        if message.HasField("directive"):
            for follower in self._followers.values():
                if theirs := [worker for worker in message.directive.workers if worker in follower.workers]:
                    part = pb.CoordinatorMessage(directive=message.directive)
                    del part.directive.workers[:]
                    part.directive.workers.extend(theirs)
                    follower.outbox.put_nowait(part)
        return False

    def let_go(self) -> None:
        """The way to the coordinator is gone, or is another: the followers look for their own."""
        for follower in self._followers.values():
            follower.outbox.put_nowait(None)
        self._gathered.clear()
        self._size = 0

    def _let_strangers_go(self) -> None:
        for follower in self._followers.values():
            if not self._takes(follower.host, follower.heartbeats_only):
                follower.outbox.put_nowait(None)

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    # ------------------------------------------------------------------ followers

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Context
    ) -> AsyncIterator[pb.CoordinatorMessage]:
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an agent speaks HostHello first")
            return
        host, heartbeats_only = first.hello.host, first.hello.heartbeats_only
        if not self._is_open():
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._host} has no way to the coordinator itself")
            return
        if not self._is(host, context) or not self._takes(host, heartbeats_only):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{self._host} does not lead {host[:64]!r}")
            return
        follower = Follower(host, heartbeats_only)
        before = self._followers.get((host, heartbeats_only))
        if before is not None:
            before.outbox.put_nowait(None)
        self._followers[host, heartbeats_only] = follower
        if not heartbeats_only:
            follower.note(first)
            self._gather(host, first)
        reader = asyncio.create_task(self._read(follower, request_iterator))
        try:
            while (message := await follower.outbox.get()) is not None:
                yield message
        finally:
            reader.cancel()
            if self._followers.get((host, heartbeats_only)) is follower:
                del self._followers[host, heartbeats_only]
                if not heartbeats_only:
                    self._gather(host, pb.AgentMessage(host_away=pb.HostAway()))

    async def _read(self, follower: Follower, messages: AsyncIterator[pb.AgentMessage]) -> None:
        try:
            async for message in messages:
                if follower.heartbeats_only:
                    self._gather(follower.host, pb.AgentMessage(seen=pb.Seen()))
                elif message.WhichOneof("body") in ("hello", "gathered", "seen", "leads"):
                    return  # it speaks for its own host, and has said which that is
                else:
                    follower.note(message)
                    self._gather(follower.host, message)
        finally:
            follower.outbox.put_nowait(None)

    def _takes(self, host: str, heartbeats_only: bool) -> bool:
        return host in (self._may_be_heard if heartbeats_only else self._may_attach)

    def _is(self, host: str, context: Context) -> bool:
        """Whether the agent at the other end has the certificate of that host; without TLS nobody has one."""
        if not self._job:
            return True
        names: Iterable[bytes] = context.auth_context().get("x509_subject_alternative_name", ())
        found = [name for each in names if (name := each.decode()).startswith(tls.SCHEME)]
        return found == [tls.agent_uri(self._job, host)]

    # ------------------------------------------------------------------ to the coordinator

    def _gather(self, host: str, message: pb.AgentMessage) -> None:
        message.host = host
        size = message.ByteSize()
        if self._size + size > MOST_BYTES:
            self._flush()
        self._gathered.append(message)
        self._size += size
        if message.WhichOneof("body") not in ("beat", "seen", "hello"):
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._gathered:
            gathered, self._gathered, self._size = self._gathered, [], 0
            self._tell(pb.AgentMessage(gathered=pb.Gathered(messages=gathered)))

    # ------------------------------------------------------------------ the door

    async def _listen(self, job: str) -> None:
        """Once. `job` is its name where agents show certificates."""
        if self._server is not None:
            return
        self._job = job
        server = grpc.aio.server(options=SERVER_OPTIONS)
        rpc.add_ControlServicer_to_server(self, server)
        door = f"{self._address}:0"
        self._port = server.add_secure_port(door, self._credentials()) if job else server.add_insecure_port(door)
        await server.start()
        self._server = server

    def _credentials(self) -> grpc.ServerCredentials:
        """The certificates that lie there when somebody connects."""
        present = self._certificates()

        def configuration() -> grpc.ServerCertificateConfiguration:
            nonlocal present
            with contextlib.suppress(OSError, tls.Damaged):  # then those that it has
                found = self._certificates()
                tls.split(found[0])
                present = found
            return grpc.ssl_server_certificate_configuration([tls.split(present[0])], present[1])

        return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=True)

    def _certificates(self) -> tuple[bytes, bytes]:
        """Key and certificate of this agent, and the authorities that are trusted."""
        folder = tls.tls_folder(self._folder)
        return (folder / tls.agent_file(self._host)).read_bytes(), (folder / tls.TRUSTED).read_bytes()
