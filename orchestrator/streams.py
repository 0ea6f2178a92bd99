"""The streams of agents: which hosts hang on which, and what is to go out on each.

Each agent has a stream of its own, or one agent leads a group and its stream carries all of the group's hosts (GM-4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from quantarion.v1 import control_pb2 as pb


@dataclass(eq=False)
class HostStream:
    """Of the agent of `host`: what is to be sent to it; None ends the stream."""

    host: str
    outbox: asyncio.Queue[pb.CoordinatorMessage | None] = field(default_factory=asyncio.Queue)

    def send(self, host: str, message: pb.CoordinatorMessage) -> None:
        """To the agent of `host`, whoever leads it."""
        if host != self.host:
            message.host = host
        self.outbox.put_nowait(message)


@dataclass(frozen=True)
class _Attached:
    stream: HostStream
    agent_pid: int


class Streams:
    """Of all hosts whose agent is there. What is for others is not sent: an agent is told again when it attaches."""

    def __init__(self) -> None:
        self._attached: dict[str, _Attached] = {}
        self._hosts: dict[HostStream, dict[str, None]] = {}
        self._heard_at: dict[str, float] = {}

    def attach(self, host: str, stream: HostStream, agent_pid: int) -> None:
        """From now on it hangs on this one."""
        self.detach(host)
        self._attached[host] = _Attached(stream, agent_pid)
        self._hosts.setdefault(stream, {})[host] = None

    def detach(self, host: str) -> None:
        attached = self._attached.pop(host, None)
        self._heard_at.pop(host, None)
        if attached is not None:
            hosts = self._hosts[attached.stream]
            del hosts[host]
            if not hosts:
                del self._hosts[attached.stream]

    def heard(self, host: str, now: float) -> None:
        """A heartbeat by its stream."""
        self._heard_at[host] = now

    def silent_for(self, host: str, now: float) -> float:
        """Seconds without one; 0 before the first."""
        return now - self._heard_at.get(host, now)

    def of(self, host: str) -> HostStream | None:
        """That it hangs on."""
        attached = self._attached.get(host)
        return None if attached is None else attached.stream

    def carries(self, stream: HostStream, host: str) -> bool:
        """The host hangs on this stream, and not on a later one."""
        attached = self._attached.get(host)
        return attached is not None and attached.stream is stream

    def is_attached(self, host: str) -> bool:
        return host in self._attached

    def is_alone(self, host: str) -> bool:
        """It hangs on a stream of its own."""
        attached = self._attached.get(host)
        return attached is not None and attached.stream.host == host

    def hosts(self, stream: HostStream) -> list[str]:
        """All that hang on it."""
        return list(self._hosts.get(stream, ()))

    def through(self, host: str) -> str:
        """The leader whose stream it hangs on; empty where it has one of its own, or none."""
        attached = self._attached.get(host)
        return "" if attached is None or attached.stream.host == host else attached.stream.host

    def agent_pid(self, host: str) -> int:
        """0 while it has no stream."""
        attached = self._attached.get(host)
        return attached.agent_pid if attached is not None else 0

    def post(self, host: str, message: pb.CoordinatorMessage) -> None:
        attached = self._attached.get(host)
        if attached is not None:
            attached.stream.send(host, message)

    def post_by(self, leader: str, host: str, message: pb.CoordinatorMessage) -> None:
        """To `host`, which hangs on no stream, by that of a leader which hears it."""
        attached = self._attached.get(leader)
        if attached is not None:
            attached.stream.send(host, message)

    def direct(self, directive: pb.Directive, workers: Iterable[tuple[str, str]]) -> None:
        """Once on each stream, for all of the workers that hang on it.

        Args:
            workers: host and name of each.
        """
        by_stream: dict[HostStream, list[str]] = {}
        for host, worker in workers:
            attached = self._attached.get(host)
            if attached is not None:
                by_stream.setdefault(attached.stream, []).append(worker)
        for stream, names in by_stream.items():
            message = pb.CoordinatorMessage(directive=directive)
            message.directive.workers.extend(names)
            stream.outbox.put_nowait(message)
