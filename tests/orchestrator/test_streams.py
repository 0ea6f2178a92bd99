"""GM-4: which hosts hang on which stream, and what goes out on it."""

from __future__ import annotations

import pytest
from quantarion.v1 import control_pb2 as pb

from orchestrator.streams import HostStream, Streams


def sent(stream: HostStream) -> list[pb.CoordinatorMessage]:
    found = []
    while not stream.outbox.empty():
        message = stream.outbox.get_nowait()
        assert message is not None
        found.append(message)
    return found


@pytest.fixture
def streams() -> Streams:
    return Streams()


def test_gm4_a_leader_is_told_for_which_host_of_its_group_a_message_is(streams: Streams) -> None:
    leader = HostStream("host-1")
    for number in (1, 2):
        streams.attach(f"host-{number}", leader, 100 + number)
        streams.post(f"host-{number}", pb.CoordinatorMessage(host_test=pb.HostTest()))
    assert [message.host for message in sent(leader)] == ["", "host-2"]
    assert [streams.agent_pid(host) for host in ("host-1", "host-2", "host-3")] == [101, 102, 0]


def test_gm4_a_directive_goes_out_once_on_each_stream(streams: Streams) -> None:
    leader, alone = HostStream("host-1"), HostStream("host-4")
    for host, stream in (("host-1", leader), ("host-2", leader), ("host-3", leader), ("host-4", alone)):
        streams.attach(host, stream, 1)
    directive = pb.Directive(configure=b"a plan")
    streams.direct(directive, [("host-1", "a"), ("host-4", "d"), ("host-3", "c"), ("host-9", "nobody")])
    ((first,), (second,)) = sent(leader), sent(alone)
    assert (list(first.directive.workers), list(second.directive.workers)) == (["a", "c"], ["d"])
    assert first.directive.configure == second.directive.configure == b"a plan"
    assert list(directive.workers) == []


def test_gm4_a_host_hangs_on_the_stream_that_it_has_attached_by_last(streams: Streams) -> None:
    leader, own = HostStream("host-1"), HostStream("host-2")
    streams.attach("host-1", leader, 1)
    streams.attach("host-2", leader, 2)
    streams.attach("host-2", own, 2)
    assert streams.carries(own, "host-2") and not streams.carries(leader, "host-2")
    assert (streams.hosts(leader), streams.hosts(own)) == (["host-1"], ["host-2"])
    streams.post("host-2", pb.CoordinatorMessage(welcome=pb.Welcome(incarnation=1)))
    assert sent(leader) == [] and [message.host for message in sent(own)] == [""]


def test_what_is_for_a_host_that_is_away_is_not_sent(streams: Streams) -> None:
    stream = HostStream("host-1")
    streams.attach("host-1", stream, 1)
    streams.detach("host-1")
    streams.post("host-1", pb.CoordinatorMessage(host_test=pb.HostTest()))
    streams.direct(pb.Directive(exit=pb.Exit(reason="over")), [("host-1", "a")])
    assert sent(stream) == [] and streams.hosts(stream) == [] and streams.agent_pid("host-1") == 0
