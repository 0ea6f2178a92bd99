"""The gRPC services on the coordinator's port: the agents' streams, and what operators ask."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2 as op
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator.admission import Admission, Context
from orchestrator.commands import Commands
from orchestrator.peers import Role
from orchestrator.streams import HostStream

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator

logger = logging.getLogger("quantarion.coordinator")

WATCH_SECONDS = 0.1
"""Between two looks at events.jsonl."""

SERVER_OPTIONS = [("grpc.max_receive_message_length", 8 << 20), ("grpc.http2.max_ping_strikes", 0)]
"""A larger message ends its stream with RESOURCE_EXHAUSTED before it is read; what is allowed is a quarter of that. Agents
ask every second whether the coordinator is there (`workers.uplink.CHANNEL_OPTIONS`), also when it has read nothing for a
while; by default gRPC would end all their streams then."""


class ControlService(rpc.ControlServicer):
    """Streams of agents."""

    def __init__(self, coordinator: Coordinator, admission: Admission) -> None:
        self._coordinator, self._admission = coordinator, admission

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Context
    ) -> AsyncIterator[pb.CoordinatorMessage]:
        await self._admission.admit(context, Role.AGENT)
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an agent speaks HostHello first")
            return
        stream = HostStream(first.hello.host)
        await self._admission.admit(context, Role.AGENT, stream.host)
        if (refused := self._coordinator.refuses(stream.host, first, first=True)) is not None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the HostHello of {stream.host} {refused}")
            return
        if (reason := self._coordinator.attach(first.hello, stream)) is not None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{stream.host} {reason}")
            return
        reader = asyncio.create_task(self._read(stream, request_iterator))
        try:
            while (message := await stream.outbox.get()) is not None:
                yield message
        finally:
            reader.cancel()
            with self._coordinator.together():
                for host in self._coordinator.streams.hosts(stream):
                    self._coordinator.detach(host, stream)

    async def _read(self, stream: HostStream, messages: AsyncIterator[pb.AgentMessage]) -> None:
        try:
            async for message in messages:
                if message.HasField("gathered"):
                    self._hear_group(stream, message.gathered)
                else:
                    self._coordinator.hear(stream.host, message)
        except Exception:
            logger.exception("the stream of %s broke", stream.host)
        finally:
            stream.outbox.put_nowait(None)

    def _hear_group(self, stream: HostStream, gathered: pb.Gathered) -> None:
        """The agent of this stream leads a group. What comes for a host that hangs on another stream by now is stale."""
        coordinator = self._coordinator
        with coordinator.together():
            for message in gathered.messages:
                if message.HasField("hello"):
                    host = message.host
                    if (reason := self._turns_away(stream, message)) is not None:
                        stream.send(host, pb.CoordinatorMessage(refused=pb.Refused(reason=reason)))
                elif message.HasField("seen"):
                    if coordinator.leaders.observes(stream.host, message.host):
                        coordinator.heard_of(message.host)
                elif not coordinator.streams.carries(stream, message.host):
                    continue
                elif message.HasField("host_away"):
                    coordinator.detach(message.host, stream)
                else:
                    coordinator.hear(message.host, message)

    def _turns_away(self, leader: HostStream, message: pb.AgentMessage) -> str | None:
        """Why the host of a HostHello is not attached by the stream of its leader; None where it is."""
        host = message.host
        if message.hello.host != host or host == leader.host:
            return f"{message.hello.host[:64]!r} says hello in the name of {host[:64]!r}"
        appointed = self._coordinator.leaders.may_attach(leader.host, host)
        if not self._admission.may_lead(leader.host, host, appointed=appointed):
            return f"{leader.host} does not lead {host}"
        if (refused := self._coordinator.refuses(host, message, first=True)) is not None:
            return f"the HostHello of {host} {refused}"
        reason = self._coordinator.attach(message.hello, leader)
        return None if reason is None else f"{host} {reason}"


class OperatorService(rpc.OperatorServicer):
    """Questions and commands of people."""

    def __init__(self, commands: Commands, events: Path, ended: asyncio.Event, admission: Admission) -> None:
        self._commands, self._events, self._ended, self._admission = commands, events, ended, admission

    async def Status(self, request: op.StatusRequest, context: Context) -> op.StatusReply:
        await self._admission.admit(context, Role.OPERATOR)
        return self._commands.status(request.driver)

    async def Stop(self, request: op.StopRequest, context: Context) -> op.StopReply:
        await self._admission.admit(context, Role.OPERATOR)
        return self._commands.stop(request)

    async def Drain(self, request: op.HostRequest, context: Context) -> op.OperatorReply:
        await self._admission.admit(context, Role.OPERATOR)
        return self._commands.change("drain", request)

    async def Evict(self, request: op.HostRequest, context: Context) -> op.OperatorReply:
        await self._admission.admit(context, Role.OPERATOR)
        return self._commands.change("evict", request)

    async def Readmit(self, request: op.HostRequest, context: Context) -> op.OperatorReply:
        await self._admission.admit(context, Role.OPERATOR)
        return self._commands.change("readmit", request)

    async def Scale(self, request: op.ScaleRequest, context: Context) -> op.OperatorReply:
        await self._admission.admit(context, Role.OPERATOR)
        return self._commands.change("scale", request)

    async def Checkpoint(self, request: op.CheckpointRequest, context: Context) -> op.OperatorReply:
        await self._admission.admit(context, Role.OPERATOR)
        return self._commands.change("checkpoint", request)

    async def Watch(self, request: op.WatchRequest, context: Context) -> AsyncIterator[op.Event]:
        await self._admission.admit(context, Role.OPERATOR)
        with self._events.open("rb") as events:
            if request.from_now:
                events.seek(0, os.SEEK_END)
            rest = b""
            while True:
                is_over = self._ended.is_set()
                rest += events.read()
                *lines, rest = rest.split(b"\n")
                for each in lines:
                    yield op.Event(json=each.decode())
                if is_over:
                    return
                await asyncio.sleep(WATCH_SECONDS)
