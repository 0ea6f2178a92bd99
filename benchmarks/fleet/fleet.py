"""A fleet that runs: the processes, what they write, and what can be done to a simulated host."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from benchmarks.fleet.log import Log
from benchmarks.fleet.orders import send
from benchmarks.fleet.settings import Settings
from benchmarks.system import ROOT, environment
from orchestrator import status
from orchestrator.folder import prepare
from orchestrator.jobspec import JobSpec
from orchestrator.records import EVENTS, Record

LOOK_SECONDS = 0.05
DRIVER_SECONDS = 10.0
"""Between two signs of life to the coordinator, which waits 60 s for one."""

STATUS_SECONDS = 30.0

T = TypeVar("T")


class FleetError(Exception):
    """Something did not happen in time, or a process has ended: one sentence."""


class Fleet:
    """A coordinator process and those that simulate hosts; ended with the context, whatever happened.

    Args:
        storage: gets the job's folder, `fleet`.
        patience: seconds for anything to happen.
    """

    def __init__(self, settings: Settings, storage: Path, patience: float = 120.0) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="qf-")
        self.settings = replace(settings, sockets=self._temporary.name)
        self._storage, self._patience = storage, patience
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, Log] = {}
        self._shown_at = 0.0
        self.status_seconds: list[float] = []
        """That the coordinator took to answer how all hosts are."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every process. A second call does nothing."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        self._temporary.cleanup()

    # ------------------------------------------------------------------ start

    def _start(self) -> None:
        self.folder = prepare(self._spec(), cluster=None, resume=False, exact=False)
        (self.folder / "logs").mkdir(exist_ok=True)
        self.settings.write(self.folder)
        for number in range(self.settings.generators):
            self._run(f"generator-{number}", "benchmarks.fleet.generator", str(number))
        self.wait_for("the generators", lambda: len(self.befell("ready")) == self.settings.generators)
        self._run("coordinator", "benchmarks.fleet.control")
        self.wait_for("all hosts to be placed", lambda: len(self.events("host_up")) == self.settings.hosts)
        self.attached_at = time.time()
        for number in range(self.settings.generators):
            send(Path(self.settings.sockets), number, do="attach")

    def _spec(self) -> JobSpec:
        hosts = self.settings.hosts
        return JobSpec.model_validate(
            {
                "name": "fleet",
                "storage": str(self._storage),
                "seed": self.settings.seed,
                "global_batch": hosts,
                "micro_batch": 1,
                "ranks_per_host": 1,
                "spares_per_host": 0,
                "hosts": {"min": max(1, hosts // 2), "max": hosts},
                "governor": {
                    "noisy": "enforce",
                    "evaluation": self.settings.evaluation,
                    "apart": self.settings.apart,
                },
            }
        )

    def _run(self, name: str, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.keeper", sys.executable, "-m", module, str(self.folder), *arguments]
        with (self.folder / "logs" / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                command, env=environment(), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    # ------------------------------------------------------------------ looking

    def events(self, kind: str) -> list[Record]:
        """Of the coordinator."""
        return self._log(EVENTS).of(kind)

    def load(self, kind: str) -> list[Record]:
        """What the coordinator's process says of itself."""
        return self._log("load.jsonl").of(kind)

    def befell(self, kind: str) -> list[Record]:
        """Of all generators, one after the other."""
        return [record for number in range(self.settings.generators) for record in self._generator(number, kind)]

    def _generator(self, number: int, kind: str) -> list[Record]:
        return self._log(f"generator-{number}.jsonl").of(kind)

    def _log(self, name: str) -> Log:
        if name not in self._logs:
            self._logs[name] = Log(self.folder / name)
        return self._logs[name]

    def pids(self) -> dict[str, int]:
        """Of the processes that do the work."""
        coordinator = status.read_coordinator(self.folder)
        if coordinator is None:
            raise FleetError("the coordinator has not said where it is")
        ready = {f"generator {n}": int(self._generator(n, "ready")[0]["pid"]) for n in range(self.settings.generators)}
        return {"coordinator": coordinator.pid, **ready}

    def members(self) -> list[str]:
        """Hosts of the last generation."""
        generations = self.events("generation")
        return [member["host"] for member in generations[-1]["members"]] if generations else []

    def is_training(self) -> bool:
        """All members of the last generation run."""
        generations = self.events("generation")
        if not generations:
            return False
        last = generations[-1]
        news = takewhile(lambda event: event["generation"] == last["generation"], reversed(self.events("running")))
        return len({event["rank"] for event in news}) == len(last["members"])

    def trains_without(self, host: str) -> bool:
        return self.is_training() and host not in self.members()

    def configured_at(self) -> float | None:
        """When CONFIGURE of the last generation had reached all members; None while it has not."""
        last = self.events("generation")[-1]["generation"]
        times = [record["t"] for record in self.befell("configured") if record["generation"] == last]
        return max(times) if len(times) == self.settings.generators else None

    def wait_for(self, what: str, look: Callable[[], T | None]) -> T:
        """The first thing that `look` finds. Raises FleetError."""
        deadline = time.monotonic() + self._patience
        while not (found := look()):
            self.show_life()
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                why = f"{', '.join(ended)} has ended" if ended else f"{self._patience:g} s were not enough"
                raise FleetError(f"waiting for {what}: {why}; see {self.folder}/logs")
            time.sleep(LOOK_SECONDS)
        return found

    def rest(self, seconds: float) -> None:
        """Nothing is done to anybody."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.show_life()
            time.sleep(LOOK_SECONDS)

    def show_life(self) -> None:
        """As the process that starts a job does, only not so often."""
        if time.monotonic() < self._shown_at + DRIVER_SECONDS or "coordinator" not in self._processes:
            return
        begun = self._shown_at = time.monotonic()
        if status.fetch(self.folder, STATUS_SECONDS, driver=True) is not None:
            self.status_seconds.append(time.monotonic() - begun)

    # ------------------------------------------------------------------ breaking

    def kill(self, host: str, *, silently: bool = False) -> None:
        """Its agent says that its ranks have died and is gone; or, `silently`, its stream is reset and peers see sockets
        close."""
        self._order(host, do="kill", silently=silently)

    def slow(self, host: str, times: float) -> None:
        """It works so many times as long on a sample from now on."""
        self._order(host, do="slow", times=times)

    def _order(self, host: str, **order: Any) -> None:
        generator = self.settings.generator(self.settings.by_host[host])
        send(Path(self.settings.sockets), generator, host=host, **order)
