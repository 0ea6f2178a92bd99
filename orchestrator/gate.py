"""The TLS port of a coordinator, in front of its gRPC server, which listens on loopback and knows connections by it.

gRPC's own TLS would refuse the same peers, and tell nobody: neither that there was one nor why. Here each handshake that
fails is counted by the check that it has failed, certificates are read anew for each, and a connection ends when its
certificate does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Collection
from pathlib import Path
from typing import Any

from orchestrator.admission import Caller
from orchestrator.peers import Role, peer_named
from orchestrator.turned_away import Check, Tally, TurnedAway
from workers import tls

logger = logging.getLogger("quantarion.coordinator")

LOOPBACK = "127.0.0.1"
HANDSHAKE_SECONDS = 5.0
CLOSE_SECONDS = 2.0
MOST_HANDSHAKES = 64
"""At the same time; the next one is turned away. A handshake takes about a millisecond."""

PAUSE_SECONDS = 0.1
"""After a connection that could not be taken, as where the process has no descriptor left."""

CHUNK_BYTES = 1 << 16

_BY_VERIFICATION = {9: Check.EXPIRY, 10: Check.EXPIRY, 26: Check.PURPOSE}
"""X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED, _INVALID_PURPOSE; whatever else is wrong with a chain: AUTHORITY."""
_BY_REASON = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (Check.CERTIFICATE, "it has shown no certificate"),
    "WRONG_VERSION_NUMBER": (Check.TLS, "it does not speak TLS"),
    "HTTP_REQUEST": (Check.TLS, "it does not speak TLS"),
}


class Gate:
    """Lets in who shows a certificate of the job: of one of its agents or of an operator.

    Args:
        folder: of the certificates.
        tally: of those who are turned away.
    """

    def __init__(self, folder: Path, job: str, tally: Tally) -> None:
        self._folder, self._job, self._tally = folder, job, tally
        self._callers: dict[str, Caller] = {}
        self._connections: dict[asyncio.Task[None], Caller | None] = {}  # None: still shaking hands
        self._context: ssl.SSLContext | None = None
        self._read: object = None  # which files the context was made of
        self._listener: socket.socket | None = None
        self._backend = 0

    def bind(self, address: str, backend: int) -> int:
        """Listen on a free port of `address`, which is returned, for the gRPC server on port `backend` of loopback."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=128)
        self._listener.setblocking(False)
        self._backend = backend
        return int(self._listener.getsockname()[1])

    async def serve(self) -> None:
        """Until it is cancelled; then every connection is closed."""
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, address = await loop.sock_accept(self._listener)
                except OSError as error:
                    logger.warning("a connection could not be taken: %s", error)
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                self._take(connection, str(address[0]))
        finally:
            self._listener.close()
            connections = list(self._connections)
            for each in connections:
                each.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    def caller(self, connection: str) -> Caller | None:
        """Who is at the other end of a connection to the gRPC server, by gRPC's name for it."""
        return self._callers.get(connection)

    def cut_off(self, trusted: Collection[str], now: float) -> None:
        """End the connections of those whose certificate has expired, or whose authority is not trusted any more."""
        for connection, caller in list(self._connections.items()):
            if caller is not None and (caller.ends <= now or caller.issuer not in trusted):
                logger.info("the connection of the %s at %s ends with its certificate", caller.peer, caller.address)
                connection.cancel()

    # ------------------------------------------------------------------ one connection

    def _take(self, connection: socket.socket, address: str) -> None:
        if sum(caller is None for caller in self._connections.values()) >= MOST_HANDSHAKES:
            connection.close()
            self._tally.add(TurnedAway(Check.ROOM, address, f"{MOST_HANDSHAKES} others were shaking hands"))
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection, address))
        self._connections[task] = None
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a connection broke", exc_info=error)

    async def _serve(self, connection: socket.socket, address: str) -> None:
        try:
            reader, writer = await self._shake_hands(connection)
        except OSError as error:  # those of TLS are some
            check, message = failed_check(error)
            self._tally.add(TurnedAway(check, address, message))
            return
        with contextlib.closing(writer):
            caller = caller_of(writer.get_extra_info("peercert"), self._job, address)
            if caller is None:
                message = "its certificate names neither an agent nor an operator of this job"
                self._tally.add(TurnedAway(Check.IDENTITY, address, message))
                return
            task = asyncio.current_task()
            assert task is not None
            self._connections[task] = caller
            await self._join(reader, writer, caller)

    async def _shake_hands(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=CHUNK_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            context = self._newest_context()
        except BaseException:
            connection.close()
            raise
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=CLOSE_SECONDS,
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        """The caller with the gRPC server, until one of them ends it."""
        inner_reader, inner_writer = await asyncio.open_connection(LOOPBACK, self._backend)
        address, port = inner_writer.get_extra_info("sockname")[:2]
        name = f"ipv4:{address}:{port}"
        self._callers[name] = caller
        ways = [asyncio.ensure_future(_relay(reader, inner_writer)), asyncio.ensure_future(_relay(inner_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._callers[name]  # before the port can be another's
            for way in ways:
                way.cancel()
            inner_writer.close()
            await asyncio.gather(*ways, return_exceptions=True)

    # ------------------------------------------------------------------ certificates

    def _newest_context(self) -> ssl.SSLContext:
        """Of the files as they are now; where they cannot be read, as they were."""
        try:
            files = [(self._folder / name).stat() for name in (tls.TRUSTED, tls.COORDINATOR)]
            read = [(each.st_ino, each.st_mtime_ns, each.st_size) for each in files]
            if read != self._read:
                self._context, self._read = server_context(self._folder), read
        except (OSError, ValueError) as error:
            logger.error("the certificates in %s cannot be read: %s", self._folder, error)
            if self._context is None:
                raise
        assert self._context is not None
        return self._context


def server_context(folder: Path) -> ssl.SSLContext:
    """TLS 1.3 for gRPC, with the coordinator's certificate, for clients with one of a trusted authority.

    Raises:
        OSError: a file cannot be read, or is no certificate (ssl.SSLError).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # nobody is let in on the strength of an earlier handshake
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=(folder / tls.TRUSTED).read_text())
    context.load_cert_chain(folder / tls.COORDINATOR)
    return context


def failed_check(error: OSError) -> tuple[Check, str]:
    """Of a handshake that has ended with this error, and what is wrong in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        check = _BY_VERIFICATION.get(error.verify_code, Check.AUTHORITY)
        return check, f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason in _BY_REASON:
        return _BY_REASON[error.reason]
    reason = error.reason if isinstance(error, ssl.SSLError) else str(error) or type(error).__name__
    return Check.HANDSHAKE, f"the handshake has failed: {reason}"


def caller_of(certificate: dict[str, Any], job: str, address: str) -> Caller | None:
    """Whom a certificate is for, as `ssl` gives it; None where that is no agent and no operator of `job`."""
    peer = peer_named([value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"], job)
    if peer is None or peer.role is Role.COORDINATOR:
        return None
    issuer = next((value for part in certificate["issuer"] for name, value in part if name == "commonName"), "")
    return Caller(peer, address, issuer, float(ssl.cert_time_to_seconds(certificate["notAfter"])))


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
