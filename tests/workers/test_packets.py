"""Packets between an agent and its ranks, over real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import packets
from workers.packets import INLINE_BYTES, Outgoing


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("size", [1, INLINE_BYTES, INLINE_BYTES + 1, 1 << 20, 40 << 20])
def test_ep7_a_packet_of_any_length_arrives_whole(ends: tuple[socket.socket, socket.socket], size: int) -> None:
    one, other = ends
    before = open_files()
    packet = os.urandom(size)
    packets.send(one, packet)
    packets.send(one, b"after it")
    assert packets.receive(other) == packet
    assert packets.receive(other) == b"after it"
    assert open_files() == before


def test_ep7_where_the_other_side_does_not_read_nothing_is_lost_and_no_file_stays_open(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    one, other = ends
    before, sent = open_files(), []
    with pytest.raises(BlockingIOError):
        for number in range(100_000):
            packet = bytes([number % 256]) * (INLINE_BYTES + 1)
            packets.send(one, packet)
            sent.append(packet)
    assert [packets.receive(other) for _ in sent] == sent
    with pytest.raises(BlockingIOError):
        packets.receive(other)
    assert open_files() == before


def test_ep7_the_end_is_an_empty_packet(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    packets.send(one, b"last")
    one.close()
    assert packets.receive(other) == b"last"
    assert packets.receive(other) == b""


def test_ep7_what_a_rank_does_not_read_for_a_while_waits_for_it_in_order(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    one, other = ends
    sent = [f"directive {number}".encode() * (1 if number % 10 else 10_000) for number in range(2000)]

    async def talk() -> list[bytes]:
        outgoing, found = Outgoing(one), list[bytes]()
        for packet in sent:
            outgoing.put(packet)
        while len(found) < len(sent):
            await asyncio.sleep(0)
            try:
                found.append(packets.receive(other))
            except BlockingIOError:
                continue
        outgoing.close()
        return found

    assert asyncio.run(asyncio.wait_for(talk(), 60)) == sent


def test_ep7_to_a_rank_that_is_gone_nothing_is_sent_and_nobody_fails(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends

    async def talk() -> None:
        outgoing = Outgoing(one)
        other.close()
        for _ in range(3):
            outgoing.put(b"too late")
        outgoing.close()

    asyncio.run(talk())


def test_ep8_a_directive_for_a_rank_whose_socket_is_closed_already_is_dropped(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """A rank that dies is known by its socket first and by its process a little later; a PREPARE may come in between."""
    one, other = ends

    async def talk() -> None:
        full, unused = Outgoing(one), Outgoing(other)
        for _ in range(2000):
            full.put(bytes(10_000))
        for outgoing, link in ((full, one), (unused, other)):
            outgoing.close()
            link.close()
            outgoing.put(b"PREPARE")
            outgoing.close()
        await asyncio.sleep(0)

    asyncio.run(talk())
