"""A real S3 API server of this process, and a way to it that loses, delays and refuses what passes."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "bucket"
READ_SECONDS = 2
"""That a client waits for an answer."""


@dataclass
class Weather:
    """What happens to the next requests: each takes one fault that is meant for its method, if there is one.

    `refuse:503` answers so in the server's place; `cut` closes the connection before the server hears of it, `mute` after
    it has done what was asked; `half` closes it in the middle of the answer; `slow` takes longer than a client waits.
    """

    faults: deque[tuple[str, str]] = field(default_factory=deque)
    met: list[tuple[str, str]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    is_out: bool = False
    """Nobody is there."""
    lag: tuple[str, float] = ("", 0.0)
    """What is put under a name that ends so waits for so many seconds, and is lost where the client has gone by then."""

    def take(self, method: str, path: str) -> str:
        """The fault of a request, or nothing."""
        self.requests.append((method, path))
        if self.is_out:
            return "cut"
        for fault in self.faults:
            if fault[0] == method:
                self.faults.remove(fault)
                self.met.append(fault)
                return fault[1]
        return ""


@dataclass(frozen=True)
class ObjectStore:
    """A server with one bucket. `options`: of fsspec for the way through the weather."""

    server: str
    endpoint: str
    weather: Weather

    @property
    def options(self) -> dict[str, Any]:
        return {
            "endpoint_url": self.endpoint,
            "config_kwargs": {
                "connect_timeout": 5,
                "read_timeout": READ_SECONDS,
                "retries": {"max_attempts": 1, "mode": "standard"},
            },
        }


@contextmanager
def known_store() -> Iterator[ObjectStore]:
    """Runs inside `with`, and the environment has its credentials."""
    with object_store() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield store


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Runs inside `with`."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    weather = Weather()
    proxy = _Proxy(("127.0.0.1", 0), _handler(host, port, weather))
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        server = f"http://{host}:{port}"
        urlopen(Request(f"{server}/{BUCKET}", method="PUT"), timeout=10).close()
        yield ObjectStore(server, f"http://127.0.0.1:{proxy.server_port}", weather)
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
        moto.stop()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that the client has given up."""


def _handler(host: str, port: int, weather: Weather) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            fault = weather.take(self.command, self.path)
            if fault == "cut":
                return self._hang_up()
            if fault.startswith("refuse:"):
                return self._refuse(int(fault.removeprefix("refuse:")))
            if fault == "slow":
                time.sleep(2 * READ_SECONDS)
            if self.command == "PUT" and weather.lag[0] and self.path.partition("?")[0].endswith(weather.lag[0]):
                time.sleep(weather.lag[1])
                if self._has_gone():
                    return None
            connection = http.client.HTTPConnection(host, port, timeout=30)
            kept = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
            connection.request(self.command, self.path, body, kept)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if fault == "mute":
                return self._hang_up()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                    self.send_header(name, value)
            size = answer.headers.get("Content-Length") if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(size or 0))
            self.end_headers()
            if fault == "half":
                self.wfile.write(content[: len(content) // 2])
                return self._hang_up()
            self.wfile.write(content)

        def _refuse(self, status: int) -> None:
            code = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}[status]
            body = (
                f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()
            )
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _has_gone(self) -> bool:
            try:
                return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True

        def _hang_up(self) -> None:
            """Reset, so that the client hears of it at once."""
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            """Nothing is printed."""

    for method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
        setattr(Handler, f"do_{method}", Handler.handle_one)
    return Handler
