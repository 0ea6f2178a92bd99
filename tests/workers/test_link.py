"""A rank's end of the channel to its agent, against a real socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from quantarion.v1 import control_pb2 as pb

from workers import packets
from workers.link import AgentLink
from workers.page import Page


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[AgentLink, socket.socket]]:
    """The rank's, connected, and the agent's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / "agent.sock"))
        listening.listen()
        page = Page(tmp_path / "w.page", create=True)
        link = AgentLink(tmp_path / "agent.sock", page, lambda: pb.WorkerUp(worker="w"))
        assert list(link.poll()) == []
        agent, _ = listening.accept()
        with agent:
            yield link, agent


def test_ep7_what_comes_before_the_bell_is_heard_as_soon_as_it_was_waited_for(
    ends: tuple[AgentLink, socket.socket],
) -> None:
    """Otherwise a wait ends at once, again and again, until the next look at the socket."""
    link, agent = ends
    list(link.poll())
    agent.send(pb.Directive(exit=pb.Exit(reason="over")).SerializeToString())
    link.wait(10.0)
    assert link.rung
    assert [directive.exit.reason for directive in link.poll()] == ["over"]


def test_ep7_a_directive_of_twenty_thousand_members_is_heard(ends: tuple[AgentLink, socket.socket]) -> None:
    """It is larger than the socket's buffer may be."""
    link, agent = ends
    members = [
        pb.Member(worker=f"w{i}-0123456789ab", host=f"host-{i}", peer_address=f"10.0.{i >> 8}.{i & 255}")
        for i in range(20_000)
    ]
    directive = pb.Directive(configure=pb.Configure(members=members).SerializeToString())
    packets.send(agent, directive.SerializeToString())
    assert list(link.poll()) == [directive]


def test_ep7_a_wait_for_nothing_ends_in_time_and_rings_no_bell(ends: tuple[AgentLink, socket.socket]) -> None:
    link, _ = ends
    begun = time.monotonic()
    list(link.poll())
    link.wait(0.01)
    assert not link.rung or time.monotonic() - begun > 0.05


def test_gm40_a_rank_knows_the_process_at_the_other_end(ends: tuple[AgentLink, socket.socket]) -> None:
    link, agent = ends
    assert link.agent_pid == os.getpid()  # of who listens, which is this test
    agent.close()
    list(link.poll())
    assert link.agent_pid == 0
