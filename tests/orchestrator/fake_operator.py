"""A coordinator's operator service without a job behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from quantarion.v1 import operator_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc


class FakeOperator(rpc.OperatorServicer):
    """Answers with `reply`; after a Stop, with the phases in `then`, the last of them for ever."""

    def __init__(self, reply: pb.StatusReply, then: list[str] | None = None) -> None:
        self.reply = reply
        self.then = then or []
        self.questions: list[pb.StatusRequest] = []
        self.connections: list[str] = []  # that they came by
        self.stops: list[pb.StopRequest] = []
        self.checkpoint = pb.OperatorReply(accepted=True, message="the state after step 12 is saved", step=12)
        self.asked: Callable[[str], None] = lambda request: None  # called with the id of each request for a checkpoint

    def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:
        self.questions.append(request)
        self.connections.append(context.peer())
        if self.stops and self.then:
            self.reply.phase = self.then.pop(0)
        return self.reply

    def Stop(self, request: pb.StopRequest, context: Any) -> pb.StopReply:
        self.stops.append(request)
        return pb.StopReply(accepted=True)

    def Checkpoint(self, request: pb.CheckpointRequest, context: Any) -> pb.OperatorReply:
        self.asked(request.id)
        return self.checkpoint


def make_job(storage: Path, name: str, *, address: str | None = None, pid: int | None = None) -> Path:
    """A job's folder as `train` and the coordinator leave it."""
    folder = storage / name
    (folder / "control").mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"name": name}))
    if address is not None:
        content = {"incarnation": 1, "address": address, "pid": pid or os.getpid(), "started": 0.0}
        (folder / "coordinator.json").write_text(json.dumps(content))
    return folder


def append(path: Path, *records: dict[str, Any]) -> None:
    """Add lines to a `.jsonl` file."""
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


@contextmanager
def served(operator: FakeOperator) -> Iterator[str]:
    """Serve it on a free port of 127.0.0.1; gives the address."""
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    rpc.add_OperatorServicer_to_server(operator, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
