"""The Ray side of a host: actor shells round the agent and the worker. Ray places, starts and restarts them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from workers.agent import HostAgent
from workers.paths import runtime_dir

LOG_FORMAT = "%(asctime)s.%(msecs)03d %(name)s[%(process)d] %(levelname)s %(message)s"


def settle(path: Path) -> None:
    """At the start of an actor's process: log to a file of the job, at the priority of ordinary work (Ray's is 15)."""
    with contextlib.suppress(OSError):  # only root may raise it again
        os.setpriority(os.PRIO_PROCESS, 0, min(0, os.getpriority(os.PRIO_PROCESS, 0)))
    log_to(path)


def log_to(path: Path) -> None:
    """Send this process's log to a file of the job."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(LOG_FORMAT, "%H:%M:%S"))
    root = logging.getLogger("quantarion")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False


class AgentActor:
    """HostAgent as a detached, restartable actor: one per host. SIGTERM is the notice that the host will be taken away."""

    def __init__(self, *, job: str, job_folder: str, host: str, node_id: str, address: str) -> None:
        folder = Path(job_folder)
        settle(folder / "logs" / f"agent-{host}.log")
        self._loop = asyncio.new_event_loop()
        self._agent: HostAgent | None = None
        runtime = runtime_dir(job, folder)

        async def serve() -> None:
            self._agent = HostAgent(
                host=host, node_id=node_id, address=address, job_folder=folder, runtime=runtime, parent=os.getppid()
            )
            await self._agent.run()

        def body() -> None:
            try:
                self._loop.run_until_complete(serve())
            except BaseException:
                logging.getLogger("quantarion.agent").exception("the agent failed")
                logging.shutdown()
                os._exit(1)

        signal.signal(signal.SIGTERM, lambda *_: self._loop.call_soon_threadsafe(self._heed))  # Ray's handler would exit
        threading.Thread(target=body, name="agent", daemon=True).start()

    def _heed(self) -> None:
        """In the agent's thread."""
        if self._agent is None:  # it is about to begin
            self._loop.call_soon(self._heed)
        else:
            self._agent.drain("its agent has received SIGTERM")

    def ping(self) -> int:
        """Its process id."""
        return os.getpid()


class WorkerActor:
    """One worker process: idle until its agent hands it a directive."""

    def __init__(self, *, job_folder: str, host: str, address: str) -> None:
        from workers import worker

        folder = Path(job_folder)
        settle(folder / "logs" / f"worker-{host}.log")
        sys.setswitchinterval(0.02)
        worker.start_thread(job_folder=folder, host=host, address=address)

    def ping(self) -> int:
        """Its process id."""
        return os.getpid()
