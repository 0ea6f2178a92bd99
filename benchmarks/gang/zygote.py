"""The parent of every process of a gang: it has imported everything once, and forks.

Stands in for Ray: starts agents, workers and coordinators as processes of their own, starts an agent or a coordinator
again when it dies, and removes a host with all its processes. It knows nothing of the protocol.

    python -m benchmarks.gang.zygote SOCKET [BUCKET_BYTES]    # ends with the process that holds its standard input
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

RESTART_SECONDS = 0.3
"""From the death of an agent or a coordinator to its next start; Ray takes a second or two."""

SERVICES = ("agent", "coordinator", "observer")
"""Kinds that are started again when they end."""

PDEATHSIG = 1
CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18

SENSORS = (Path("/sys/class/hwmon"), Path("/sys/class/thermal"))


@dataclass
class Child:
    """One process, alive or not."""

    gang: str  # folder of its job
    kind: str  # worker, agent, coordinator, observer; or drain, readmit, stop: what an operator asks
    host: str
    address: str
    pid: int
    status: int | None = None  # exit code, or -signal
    removed: bool = False  # by us: with its host, or at the end


class Zygote:
    """Forks on request. Must stay single-threaded: a forked child has only the thread that forked it."""

    def __init__(self, path: Path) -> None:
        self.children: list[Child] = []
        self.held: set[tuple[str, str]] = set()  # (gang, kind): not to be started again for now
        self.ended: set[str] = set()  # gangs of which nothing is started any more
        self.due: list[tuple[float, Child]] = []  # who is to be started again, and when
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(64)
        self.wakeup, wake = socket.socketpair()
        wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self.wake = wake

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        for readable in (self.listener, self.wakeup, sys.stdin):
            selector.register(readable, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(0.05 if self.due else None):
                if key.fileobj is sys.stdin:
                    self._end_all()
                    return
                if key.fileobj is self.wakeup:
                    self.wakeup.recv(4096)
                else:
                    self._serve()
            self._reap()
            self._start_again()

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            connection.settimeout(5.0)
            with contextlib.suppress(OSError):  # the asker was killed
                request = json.loads(connection.makefile().readline() or "{}")
                answer = self._answer(**request) if request else None
                connection.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, do: str, gang: str, kind: str = "", host: str = "", address: str = "") -> Any:
        match do:
            case "begin":
                self.ended.discard(gang)
            case "fork" if gang in self.ended:
                return None
            case "fork":
                return self._fork(gang, kind, host, address)
            case "processes":
                return [asdict(child) for child in self.children if child.gang == gang]
            case "hold":
                self.held.add((gang, kind))
            case "release":
                self.held.discard((gang, kind))
            case "remove":
                self._remove(lambda child: child.gang == gang and child.host == host)
            case "end":
                self.ended.add(gang)
                self._remove(lambda child: child.gang == gang)
        return None

    def _fork(self, gang: str, kind: str, host: str, address: str) -> int:
        pid = os.fork()
        if pid == 0:
            self._be(gang, kind, host, address)
        self.children.append(Child(gang, kind, host, address, pid))
        return pid

    def _be(self, gang: str, kind: str, host: str, address: str) -> None:
        """In the child. Does not return."""
        try:
            signal.set_wakeup_fd(-1)
            ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            for each in (self.listener, self.wakeup, self.wake):
                each.close()
            output = os.open(f"{gang}/logs/{kind}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for number in (1, 2):
                os.dup2(output, number)
            _enter_namespace(Path(gang), kind, address)
            if kind == "agent":
                _show_sensors(Path(gang) / f"{host}.sensors")
            _bodies()[kind](Path(gang), host, address)
            threading.Event().wait()
        except BaseException:
            traceback.print_exc()
        os._exit(1)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, raw = found
                child = next(c for c in self.children if c.pid == pid and c.status is None)
                child.status = os.waitstatus_to_exitcode(raw)
                if child.kind in SERVICES and not child.removed:
                    self.due.append((time.monotonic() + RESTART_SECONDS, child))

    def _start_again(self) -> None:
        now = time.monotonic()
        for at, child in list(self.due):
            if at <= now and (child.gang, child.kind) not in self.held:
                self.due.remove((at, child))
                self._fork(child.gang, child.kind, child.host, child.address)

    def _remove(self, which: Callable[[Child], bool]) -> None:
        self.due = [(at, child) for at, child in self.due if not which(child)]
        for child in self.children:
            if which(child) and child.status is None:
                child.removed = True
                os.kill(child.pid, signal.SIGKILL)

    def _end_all(self) -> None:
        self._remove(lambda child: True)


def _enter_namespace(gang: Path, kind: str, address: str) -> None:
    """Where a gang is in a lab, `gang.json` says which network namespace an address is in, or a kind that has none."""
    names = json.loads((gang / "gang.json").read_text()).get("namespaces", {})
    name = names.get(address or kind)
    if name is not None:
        with open(f"/run/netns/{name}") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


def _show_sensors(folder: Path) -> None:
    """Where there is such a folder, it lies over those in which the kernel shows temperatures, for this process alone."""
    if not folder.is_dir():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    calls: list[Callable[[], int]] = [
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
    ]
    for shown in filter(Path.is_dir, SENSORS):
        calls.append(partial(libc.mount, bytes(folder), bytes(shown), None, MS_BIND, None))
    for call in calls:
        if call() != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))


def _bodies() -> dict[str, Any]:
    """Each starts a thread of its own, as in a Ray actor, and leaves the main thread to the caller."""
    from benchmarks.gang.control import GangCoordinatorActor, observe, operate
    from workers.actors import AgentActor, WorkerActor

    return {
        "agent": lambda gang, host, address: AgentActor(
            job=gang.name, job_folder=str(gang), host=host, node_id=f"node-{address}", address=address
        ),
        "worker": lambda gang, host, address: WorkerActor(job_folder=str(gang), host=host, address=address),
        "coordinator": lambda gang, host, address: GangCoordinatorActor(gang),
        "observer": lambda gang, host, address: observe(gang),
        "drain": lambda gang, host, address: operate(gang, "drain", host),
        "readmit": lambda gang, host, address: operate(gang, "readmit", host),
        "stop": lambda gang, host, address: operate(gang, "stop"),
    }


def ask(path: str, **request: str) -> Any:
    """One request to the zygote that listens at `path`, and its answer."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(path)
        link.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(link.makefile().readline())


def _import_everything(bucket_bytes: int | None) -> None:
    """What a worker needs, without starting a thread of torch, gRPC or Ray.

    Args:
        bucket_bytes: of the largest bucket, so that a step of a small model has several; None for what ranks usually take.
    """
    from functools import partial

    import torch.utils.data

    import workers.engine
    import workers.tasks.script
    from benchmarks.gang import control  # noqa: F401
    from workers.collectives.buckets import plan_buckets

    torch.set_num_threads(1)
    parameter = torch.nn.Parameter(torch.zeros(1))
    torch.optim.lr_scheduler.LambdaLR(torch.optim.AdamW([parameter]), lambda _: 1.0)
    if bucket_bytes is not None:
        workers.engine.plan_buckets = partial(plan_buckets, first_bytes=bucket_bytes // 2, bucket_bytes=bucket_bytes)


if __name__ == "__main__":
    _import_everything(int(sys.argv[2]) if len(sys.argv) > 2 else None)
    zygote = Zygote(Path(sys.argv[1]))
    if len(os.listdir("/proc/self/task")) > 1:
        raise SystemExit("an import has started a thread: forking is not safe")
    gc.freeze()  # the collector of a child does not touch, and so copy, every page of ours
    print("ready", flush=True)
    zygote.run()
    os._exit(0)
