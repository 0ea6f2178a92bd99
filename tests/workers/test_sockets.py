"""NET_SLOW, NET_LOSS: what the kernel tells of the sockets of ranks."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator

import pytest

from workers.sockets import DONE, ERROR, Connection, Traffic, Use, connections, inodes, parse

SEND_BYTES = 4 << 20


def message(kind: int, body: bytes) -> bytes:
    whole = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
    return whole + bytes(-len(whole) % 4)


def diag(family: int, own: bytes, peer: bytes, *attributes: tuple[int, bytes], cookie: int = 7, inode: int = 99) -> bytes:
    body = struct.pack("=BBBBHH16s16sIQIIIII", family, 1, 0, 0, 1, 2, own, peer, 0, cookie, 0, 0, 0, 0, inode)
    for kind, value in attributes:
        whole = struct.pack("=HH", 4 + len(value), kind) + value
        body += whole + bytes(-len(whole) % 4)
    return message(20, body)


def info(
    again: int = 0, acknowledged: int = 0, segments: int = 0, busy: int = 0, no_room: int = 0, size: int = 248
) -> bytes:
    """A struct tcp_info by the offsets of linux/tcp.h."""
    content = bytearray(max(size, 184))
    for offset, form, value in (
        (100, "=I", again),
        (120, "=Q", acknowledged),
        (156, "=I", segments),
        (168, "=Q", busy),
        (176, "=Q", no_room),
    ):
        struct.pack_into(form, content, offset, value)
    return bytes(content[:size])


IPV4 = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])


def test_a_dump_has_the_sockets_that_the_kernel_tells_of() -> None:
    first = diag(socket.AF_INET, IPV4[0], IPV4[1], (1, b"xyz"), (2, info(1, 2, 3, 50, 10)))
    mapped = [bytes(10) + b"\xff\xff" + raw for raw in IPV4]
    second = diag(socket.AF_INET6, mapped[0], mapped[1], (2, info()), cookie=8)
    third = diag(socket.AF_INET6, bytes(15) + b"\1", bytes(15) + b"\2", (2, info()), cookie=9)
    found, is_done = parse(first + second + third)
    assert not is_done
    assert found[0] == Connection(7, 99, "10.0.0.1", "10.0.0.2", Use(3, 1, 2, 40))
    assert [(each.cookie, each.own, each.peer) for each in found[1:]] == [(8, "10.0.0.1", "10.0.0.2"), (9, "::1", "::2")]
    assert parse(first + message(DONE, bytes(4)) + second) == (found[:1], True)


def test_a_kernel_that_tells_less_is_believed_nothing() -> None:
    old, bare = diag(socket.AF_INET, *IPV4, (2, info(size=168))), diag(socket.AF_INET, *IPV4)
    assert parse(old + bare) == ([], False)
    assert parse(message(20, bytes(8))) == ([], False)


@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_a_kernel_that_refuses_is_an_error(kind: int) -> None:
    with pytest.raises(OSError) as refused:
        parse(message(kind, struct.pack("=i", -errno.ENOENT)))
    assert refused.value.errno == errno.ENOENT


def test_what_is_no_dump_ends() -> None:
    with pytest.raises(OSError, match="cannot be read"):
        parse(bytes(16))
    assert parse(b"\1") == ([], False)


def test_segments_go_round_in_32_bits() -> None:
    assert Use(5, 1, 10, 10).since(Use(2**32 - 5, 2**32 - 1, 4, 3)) == Use(10, 2, 6, 7)
    assert Use(0, 0, 1, 1).since(Use(0, 0, 2, 2)) == Use()  # what cannot be


class Kernel:
    """Sockets as the test says; all of them are the ranks' that are in `ours`."""

    def __init__(self) -> None:
        self.found: list[Connection] = []
        self.ours = {1}
        self.refuses = False
        self.traffic = Traffic(list, self.connections, self.inodes)

    def connections(self) -> Iterable[Connection]:
        if self.refuses:
            raise OSError(errno.EPERM, "no")
        return self.found

    def inodes(self, pids: Iterable[int]) -> set[int]:
        assert list(pids) == []
        return self.ours

    def look(self, *found: Connection) -> dict[str, Use]:
        self.found = list(found)
        return self.traffic.look()


def one(nbytes: int, cookie: int = 1, inode: int = 1, peer: str = "b") -> Connection:
    return Connection(cookie, inode, "a", peer, Use(0, 0, nbytes, 0))


def sent(found: dict[str, Use]) -> dict[str, int]:
    return {peer: use.nbytes for peer, use in found.items()}


def test_what_connections_have_sent_is_added_up_by_peer() -> None:
    kernel = Kernel()
    assert sent(kernel.look(one(10), one(5, cookie=2), one(7, cookie=3, peer="c"))) == {"b": 15, "c": 7}
    assert sent(kernel.look(one(30), one(5, cookie=2))) == {"b": 35, "c": 7}  # the one to c has ended
    assert sent(kernel.look(one(1, cookie=9))) == {"b": 36, "c": 7}


def test_who_is_no_rank_and_who_is_on_the_same_host_does_not_count() -> None:
    kernel = Kernel()
    assert kernel.look(one(10, inode=2), Connection(5, 1, "a", "a", Use(0, 0, 9, 0))) == {}


def test_nothing_counts_twice_when_it_was_not_seen_for_a_while() -> None:
    kernel = Kernel()
    kernel.look(one(10))
    kernel.ours = set()
    assert sent(kernel.look(one(20))) == {"b": 10}
    kernel.ours, kernel.refuses = {1}, True
    assert sent(kernel.look(one(25))) == {"b": 10}
    kernel.refuses = False
    assert sent(kernel.look(one(30))) == {"b": 30}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Who sends, at 127.0.0.3, and who receives, at 127.0.0.2; on a kernel that tells of its sockets."""
    with contextlib.ExitStack() as ends:
        listening = ends.enter_context(socket.create_server(("127.0.0.2", 0)))
        sender = socket.create_connection(listening.getsockname(), source_address=("127.0.0.3", 0))
        ends.enter_context(sender).setblocking(False)
        receiver, _ = listening.accept()
        ends.enter_context(receiver)
        try:
            connections()
        except OSError as error:
            pytest.skip(f"this kernel does not tell of its sockets: {error}")
        yield sender, receiver


def test_net_slow_the_kernel_tells_of_what_this_process_sends(pair: tuple[socket.socket, socket.socket]) -> None:
    """Over the loopback network, between two addresses."""
    sender, receiver = pair
    traffic = Traffic(lambda: [os.getpid()])
    left, came = SEND_BYTES, 0
    while came < SEND_BYTES:
        with contextlib.suppress(BlockingIOError):
            left -= sender.send(bytes(min(left, 1 << 16))) if left else 0
        came += len(receiver.recv(1 << 20))
    deadline = time.monotonic() + 60.0
    while (use := traffic.look().get("127.0.0.2", Use())).nbytes < SEND_BYTES and time.monotonic() < deadline:
        pass  # the last acknowledgement is on its way
    assert 0 <= use.nbytes - SEND_BYTES <= 1  # the kernel counts the connection's first segment as a byte
    assert 0 < use.segments < SEND_BYTES
    assert 0 <= use.retransmitted <= use.segments and 0 <= use.microseconds < 60e6
    assert "127.0.0.3" not in sent_by(traffic)  # it has only received


def sent_by(traffic: Traffic) -> list[str]:
    return [peer for peer, use in traffic.look().items() if use.nbytes]


def test_the_sockets_of_a_process_are_its_open_files() -> None:
    with socket.socket() as mine:
        assert os.fstat(mine.fileno()).st_ino in inodes([os.getpid()])
        number = os.fstat(mine.fileno()).st_ino
    assert number not in inodes([os.getpid()])
    assert inodes([2**22 + 5]) == set()
