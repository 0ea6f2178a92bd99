"""CC-9: one link measured over real sockets, and who is let in."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from benchmarks.lab import Lab, can_run
from orchestrator.link_groups import rounds
from orchestrator.probe import Findings
from tests.workers.collectives.test_traffic_lab import enter_namespace
from workers.probe import TOKEN_BYTES, Link, ProbeServer, measure

HERE, THERE = "127.0.0.2", "127.0.0.3"
TOKEN = bytes(range(TOKEN_BYTES))
LIMIT = 20.0  # seconds; far more than it takes


@pytest.fixture
def server() -> Iterator[ProbeServer]:
    made = ProbeServer(THERE, TOKEN, 60.0)
    yield made
    made.close()


def link_to(port: int, token: bytes = TOKEN, limit: float = LIMIT) -> Link:
    return measure((THERE, port), source=HERE, token=token, seconds=0.05, limit=limit)


def test_cc9_a_link_has_a_round_trip_and_a_rate_each_way(server: ProbeServer) -> None:
    for _ in range(2):
        link = link_to(server.port)
        assert 0 < link.round_trip < LIMIT
        assert link.sent > 1e5 and link.received > 1e5


@pytest.mark.parametrize("token", [b"", bytes(TOKEN_BYTES), TOKEN[:-1], b"GET / HTTP/1.1\r\n\r\n"])
def test_cc9_nobody_is_served_without_the_token(token: bytes, server: ProbeServer) -> None:
    with pytest.raises(OSError):
        link_to(server.port, token, limit=2.0)
    with socket.create_connection((THERE, server.port)) as stranger:
        stranger.settimeout(LIMIT)
        answer = b""
        with suppress(ConnectionError):
            stranger.sendall(token + b"\1")
            answer = stranger.recv(100)
        assert answer == b""
    assert link_to(server.port).sent > 0


def test_cc9_strangers_who_say_nothing_do_not_keep_peers_out(server: ProbeServer) -> None:
    strangers = [socket.create_connection((THERE, server.port)) for _ in range(3)]
    assert link_to(server.port).sent > 0
    for stranger in strangers:
        stranger.close()


def test_cc9_nobody_is_served_after_the_end(server: ProbeServer) -> None:
    over = ProbeServer(THERE, TOKEN, 0.0)
    server.close()
    for each in (over, server):
        each._thread.join()
        with pytest.raises(OSError):
            link_to(each.port)


def test_cc9_a_peer_that_never_answers_is_an_error() -> None:
    with socket.create_server((THERE, 0)) as silent, pytest.raises(OSError):
        link_to(silent.getsockname()[1], limit=0.2)


def test_cc9_an_address_of_another_host_is_an_error() -> None:
    with pytest.raises(OSError):
        ProbeServer("192.0.2.1", TOKEN, 1.0)


@pytest.mark.root
def test_cc9_shaped_links_are_told_apart_and_make_groups() -> None:
    """Two hosts with fast cables, and two with slow ones, which are slow to each other too."""
    if reason := can_run():
        pytest.skip(reason)
    with Lab(hosts=4) as lab:
        slow = {1: 20.0, 3: 5.0}  # Mbit/s
        for index, rate in slow.items():
            lab.set_rate(rate, index)
        threads = [ThreadPoolExecutor(2, initializer=enter_namespace, initargs=(h.namespace,)) for h in lab.hosts]
        servers = [t.submit(ProbeServer, h.address, TOKEN, 60.0).result() for t, h in zip(threads, lab.hosts, strict=True)]

        def between(a: int, b: int) -> Link:
            peer = (lab.hosts[b].address, servers[b].port)
            options = {"source": lab.hosts[a].address, "token": TOKEN, "seconds": 0.25, "limit": LIMIT}
            return threads[a].submit(measure, peer, **options).result()  # type: ignore[arg-type]

        found = {pair: between(*map(int, pair)) for pairs in rounds("0123") for pair in pairs}
        for server in servers:
            server.close()
    for (a, b), link in found.items():
        shape = min(slow.get(int(a), 1e6), slow.get(int(b), 1e6)) * 1e6 / 8
        for rate in (link.sent, link.received):
            assert shape / 3 < rate < 2 * shape if shape < 1e9 else rate > 1e8, (a, b, link)
    hosts = {str(index): host.address for index, host in enumerate(lab.hosts)}
    groups = Findings(hosts, found).groups({})
    assert groups["0"] == groups["2"] not in (groups["1"], groups["3"])
