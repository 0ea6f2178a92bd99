"""State from peer to peer: whole snapshots, or the reduced buckets of the commits one is behind (EP-9, EP-15).

A rank that needs state connects to a donor and says which state it has. The donor answers with the commits that lead from
there to its own state, if it still has them, else with a snapshot. Residuals are never part of it (EP-6); what a rank that
leaves owes goes to one that stays, by the same door (CC-12).
"""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from workers import plain
from workers.compression.finite import is_finite
from workers.identity import Generation, StateId
from workers.readable import wait_readable
from workers.state import Captured, tensor_bytes

logger = logging.getLogger("quantarion.transfer")

_HEADER = struct.Struct("!Q")
_MAX_HEADER = 256 << 20
_RETRY_SECONDS = 0.01


class TransferError(Exception):
    """The donor is gone or cannot help."""


@dataclass
class Commit:
    """What one commit applied: enough for a rank at `before` to become `after`."""

    before: StateId
    after: StateId
    meta: dict[str, Any]
    tensors: list[torch.Tensor]


@dataclass
class Snapshot:
    """A captured state under its id."""

    state: StateId
    previous: StateId
    captured: Captured


@dataclass
class Offer:
    """A donor's answer to `have`. `is_valid` tells, after sending, whether the bytes stood still meanwhile."""

    commits: list[Commit]
    snapshot: Snapshot | None
    is_valid: Callable[[], bool]


@dataclass
class Heir:
    """Takes what others owe: float32 of these `shapes`, by parameter name; `inherit` is called in a background thread."""

    shapes: Mapping[str, torch.Size]
    inherit: Callable[[Mapping[str, torch.Tensor]], None]


class StateServer:
    """Serves a donor's offers in background threads; where `find_offer(have, generation)` gives None the asker waits."""

    def __init__(
        self, address: str, find_offer: Callable[[StateId, Generation], Offer | None], heir: Heir | None = None
    ) -> None:
        self._find_offer, self._heir = find_offer, heir
        self._listener = socket.create_server((address, 0), backlog=64)
        host, port = self._listener.getsockname()[:2]
        self.address = f"{host}:{port}"
        threading.Thread(target=self._accept, name="state-server", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), name="state-peer", daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        try:
            with peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while True:
                    request = _receive_json(peer)
                    if "owed" in request:
                        self._take_over(peer, int(request["owed"]))
                        continue
                    generation = Generation(*map(int, request["generation"]))
                    offer = self._wait_for_offer(peer, StateId.of(request["have"]), generation)
                    _send_offer(peer, offer)
        except (OSError, ValueError, TypeError, KeyError, TransferError) as error:
            logger.debug("state peer left: %s", error)

    def _take_over(self, peer: socket.socket, length: int) -> None:
        """Nothing is taken that is not whole or is of another model, and nothing larger than a model is waited for."""
        if self._heir is None or length > _MAX_HEADER:
            raise TransferError("nobody here takes over what others owe")
        described = plain.loads(_receive_exactly(peer, length).decode())
        owed = {name: torch.empty(shape) for name, shape in _fitting(described, self._heir)}
        for tensor in owed.values():
            view = tensor_bytes(tensor)
            while len(view):
                count = peer.recv_into(view, min(len(view), 1 << 20))
                if not count:
                    raise TransferError("closed")
                view = view[count:]
        if not all(map(is_finite, owed.values())):
            raise TransferError("what is owed is not finite")
        self._heir.inherit(owed)
        peer.sendall(b"\x01")

    def _wait_for_offer(self, peer: socket.socket, have: StateId, generation: Generation) -> Offer:
        while True:
            offer = self._find_offer(have, generation)
            if offer is not None:
                return offer
            if wait_readable(peer, _RETRY_SECONDS):
                raise TransferError("the asker hung up")

    def close(self) -> None:
        self._listener.close()


class StateClient:
    """Asks one donor. Calls `poll` while it waits, which may raise to abandon, and `progress` when something arrives."""

    def __init__(self, address: str, poll: Callable[[], None], progress: Callable[[], None], timeout: float = 60.0) -> None:
        self._poll, self._progress = poll, progress
        self._timeout = timeout
        host, _, port = address.rpartition(":")
        try:
            self._socket = socket.create_connection((host, int(port)), timeout=5.0)
        except OSError as error:
            raise TransferError(f"no connection to the donor at {address}: {error}") from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(0.02)

    def fetch(self, have: StateId, generation: Generation) -> tuple[list[Commit], Snapshot | None]:
        """The commits after `have`, or a snapshot, which may be some commits old; nothing where `have` is the donor's.

        `generation` is the one that the asker has entered, if it asks for that; the donor answers when it has, too.
        Raises TransferError; `poll` may raise to abandon.
        """
        try:
            payload = json.dumps({"have": have.values, "generation": list(generation)}).encode()
            self._socket.sendall(_HEADER.pack(len(payload)) + payload)
            header = plain.loads(self._receive(self._length()).decode())
            return self._read_offer(header)
        except (OSError, ValueError, KeyError) as error:
            raise TransferError(f"the donor broke off: {error}") from None

    def close(self) -> None:
        self._socket.close()

    def _read_offer(self, header: dict[str, Any]) -> tuple[list[Commit], Snapshot | None]:
        commits = []
        for item in header["commits"]:
            tensors = [self._tensor(*description) for description in item["tensors"]]
            commits.append(Commit(StateId.of(item["before"]), StateId.of(item["after"]), item["meta"], tensors))
        snapshot = None
        if header["snapshot"] is not None:
            item = header["snapshot"]
            tensors_by_name = {name: self._tensor(*description) for name, description in item["tensors"]}
            captured = Captured(tensors_by_name, item["meta"])
            snapshot = Snapshot(StateId.of(item["state"]), StateId.of(item["previous"]), captured)
        if self._receive(1) != b"\x01":
            raise TransferError("the donor's state moved on while it was being copied")
        return commits, snapshot

    def _tensor(self, dtype: str, shape: list[int]) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        view = tensor_bytes(tensor)
        self._receive_into(view)
        return tensor

    def _length(self) -> int:
        (length,) = _HEADER.unpack(self._receive(_HEADER.size))
        if length > _MAX_HEADER:
            raise TransferError("the donor's header is too large")
        return int(length)

    def _receive(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._receive_into(memoryview(buffer))
        return bytes(buffer)

    def _receive_into(self, view: memoryview) -> None:
        deadline = time.monotonic() + self._timeout
        while len(view):
            self._poll()
            try:
                count = self._socket.recv_into(view, min(len(view), 1 << 20))
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise TransferError(f"the donor was silent for {self._timeout:g} s") from None
                continue
            if count == 0:
                raise TransferError("the donor closed the connection")
            deadline = time.monotonic() + self._timeout
            self._progress()
            view = view[count:]


def hand_over(address: str, owed: Mapping[str, torch.Tensor], seconds: float) -> None:
    """Give what this rank owes, float32 by parameter name, to the rank whose state server is at `address`.

    It is taken over once, or not at all; where the answer is lost, nobody knows which. After `seconds` it is given up.

    Raises:
        TransferError: it was not taken over, as far as is known.
    """
    until = time.monotonic() + seconds
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=min(5.0, seconds)) as heir:
            described = plain.dumps([[name, list(tensor.shape)] for name, tensor in owed.items()]).encode()
            request = json.dumps({"owed": len(described)}).encode()
            heir.sendall(_HEADER.pack(len(request)) + request + described)
            for tensor in owed.values():
                view = tensor_bytes(tensor)
                while len(view):
                    heir.settimeout(max(0.01, until - time.monotonic()))
                    view = view[heir.send(view[: 1 << 20]) :]
            heir.settimeout(max(0.01, until - time.monotonic()))
            if heir.recv(1) != b"\x01":
                raise TransferError(f"{address} does not take over what this rank owes")
    except (OSError, ValueError) as error:
        raise TransferError(f"{address} could not be given what this rank owes: {error}") from None


def _fitting(described: Any, heir: Heir) -> list[tuple[str, list[int]]]:
    found = [(str(name), [int(size) for size in shape]) for name, shape in described]
    for name, shape in found:
        if name not in heir.shapes or list(heir.shapes[name]) != shape:
            raise TransferError(f"what is owed to {name}, {shape}, fits no parameter of the model")
    return found


def _send_offer(peer: socket.socket, offer: Offer) -> None:
    snapshot = offer.snapshot
    header = {
        "commits": [
            {
                "before": c.before.values,
                "after": c.after.values,
                "meta": c.meta,
                "tensors": [_describe(t) for t in c.tensors],
            }
            for c in offer.commits
        ],
        "snapshot": None
        if snapshot is None
        else {
            "state": snapshot.state.values,
            "previous": snapshot.previous.values,
            "meta": snapshot.captured.meta,
            "tensors": [[name, _describe(t)] for name, t in snapshot.captured.tensors.items()],
        },
    }
    payload = plain.dumps(header).encode()
    peer.sendall(_HEADER.pack(len(payload)) + payload)
    for commit in offer.commits:
        for tensor in commit.tensors:
            peer.sendall(tensor_bytes(tensor))
    if snapshot is not None:
        for tensor in snapshot.captured.tensors.values():
            peer.sendall(tensor_bytes(tensor))
    peer.sendall(b"\x01" if offer.is_valid() else b"\x00")


def _describe(tensor: torch.Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _receive_json(peer: socket.socket) -> dict[str, Any]:
    (length,) = _HEADER.unpack(_receive_exactly(peer, _HEADER.size))
    if length > 1 << 16:
        raise TransferError("oversized request")
    request = json.loads(_receive_exactly(peer, length))
    return dict(request)


def _receive_exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = peer.recv(size - len(data))
        if not chunk:
            raise TransferError("closed")
        data += chunk
    return data
