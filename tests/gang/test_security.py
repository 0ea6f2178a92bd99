"""A gang of real processes whose coordinator asks for certificates."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator import operator_commands, status
from orchestrator.certificates import Certificates
from orchestrator.errors import ExitCode
from tests.gang.harness import Gang
from workers import tls

StartGang = Callable[..., Gang]


def test_a_gang_trains_on_while_its_certificates_are_replaced(gang: StartGang) -> None:
    """And while its agents and its coordinator come and go; what a stranger to a host claims changes nothing."""
    g = gang(security={"plaintext": "never"})
    g.wait_for_step(10)
    before = g.members()
    _claim_to_be(g, "host-1", shown="host-2")
    (event,) = g.wait_for("the refusal", lambda: g.events("peer_refused"))
    assert (event["check"], event["times"]) == ("identity", 1) and g.members() == before
    made = Certificates(g.folder, "gang").rotate(time.time(), authority=True, at_once=True)
    assert [str(peer) for peer in made] == ["coordinator", "operator", "agent of host-1", "agent of host-2"]
    g.kill_agent("host-1")
    g.wait_for("the agent", lambda: [each for each in g.events("agent_back") if each["host"] == "host-1"])
    g.kill_coordinator()
    g.wait_for("its successor", lambda: len(g.events("coordinator_started")) == 2)
    assert operator_commands.scale("gang", 3, g.storage) == ExitCode.DONE
    g.wait_for_step(g.step() + 10)
    g.check()
    assert len(g.events("generation")) == 1 and g.events("host_lost") == []


def _claim_to_be(g: Gang, host: str, *, shown: str) -> None:
    """Attach as the agent of `host` with the certificate of another."""
    coordinator = status.read_coordinator(g.folder)
    assert coordinator is not None and coordinator.server_name == "coordinator.gang"
    credentials = tls.channel_credentials(tls.tls_folder(g.folder), tls.agent_file(shown))
    options = tls.server_is(coordinator.server_name)
    hello = pb.AgentMessage(hello=pb.HostHello(host=host))
    with grpc.secure_channel(coordinator.address, credentials, options) as channel, pytest.raises(grpc.RpcError) as refusal:
        list(rpc.ControlStub(channel).Attach(iter([hello]), timeout=30.0))
    assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_coordinator_that_can_let_nobody_in_says_so(gang: StartGang, tmp_path: Path) -> None:
    folder = tmp_path / "0" / ".gang.tls"
    folder.parent.mkdir()
    folder.touch()  # where a folder should be
    g = gang(security={"plaintext": "never"})
    (event,) = g.wait_for("the end", lambda: g.events("failed"))
    assert (event["exit_code"], str(folder) in event["message"]) == (ExitCode.STORAGE, True)
    g.wait_for("its record", lambda: status.ended(g.folder) == ExitCode.STORAGE)
    assert status.recorded_end(g.folder) == event and status.read_coordinator(g.folder) is None
