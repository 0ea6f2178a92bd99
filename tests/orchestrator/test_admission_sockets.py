"""Who is let in to a coordinator, and who is refused: real gRPC servers and clients, real sockets, real certificates."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from quantarion.v1 import operator_pb2 as op
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator import gate
from orchestrator.authority import DAY, Authority, Pair
from orchestrator.certificates import AUTHORITY, OVERLAP_SECONDS, file_of
from orchestrator.peers import COORDINATOR, OPERATOR, Peer, Role
from tests.orchestrator.fake_operator import FakeOperator, served
from tests.orchestrator.guarded import JOB, PATIENCE_SECONDS, Attached, Fields, Guarded, ask, guarded, secure
from workers import tls

HOST_1, HOST_2 = Peer(Role.AGENT, "host-1"), Peer(Role.AGENT, "host-2")
OPERATORS = [method.name for method in op.DESCRIPTOR.services_by_name["Operator"].methods]


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Guarded]:
    """A coordinator's port that asks for certificates."""
    with guarded(tmp_path) as running:
        yield running


def own(port: Guarded) -> Authority:
    """The authority of the job."""
    return Authority(Pair(*tls.split((port.certificates.folder / AUTHORITY).read_bytes())))


def credentials(port: Guarded, pair: Pair | None) -> grpc.ChannelCredentials:
    """Of a client that trusts the job's authority and shows the certificate in `pair`, or none."""
    trusted = (port.certificates.folder / tls.TRUSTED).read_bytes()
    return grpc.ssl_channel_credentials(trusted, *((pair.key, pair.certificate) if pair is not None else ()))


def refused(port: Guarded) -> Fields:
    """The next event of a peer that was turned away."""
    return port.refused.get(timeout=PATIENCE_SECONDS)


def test_an_operator_asks_and_an_agent_attaches(port: Guarded) -> None:
    assert port.ask(tls.OPERATOR) == JOB
    with port.connected(tls.agent_file("host-2")) as channel:
        agent = Attached(channel, "host-2")
        assert agent.welcome() == 7 and port.behind.attached == ["host-2"]
        agent.close()
        assert port.behind.left.get(timeout=PATIENCE_SECONDS) == "host-2"
    assert port.refused.empty() and port.behind.asked == ["Status"]


def _nothing(port: Guarded) -> None:
    return None


def _expired(port: Guarded) -> Pair:
    return own(port).issue(OPERATOR, JOB, time.time() - 10 * DAY, 9 * DAY)


def _not_valid_yet(port: Guarded) -> Pair:
    return own(port).issue(OPERATOR, JOB, time.time() + 2 * DAY, DAY)


def _of_another_authority(port: Guarded) -> Pair:
    return Authority.new(JOB, time.time()).issue(OPERATOR, JOB, time.time(), DAY)


def _of_the_coordinator(port: Guarded) -> Pair:
    return own(port).issue(COORDINATOR, JOB, time.time(), DAY)


def _of_another_job(port: Guarded) -> Pair:
    return own(port).issue(OPERATOR, "other", time.time(), DAY)


@pytest.mark.parametrize(
    ("shown", "check"),
    [
        (_nothing, "certificate"),
        (_expired, "expiry"),
        (_not_valid_yet, "expiry"),
        (_of_another_authority, "authority"),
        (_of_the_coordinator, "purpose"),
        (_of_another_job, "identity"),
    ],
)
def test_who_shows_no_good_certificate_is_refused_and_counted(
    port: Guarded, shown: Callable[[Guarded], Pair | None], check: str
) -> None:
    with secure(port.entrance.address, credentials(port, shown(port))) as channel:
        assert ask(channel) == "UNAVAILABLE"
    event = refused(port)
    assert (event["check"], event["address"], event["times"]) == (check, "127.0.0.1", 1)
    assert port.behind.asked == [] and port.behind.attached == []
    assert port.ask(tls.OPERATOR) == JOB


def test_plaintext_is_refused_and_counted(port: Guarded) -> None:
    with grpc.insecure_channel(port.entrance.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        assert ask(channel) == "UNAVAILABLE"
    assert refused(port)["check"] == "tls"
    assert port.behind.asked == []


def test_who_goes_round_the_gate_has_no_certificate(port: Guarded) -> None:
    """The gRPC server behind it listens on loopback, where whoever is on the machine may connect."""
    (behind,) = port.ports
    with grpc.insecure_channel(f"127.0.0.1:{behind}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        assert ask(channel) == "UNAUTHENTICATED"
        assert Attached(channel, "host-1").refusal()[0] == "UNAUTHENTICATED"
    assert refused(port)["check"] == "certificate"
    assert port.behind.asked == [] and port.behind.attached == []


@pytest.mark.parametrize("method", OPERATORS)
def test_an_agent_may_not_ask_what_operators_ask(port: Guarded, method: str) -> None:
    requests = {"Status": op.StatusRequest, "Stop": op.StopRequest, "Scale": op.ScaleRequest, "Watch": op.WatchRequest}
    with port.connected(tls.agent_file("host-1")) as channel, pytest.raises(grpc.RpcError) as refusal:
        answer = getattr(rpc.OperatorStub(channel), method)(
            requests.get(method, op.HostRequest)(), timeout=PATIENCE_SECONDS
        )
        list(answer)  # of a stream
    assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "the check 'role'" in str(refusal.value.details()) and "agent of host-1" in str(refusal.value.details())
    assert refused(port)["check"] == "role" and port.behind.asked == []


def test_an_operator_may_not_attach(port: Guarded) -> None:
    with port.connected(tls.OPERATOR) as channel:
        code, details = Attached(channel, "host-1").refusal()
    assert code == "PERMISSION_DENIED" and "the check 'role'" in details
    assert refused(port)["check"] == "role" and port.behind.attached == []


def test_an_agent_that_claims_to_be_another_is_refused_and_nothing_has_changed(port: Guarded) -> None:
    with port.connected(tls.agent_file("host-1")) as channel:
        rightful = Attached(channel, "host-1")
        assert rightful.welcome() == 7
        with port.connected(tls.agent_file("host-2")) as other:
            code, details = Attached(other, "host-1").refusal()
        assert code == "PERMISSION_DENIED"
        assert details == (
            "refused by the check 'identity': the certificate is that of the agent of host-2, but it says that it is the "
            "agent of 'host-1'"
        )
        event = refused(port)
        assert (event["check"], event["address"], event["times"]) == ("identity", "127.0.0.1", 1)
        assert port.behind.attached == ["host-1"] and port.behind.left.empty()
        rightful.close()


def test_gm4_an_agent_leads_no_host_that_it_was_not_appointed_for(port: Guarded) -> None:
    with port.connected(tls.agent_file("host-1")) as channel:
        leader = Attached(channel, "host-1")
        assert leader.welcome() == 7
        leader.gather("host-2")
        answer = leader.next()
        assert (answer.host, answer.WhichOneof("body")) == ("host-2", "refused")
        event = refused(port)
        assert event["check"] == "identity" and "'host-2'" in str(event["message"])
        assert port.behind.attached == ["host-1"]
        leader.close()


def test_gm4_an_agent_leads_a_host_that_it_was_appointed_for(port: Guarded) -> None:
    with port.connected(tls.agent_file("host-1")) as channel:
        port.behind.leaders.led.add(("host-1", "host-2"))
        leader = Attached(channel, "host-1")
        assert leader.welcome() == 7
        leader.gather("host-2")
        answer = leader.next()
        assert (answer.host, answer.WhichOneof("body")) == ("host-2", "welcome")
        assert port.behind.attached == ["host-1", "host-2"]
        leader.close()


def test_who_connects_and_says_nothing_is_not_waited_for(port: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HANDSHAKE_SECONDS", 0.2)
    with _silent(port) as silent:
        _until_closed(silent)
    assert refused(port)["check"] == "handshake"


def test_only_so_many_shake_hands_at_once(port: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_HANDSHAKES", 1)
    monkeypatch.setattr(gate, "HANDSHAKE_SECONDS", PATIENCE_SECONDS)
    with _silent(port), _silent(port) as second:
        _until_closed(second)
        assert refused(port)["check"] == "room"


@contextmanager
def _silent(port: Guarded) -> Iterator[socket.socket]:
    host, _, number = port.entrance.address.rpartition(":")
    with socket.create_connection((host, int(number)), timeout=PATIENCE_SECONDS) as connection:
        yield connection


def _until_closed(connection: socket.socket) -> None:
    """By the other side, whatever it says before."""
    with suppress(ConnectionResetError):
        while connection.recv(4096):
            pass


def test_a_flood_is_one_event_now_and_one_with_the_count_at_the_end(tmp_path: Path) -> None:
    with guarded(tmp_path) as port:
        for _ in range(20):
            with _silent(port) as caller:
                caller.sendall(b"GET / HTTP/1.1\r\n\r\n")
                _until_closed(caller)
        assert refused(port)["times"] == 1
        assert port.refused.empty()
    assert port.refused.get_nowait() == {
        "check": "tls",
        "address": "127.0.0.1",
        "message": "it does not speak TLS",
        "times": 19,
    }


# ---------------------------------------------------------------------- who stands in the coordinator's place


def test_who_speaks_tls_is_not_content_with_plaintext(port: Guarded) -> None:
    impostor = FakeOperator(op.StatusReply(job=JOB))
    operator = tls.channel_credentials(port.certificates.folder, tls.OPERATOR)
    with served(impostor) as address, secure(address, operator) as channel:
        assert ask(channel) == "UNAVAILABLE"
    assert impostor.questions == []


@pytest.mark.parametrize("who", ["agent", "operator", "another job's coordinator", "a coordinator by another authority"])
def test_only_the_coordinator_can_be_the_coordinator(port: Guarded, who: str) -> None:
    now = time.time()
    pair = {
        "agent": lambda: own(port).issue(HOST_1, JOB, now, DAY),
        "operator": lambda: own(port).issue(OPERATOR, JOB, now, DAY),
        "another job's coordinator": lambda: own(port).issue(COORDINATOR, "other", now, DAY),
        "a coordinator by another authority": lambda: Authority.new(JOB, now).issue(COORDINATOR, JOB, now, DAY),
    }[who]()
    impostor = FakeOperator(op.StatusReply(job=JOB))
    operator = tls.channel_credentials(port.certificates.folder, tls.OPERATOR)
    with _impostor(impostor, pair) as address, secure(address, operator) as channel:
        assert ask(channel) == "UNAVAILABLE"
    assert impostor.questions == []


def test_the_real_one_is_believed_at_any_address(port: Guarded) -> None:
    """So that the test before refuses for the certificate's sake."""
    real = FakeOperator(op.StatusReply(job=JOB))
    operator = tls.channel_credentials(port.certificates.folder, tls.OPERATOR)
    pair = own(port).issue(COORDINATOR, JOB, time.time(), DAY)
    with _impostor(real, pair) as address, secure(address, operator) as channel:
        assert ask(channel) == JOB


@contextmanager
def _impostor(operator: FakeOperator, pair: Pair) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    rpc.add_OperatorServicer_to_server(operator, server)
    shown = grpc.ssl_server_credentials([(pair.key, pair.certificate)])
    number = server.add_secure_port("127.0.0.1:0", shown)
    server.start()
    try:
        yield f"127.0.0.1:{number}"
    finally:
        server.stop(None).wait()


# ---------------------------------------------------------------------- new certificates while it runs


@pytest.mark.parametrize("authority", [False, True])
def test_rotated_certificates_are_used_from_the_next_connection_on(port: Guarded, tmp_path: Path, authority: bool) -> None:
    before = _copy(port, tmp_path / "before")
    with port.connected(tls.agent_file("host-1")) as channel:
        agent = Attached(channel, "host-1")
        assert agent.welcome() == 7
        port.certificates.rotate(time.time(), authority=authority)
        port.look()
        assert port.ask(tls.OPERATOR) == JOB
        with port.connected(tls.agent_file("host-2")) as other:
            again = Attached(other, "host-2")
            assert again.welcome() == 7
            again.close()
        assert port.behind.left.get(timeout=PATIENCE_SECONDS) == "host-2" and port.behind.left.empty()
        agent.close()
    assert _shown_by(port) == _pair(port.certificates.folder, COORDINATOR).certificate.decode()
    assert refused(port)["check"] == "certificate"  # we have just shown none
    with secure(port.entrance.address, credentials(port, _pair(before, OPERATOR))) as channel:
        assert ask(channel) == JOB  # the old ones are good until the overlap is over
    assert port.refused.empty()


def test_the_authority_before_is_trusted_until_the_overlap_is_over(port: Guarded, tmp_path: Path) -> None:
    before = _copy(port, tmp_path / "before")
    port.certificates.rotate(time.time(), authority=True)
    port.look(time.time() + OVERLAP_SECONDS + 60.0)
    with secure(port.entrance.address, credentials(port, _pair(before, OPERATOR))) as channel:
        assert ask(channel) == "UNAVAILABLE"
    assert refused(port)["check"] == "authority"
    assert port.ask(tls.OPERATOR) == JOB


def test_what_a_stolen_authority_has_signed_is_cut_off_at_once(port: Guarded, tmp_path: Path) -> None:
    before = _copy(port, tmp_path / "before")
    with port.connected(tls.agent_file("host-1")) as channel:
        agent = Attached(channel, "host-1")
        assert agent.welcome() == 7
        port.certificates.rotate(time.time(), authority=True, at_once=True)
        port.look()
        assert port.behind.left.get(timeout=PATIENCE_SECONDS) == "host-1"
    with port.connected(tls.agent_file("host-1")) as channel:
        again = Attached(channel, "host-1")
        assert again.welcome() == 7
        again.close()
    with secure(port.entrance.address, credentials(port, _pair(before, OPERATOR))) as channel:
        assert ask(channel) == "UNAVAILABLE"
    assert refused(port)["check"] == "authority"


def test_a_connection_ends_with_its_certificate(port: Guarded) -> None:
    with port.connected(tls.agent_file("host-1")) as channel:
        agent = Attached(channel, "host-1")
        assert agent.welcome() == 7
        later = time.time() + 89.9 * DAY
        port.look(later)
        assert port.behind.left.empty()
        port.look(later + DAY)
        assert port.behind.left.get(timeout=PATIENCE_SECONDS) == "host-1"


def test_certificates_that_near_their_end_are_renewed(port: Guarded) -> None:
    file = port.certificates.folder / tls.agent_file("host-1")
    before = file.read_bytes()
    port.look(time.time() + 59 * DAY)
    assert file.read_bytes() == before
    port.look(time.time() + 61 * DAY)
    assert file.read_bytes() != before
    peers = ["coordinator", "operator", "agent of host-1", "agent of host-2"]
    assert port.events == [("certificates_renewed", {"peers": peers})]


def test_damaged_files_change_nothing_while_it_runs(port: Guarded) -> None:
    assert port.ask(tls.OPERATOR) == JOB
    operator = _copy(port, port.folder / "operator")
    (port.certificates.folder / tls.COORDINATOR).write_text("torn")
    assert port.ask(tls.OPERATOR, operator) == JOB
    port.look()
    assert port.events == [("certificates_renewed", {"peers": ["coordinator"]})]
    assert port.ask(tls.OPERATOR) == JOB


def _copy(port: Guarded, folder: Path) -> Path:
    """The certificates as they are."""
    folder.mkdir()
    for path in port.certificates.folder.glob("*.pem"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def _pair(folder: Path, peer: Peer) -> Pair:
    return Pair(*tls.split((folder / file_of(peer)).read_bytes()))


def _shown_by(port: Guarded) -> str:
    """The certificate of the server, in PEM."""
    host, _, number = port.entrance.address.rpartition(":")
    return ssl.get_server_certificate((host, int(number)), timeout=PATIENCE_SECONDS)


# ---------------------------------------------------------------------- where no certificates are asked for


def test_plaintext_on_loopback_asks_nobody_who_he_is(tmp_path: Path) -> None:
    with guarded(tmp_path, plaintext="loopback") as port:
        assert port.entrance.server_name == "" and not port.certificates.folder.exists()
        with grpc.insecure_channel(port.entrance.address) as channel:
            assert ask(channel) == JOB
            agent = Attached(channel, "host-1")
            assert agent.welcome() == 7
            agent.close()
        port.look()
    assert port.events == []
