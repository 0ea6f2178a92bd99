"""What the ranks of a host send to each peer, by the kernel's own figures of their TCP sockets (sock_diag(7), tcp(7)).

No rank is asked for it, and in the way of a gradient nothing is touched. The network namespace that an agent lives in tells
without any privilege; where the kernel does not answer, as in some sandboxes, nothing is known.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
REQUEST_DUMP = 0x301
"""NLM_F_REQUEST | NLM_F_DUMP."""
ERROR, DONE = 2, 3
"""Kinds of messages that end a dump."""
ESTABLISHED = 1 << 1
WANTS_INFO, INFO = 1 << 1, 2
"""The extension INET_DIAG_INFO, asked for and answered."""

ANSWER_SECONDS = 1.0
RECEIVE_BYTES = 1 << 16

_HEAD = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, pid
_REQUEST = struct.Struct("=BBBxI48x")  # inet_diag_req_v2: family, protocol, extensions, states, any address
_SOCKET = struct.Struct("=B3x4x16s16s4xQ16xI")  # inet_diag_msg: family, source, destination, cookie, inode
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_INFO = struct.Struct("=100xI16xQ28xI8xQQ")
"""tcp_info: total_retrans, bytes_acked, data_segs_out, busy_time, rwnd_limited; Linux 4.10."""
_MAPPED = bytes(10) + b"\xff\xff"
"""Before an IPv4 address in an IPv6 one."""

_WORD = 1 << 32


class Use(NamedTuple):
    """Of a socket, or of several.

    Attributes:
        segments: with data that were sent, those that were sent again among them.
        retransmitted: of these.
        nbytes: that the peer has acknowledged.
        microseconds: in which there was something to send, and room for it at the peer.
    """

    segments: int = 0
    retransmitted: int = 0
    nbytes: int = 0
    microseconds: int = 0

    def since(self, before: Use) -> Use:
        """Of the same socket. The kernel counts segments in 32 bits."""
        return Use(
            (self.segments - before.segments) % _WORD,
            (self.retransmitted - before.retransmitted) % _WORD,
            max(0, self.nbytes - before.nbytes),
            max(0, self.microseconds - before.microseconds),
        )

    def plus(self, other: Use) -> Use:
        return Use(*(one + another for one, another in zip(self, other, strict=True)))


class Connection(NamedTuple):
    """An established socket. `cookie` names it as long as the machine runs, `inode` while it is open."""

    cookie: int
    inode: int
    own: str
    peer: str
    use: Use


def connections() -> list[Connection]:
    """Of this network namespace. Raises OSError where the kernel does not tell."""
    found: list[Connection] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as link:
        link.settimeout(ANSWER_SECONDS)
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, WANTS_INFO, ESTABLISHED)
            link.send(_HEAD.pack(_HEAD.size + len(request), SOCK_DIAG_BY_FAMILY, REQUEST_DUMP, 0, 0) + request)
            is_done = False
            while not is_done:
                more, is_done = parse(link.recv(RECEIVE_BYTES))
                found += more
    return found


def parse(data: bytes) -> tuple[list[Connection], bool]:
    """What is in one datagram of a dump, and whether it is the last. Raises OSError where it says that it cannot."""
    found, start = list[Connection](), 0
    while start + _HEAD.size <= len(data):
        length, kind, *_ = _HEAD.unpack_from(data, start)
        if kind in (ERROR, DONE):
            error = int.from_bytes(data[start + _HEAD.size :][:4], sys.byteorder, signed=True)
            if error < 0:
                raise OSError(-error, os.strerror(-error))
            return found, True
        if length < _HEAD.size:
            raise OSError("the kernel's list of sockets cannot be read")
        found += _connection(data[start + _HEAD.size : start + length])
        start += (length + 3) & ~3
    return found, False


def _connection(data: bytes) -> Iterator[Connection]:
    """None of a socket that the kernel tells too little of."""
    if len(data) < _SOCKET.size:
        return
    family, own, peer, cookie, inode = _SOCKET.unpack_from(data)
    start = _SOCKET.size
    while start + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if kind == INFO and length >= _ATTRIBUTE.size + _INFO.size:
            again, acknowledged, segments, busy, no_room = _INFO.unpack_from(data, start + _ATTRIBUTE.size)
            use = Use(segments, again, acknowledged, busy - no_room)
            yield Connection(cookie, inode, _address(family, own), _address(family, peer), use)
        if length < _ATTRIBUTE.size:
            return
        start += (length + 3) & ~3


def _address(family: int, raw: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    if raw.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw)


def inodes(pids: Iterable[int]) -> set[int]:
    """Of all sockets that these processes have open; nothing of one that has gone."""
    found = set()
    for pid in pids:
        with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as files:
            for file in files:
                with suppress(OSError):
                    kind, _, inode = os.readlink(file.path).partition("[")
                    if kind == "socket:":
                        found.add(int(inode.rstrip("]")))
    return found


class Traffic:
    """What some processes have sent to other addresses than their own, since this was made; to be asked now and then. Of a
    connection that ends the last moments are missing.

    Args:
        pids: of the processes, at the moment.
    """

    def __init__(
        self,
        pids: Callable[[], Collection[int]],
        connections: Callable[[], Iterable[Connection]] = connections,
        inodes: Callable[[Iterable[int]], set[int]] = inodes,
    ) -> None:
        self._pids, self._connections, self._inodes = pids, connections, inodes
        self._open: dict[int, Use] = {}
        self._sums: dict[str, Use] = {}

    def look(self) -> dict[str, Use]:
        """By address of the peer; what is known from before, where the kernel does not tell any more."""
        with suppress(OSError):
            ours, found = self._inodes(self._pids()), list(self._connections())
            known, self._open = self._open, {}
            for each in found:
                before = known.get(each.cookie)
                if each.inode in ours and each.own != each.peer:
                    self._open[each.cookie] = each.use
                    self._sums[each.peer] = self._sums.get(each.peer, Use()).plus(each.use.since(before or Use()))
                elif before is not None:  # whose it is cannot be seen right now
                    self._open[each.cookie] = before
        return dict(self._sums)
