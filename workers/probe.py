"""How fast the link between two hosts is, over plain TCP between the addresses that peers use (CC-9).

One host waits, the other connects, shows the token that the coordinator has given to both, and measures: the round-trip
time with single bytes, then bytes/s by sending for a while, then by receiving for as long. Blocking calls, for threads.
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import socket
import struct
import termios
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

logger = logging.getLogger("quantarion.probe")

TOKEN_BYTES = 16
LONGEST_SECONDS = 2.0
"""No direction of a link is measured for longer, whatever a peer asks for."""
PATIENCE_SECONDS = 1.0
"""A peer that says nothing for so long is left."""
MOST_GUESTS = 8
"""Connections at the same time; one is the rule."""
PINGS = 5
PING_SECONDS = 0.05
"""No further ping after this long."""
QUEUE_SECONDS = 0.02
LEAST_UNDERWAY = 1 << 15
"""Bytes on their way are those of two round trips and of this long at the rate so far, or so many: a queue that the one
direction leaves on a slow link would hold up the acknowledgements of the other, and the next host's probe."""

LEAST_SENT = 1 << 12
"""Bytes; smaller packets would be mostly headers."""

_PING, _BURST = b"\1", b"\2"
_TIMES = struct.Struct("!dd")  # seconds that each direction is measured for, round-trip time
_CHUNK = memoryview(bytes(1 << 16))


@dataclass(frozen=True)
class Link:
    """As the host that has measured sees it."""

    round_trip: float  # seconds
    sent: float  # bytes/s to the peer
    received: float  # bytes/s from it


class ProbeServer:
    """Waits for the probes of peers that know the token, on a free port of `address`, for at most `seconds`."""

    def __init__(self, address: str, token: bytes, seconds: float) -> None:
        """Raises OSError where `address` is not this host's."""
        self._token = token
        self._until = time.monotonic() + seconds
        self._closed = threading.Event()
        self._guests = threading.BoundedSemaphore(MOST_GUESTS)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, 0), family=family, backlog=MOST_GUESTS)
        self._socket.settimeout(0.1)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="probe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections; what is being measured runs out by itself."""
        self._closed.set()

    def _serve(self) -> None:
        with self._socket:
            while not self._closed.is_set() and time.monotonic() < self._until:
                with suppress(OSError):
                    link, _ = self._socket.accept()
                    if not self._guests.acquire(blocking=False):
                        link.close()
                        continue
                    threading.Thread(target=self._answer, args=(link,), name="probe guest", daemon=True).start()

    def _answer(self, link: socket.socket) -> None:
        try:
            with link:
                _tune(link)
                link.settimeout(PATIENCE_SECONDS)
                if hmac.compare_digest(_exactly(link, TOKEN_BYTES), self._token):
                    _serve_guest(link)
        except OSError as error:
            logger.info("a peer's probe broke off: %s", error)
        finally:
            self._guests.release()


def measure(peer: tuple[str, int], *, source: str, token: bytes, seconds: float, limit: float) -> Link:
    """Measure the link from the address `source` of this host to the `ProbeServer` at `peer`.

    Each direction for `seconds`, or for two round trips where they take longer; all of it in at most `limit` seconds.

    Raises:
        OSError: nothing was measured; it has no connection, is refused, or the time is over.
    """
    deadline = time.monotonic() + limit
    with socket.create_connection(peer, limit, (source, 0)) as link:
        _tune(link)
        link.settimeout(max(0.01, deadline - time.monotonic()))
        link.sendall(token)
        round_trip = _ping(link)
        seconds = min(max(seconds, 2 * round_trip), LONGEST_SECONDS)
        link.sendall(_BURST + _TIMES.pack(seconds, round_trip))
        sent = _send(link, min(seconds, deadline - time.monotonic()), round_trip)
        received = _receive(link, seconds, deadline)
        return Link(round_trip, sent, received)


def _tune(link: socket.socket) -> None:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # what waits is thrown away at the end


def _serve_guest(link: socket.socket) -> None:
    while (said := _exactly(link, 1)) == _PING:
        link.sendall(_PING)
    if said != _BURST:
        return
    seconds, round_trip = _TIMES.unpack(_exactly(link, _TIMES.size))
    if not 0 < seconds <= LONGEST_SECONDS:
        return
    _receive(link, seconds, time.monotonic() + seconds)
    with suppress(ConnectionError):  # the peer leaves when it has measured
        _send(link, 2 * seconds + PATIENCE_SECONDS, round_trip)


def _ping(link: socket.socket) -> float:
    """Seconds of the fastest round trip."""
    begun, fastest = time.monotonic(), float("inf")
    for _ in range(PINGS):
        asked = time.monotonic()
        link.sendall(_PING)
        _exactly(link, 1)
        now = time.monotonic()
        fastest = min(fastest, now - asked)
        if now - begun > PING_SECONDS:
            break
    return fastest


def _send(link: socket.socket, seconds: float, round_trip: float) -> float:
    """Send as much as the link takes; bytes/s that the peer has acknowledged."""
    begun = time.monotonic()
    handed = acknowledged = 0
    while (passed := time.monotonic() - begun) < seconds:
        acknowledged = handed - _underway(link)
        most = max(LEAST_UNDERWAY, acknowledged / max(passed, 1e-9) * (2 * round_trip + QUEUE_SECONDS))
        room = int(most) - (handed - acknowledged)
        if room < LEAST_SENT:
            time.sleep(0.0005)
            continue
        link.settimeout(seconds - passed)
        try:
            handed += link.send(_CHUNK[:room])
        except TimeoutError:
            break
    return max(0, handed - _underway(link)) / max(time.monotonic() - begun, 1e-9)


def _underway(link: socket.socket) -> int:
    """Bytes handed to the socket that the peer has not acknowledged."""
    (number,) = struct.unpack("i", fcntl.ioctl(link, termios.TIOCOUTQ, bytes(4)))
    return int(number)


def _receive(link: socket.socket, seconds: float, deadline: float) -> float:
    """Receive for `seconds` from the first byte on, not beyond `deadline`; bytes/s. Raises OSError where nothing comes."""
    buffer = bytearray(1 << 18)
    link.settimeout(max(0.01, deadline - time.monotonic()))
    total = link.recv_into(buffer)
    begun = time.monotonic()
    until = min(begun + seconds, deadline)
    while (left := until - time.monotonic()) > 0:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # not lasting; else acknowledgements wait for 40 ms
        link.settimeout(left)
        try:
            came = link.recv_into(buffer)
        except TimeoutError:
            break
        if came == 0:
            break
        total += came
    return total / max(time.monotonic() - begun, 1e-3)


def _exactly(link: socket.socket, size: int) -> bytes:
    """The next bytes. Raises ConnectionError where the peer has closed."""
    said = b""
    while len(said) < size:
        more = link.recv(size - len(said))
        if not more:
            raise ConnectionError("the peer has closed the connection")
        said += more
    return said
