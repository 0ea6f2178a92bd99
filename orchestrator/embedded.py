"""Ray inside this process: a head without CPUs, and `hosts` raylets on 127.0.0.2, .3, … of this machine (Linux).

The head holds the GCS and the driver's raylet, so a killed host takes neither along. Ray's own start-up code runs the
processes; what it offers against orphans (a signal at the death of the starting thread) does not reach the processes
that a raylet starts, so they carry marks and a guardian ends them (`reaper`).
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from orchestrator import rayenv, reaper
from orchestrator.errors import ExitCode, UserError

if TYPE_CHECKING:
    from ray._private.node import Node

logger = logging.getLogger("quantarion.ray")

HEAD_ADDRESS = "127.0.0.254"
MAX_HOSTS = 200
HOST_LABEL = "quantarion-host"

_OBJECT_STORE_BYTES = 80 * 2**20  # Ray's minimum is 75 MiB; tensors never travel through it
_RETRY_SECONDS = 1.0
_SYSTEM_CONFIG = {
    # a dead raylet is known in about 1.5 s; the defaults take 15
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
    # no idle workers started ahead: each costs the machine 0.6 s of CPU
    "enable_worker_prestart": False,
    "prestart_worker_first_driver": False,
    # Ray gives its workers niceness 15; training is not background work
    "worker_niceness": 0,
}


@dataclass(frozen=True)
class EmbeddedHost:
    """One host of the embedded cluster, as it is now."""

    address: str
    node_id: str  # Ray's, in hex; new after each restart
    raylet_pid: int


@dataclass
class _Slot:
    """A place for a host; `lives` counts how often its raylet was started."""

    address: str
    node: Node | None = None
    lives: int = 0
    starting: Future[None] | None = None
    not_before: float = 0.0  # monotonic seconds

    @property
    def mark(self) -> str:
        return f"{self.address}#{self.lives}"


class EmbeddedCluster:
    """Start, keep and remove a Ray cluster on this machine for the job in `folder`.

    `cpus_per_host` are logical: one for each rank and spare. `left_behind` are folders of what runs on it, removed with it
    even where this process is killed. Use it as a context manager, or call `stop` in a `finally`: both remove every process
    and folder, also when `start` was interrupted half-way.
    """

    def __init__(self, hosts: int, cpus_per_host: int, folder: Path, *, left_behind: Sequence[Path] = ()) -> None:
        if not 1 <= hosts <= MAX_HOSTS:
            raise UserError(
                f"hosts.max: {hosts} is out of range on one machine, with hosts.spares; write 1 to {MAX_HOSTS} in all"
            )
        self.folder = folder
        self.cpus_per_host = cpus_per_host
        self._left_behind = left_behind
        self._slots = [_Slot(f"127.0.0.{number}") for number in range(2, 2 + hosts)]
        self._marks = reaper.marks(folder)
        self._temp: Path | None = None
        self._head: Node | None = None
        self._guardian: reaper.Guardian | None = None
        self._starters = ThreadPoolExecutor(max_workers=min(hosts, max(2, os.cpu_count() or 1)))
        self._change = threading.Condition()
        self._starting = 0  # hosts that a thread is starting right now
        self._stopped = False

    @property
    def address(self) -> str:
        """`host:port` of the GCS, for `rayenv.connect(…, node_address=HEAD_ADDRESS)`."""
        if self._head is None:
            raise RuntimeError("the embedded cluster is not started")
        return str(self._head.gcs_address)

    def start(self) -> None:
        """Start the head, then all hosts side by side.

        Raises:
            UserError: exit code 6; Ray is missing, this is not Linux, or Ray's processes do not come up.
        """
        if not sys.platform.startswith("linux"):
            raise UserError(
                f"An embedded cluster needs Linux, this is {sys.platform}; write --address of a Ray cluster",
                ExitCode.RAY,
            )
        rayenv.prepare(embedded=True)
        rayenv.import_ray()
        try:
            self._temp = _temp_folder()
            # a second cluster in this process makes Ray create the first one's folder again
            atexit.register(shutil.rmtree, self._temp, ignore_errors=True)
            self._guardian = reaper.Guardian([self._temp, *self._left_behind])
            self._start_head()
            for slot in self._slots:
                slot.starting = self._starters.submit(self._unless_stopped, self._start_host, slot)
            for slot in self._slots:
                assert slot.starting is not None
                slot.starting.result()
                slot.starting = None
        except BaseException as error:
            says = self._ray_says()
            self.stop()
            if isinstance(error, Exception):
                message = f"Ray does not start on this machine: {rayenv.one_line(error)}{says}"
                raise UserError(message, ExitCode.RAY) from error
            raise

    def hosts(self) -> list[EmbeddedHost]:
        """The hosts whose raylet is alive, by address."""
        alive = ((slot.address, slot.node) for slot in self._slots if _alive(slot.node))
        return [EmbeddedHost(address, str(node.node_id), _raylet_pid(node)) for address, node in alive if node]

    def revive(self) -> list[str]:
        """Look after the hosts, without waiting: restart those whose raylet died; their addresses.

        What a dead raylet started on its host is killed first: on a machine that failed it would be gone too. A host
        that does not come up is tried again in a later call.
        """
        begun = []
        for slot in self._slots:
            self._collect(slot)
            if slot.starting is None and not _alive(slot.node) and time.monotonic() >= slot.not_before:
                slot.starting = self._starters.submit(self._unless_stopped, self._restart_host, slot)
                begun.append(slot.address)
        return begun

    def failure(self) -> str | None:
        """Why the cluster as a whole is lost, in one sentence; None while its head is alive."""
        if self._head is None:
            return "The embedded Ray cluster is stopped."
        dead = [name for name, _ in self._head.dead_processes()]
        return f"The {' and the '.join(dead)} of the embedded Ray cluster died." if dead else None

    def stop(self) -> None:
        """Disconnect this process and remove every process and folder of the cluster; may be called again."""
        rayenv.disconnect()
        with self._change:
            self._stopped = True
            self._change.wait_for(lambda: self._starting == 0)  # without a GCS a starting host would hang
        self._starters.shutdown(wait=True, cancel_futures=True)
        for node in [*(slot.node for slot in self._slots), self._head]:
            if node is not None:
                node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        self._head = None
        for slot in self._slots:
            slot.node = None
        reaper.kill(lambda each: each.driver == self._marks[reaper.DRIVER])
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None
        if self._temp is not None:
            shutil.rmtree(self._temp, ignore_errors=True)
            self._temp = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _start_head(self) -> None:
        from ray._private.node import Node

        class Head(Node):  # type: ignore[misc,unused-ignore]
            def start_api_server(self, **_: Any) -> None:
                """None: it takes 2 s to start, and nothing here asks it."""
                self._webui_url = ""

        with _environment(self._marks):
            self._head = Head(
                self._parameters(
                    HEAD_ADDRESS,
                    0,
                    self._marks,
                    no_monitor=True,
                    include_dashboard=False,
                    _system_config=_SYSTEM_CONFIG,
                ),
                head=True,
                shutdown_at_exit=False,
                spawn_reaper=False,
            )

    def _unless_stopped(self, start: Callable[[_Slot], None], slot: _Slot) -> None:
        """Counted here, not by the executor: it forgets a thread when an interrupt hits it while it starts one."""
        with self._change:
            if self._stopped:
                return
            self._starting += 1
        try:
            start(slot)
        finally:
            with self._change:
                self._starting -= 1
                self._change.notify_all()

    def _start_host(self, slot: _Slot) -> None:
        from ray._private.node import Node

        slot.lives += 1
        marks = {**self._marks, reaper.HOST: slot.mark}
        parameters = self._parameters(
            slot.address, self.cpus_per_host, marks, gcs_address=self.address, labels={HOST_LABEL: slot.address}
        )
        slot.node = Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=False)

    def _restart_host(self, slot: _Slot) -> None:
        old = slot.mark
        if slot.node is not None:
            slot.node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            slot.node = None
        driver = self._marks[reaper.DRIVER]
        reaper.kill(lambda each: each.driver == driver and each.host == old)
        self._start_host(slot)

    def _collect(self, slot: _Slot) -> None:
        if slot.starting is not None and slot.starting.done():
            error = slot.starting.exception()
            slot.starting = None
            if error is not None:
                slot.not_before = time.monotonic() + _RETRY_SECONDS
                logger.warning("host %s does not come up: %s", slot.address, error)

    def _parameters(self, address: str, cpus: int, marks: dict[str, str], **more: Any) -> Any:
        from ray._private.parameter import RayParams

        assert self._temp is not None
        life = address.rpartition(".")[2] + "-" + os.urandom(4).hex()
        values: dict[str, Any] = {
            "num_cpus": cpus,
            "num_gpus": 0,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "node_ip_address": address,
            "min_worker_port": 0,
            "max_worker_port": 0,
            "dashboard_agent_listen_port": None,  # any free port
            "include_log_monitor": False,
            "temp_dir": str(self._temp),
            # Ray numbers its default names without a lock, and hosts start side by side
            "plasma_store_socket_name": str(self._temp / f"p{life}"),
            "raylet_socket_name": str(self._temp / f"r{life}"),
            "env_vars": marks,
        }
        return RayParams(**values, **more)

    def _ray_says(self) -> str:
        """The first error that Ray's processes logged, for the message of a failed start."""
        if self._temp is None:
            return ""
        for log in sorted(self._temp.glob("session_*/logs/*.err")):
            words = log.read_text(errors="replace").strip()
            if words:
                return f" ({log.stem}: {words.splitlines()[0][:200]})"
        return ""


def _temp_folder() -> Path:
    """A private folder with a short path: Ray puts sockets under it."""
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > 40:  # sockets would pass the 107 bytes of a Unix address
        base = Path("/tmp")
    root = base / f"quantarion-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="ray-", dir=root))


def _alive(node: Node | None) -> bool:
    return node is not None and any(name == "raylet" for name, _ in node.live_processes())


def _raylet_pid(node: Node) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for what is started inside; the GCS takes them from nowhere else."""
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            with suppress(KeyError):
                del os.environ[name]
