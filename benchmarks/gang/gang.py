"""One gang: started, looked at and ended. Whoever breaks it or judges it builds on this."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from benchmarks.gang.zygote import Child, ask
from orchestrator import status
from orchestrator.folder import prepare
from orchestrator.jobspec import JobSpec
from orchestrator.records import Record, read_events, read_steps
from workers.memory_file import memory_folder
from workers.paths import runtime_dir

PATIENCE_SECONDS = 90.0
"""For anything to happen on a machine that does much else; whoever waits this long has waited in vain."""

LIMITS = "limits.jsonl"
"""In the job's folder, a line {t, dead, hang} whenever one changes: after how many seconds the coordinator takes a silent
host for dead, and asks ranks that do not get on, as it has learned."""

CONTROL_ADDRESS = "127.0.0.1"

T = TypeVar("T")


class InVain(AssertionError):
    """What was waited for has not happened; with the gang's story."""


@dataclass
class Gang:
    """Coordinator, agents and workers of one job, forked by a zygote.

    A subclass says what is trained (`_spec`) and on which addresses (`addresses`), and lays ready in the job's folder what
    its program looks for (`_furnish`).
    """

    zygote: str  # path of its socket
    storage: Path
    coordinator_deaths: tuple[str, ...] = ()
    hosts: int = 2
    ranks_per_host: int = 2
    limits: dict[str, float] = field(default_factory=dict)  # prepare, patience: seconds, for the coordinator
    nodes: int | None = None  # machines there are at first; as many as hosts where None

    def start(self, *, resume: bool = False) -> Self:
        """Start the coordinator; it starts everything else."""
        self.folder = prepare(self._spec(), cluster=None, resume=resume, exact=resume)
        for name in ("logs", "digests"):
            (self.folder / name).mkdir(exist_ok=True)
        self._furnish()
        self.set_nodes(self.addresses[: self.hosts if self.nodes is None else self.nodes])
        self._ask(do="begin")
        self._ask(do="fork", kind="coordinator")
        return self

    def _spec(self) -> JobSpec:
        raise NotImplementedError

    def _furnish(self) -> None:
        """Before the first process starts."""

    @property
    def addresses(self) -> list[str]:
        """Of all machines that there could be."""
        raise NotImplementedError

    def set_nodes(self, addresses: list[str]) -> None:
        """The machines that could be hosts, from now on."""
        settings = {
            "zygote": self.zygote,
            "address": CONTROL_ADDRESS,
            "out_of_reach": [],
            "draining": {},
            "nodes": addresses,
            "limits": self.limits,
            "deaths": list(self.coordinator_deaths),
            **self.settings(),
        }
        self._write_settings(settings)

    def drain_nodes(self, deadlines: dict[str, float]) -> None:
        """The hosts whose machines Ray drains from now on, and no others: until when (Unix seconds; 0: it does not say)."""
        addresses = {child.host: child.address for child in self.processes("agent")}
        draining = {addresses[host]: deadline for host, deadline in deadlines.items()}
        self._write_settings(read_settings(self.folder) | {"draining": draining})

    def _write_settings(self, settings: dict[str, Any]) -> None:
        temporary = self.folder / "gang.json.new"
        temporary.write_text(json.dumps(settings))
        temporary.replace(self.folder / "gang.json")

    def settings(self) -> dict[str, Any]:
        """What `gang.json` says of this kind of gang beside."""
        return {}

    def status(self) -> dict[str, Any] | None:
        """What the coordinator answers; None where it does not."""
        return status.fetch(self.folder, driver=True)

    def _ask(self, **request: str) -> Any:
        return ask(self.zygote, gang=str(self.folder), **request)

    @property
    def world(self) -> int:
        """Ranks of a gang that lacks nobody."""
        return self.hosts * self.ranks_per_host

    # ------------------------------------------------------------------ looking

    def processes(self, kind: str | None = None) -> list[Child]:
        """Every process that this gang ever had."""
        children = [Child(**entry) for entry in self._ask(do="processes")]
        return [child for child in children if kind in (None, child.kind)]

    def events(self, kind: str) -> list[Record]:
        return [event for event in read_events(self.folder) if event["kind"] == kind]

    def step(self) -> int:
        """The last step on record."""
        steps = read_steps(self.folder)
        return int(steps[-1]["step"]) if steps else 0

    def members(self) -> dict[int, Record]:
        """Rank to {rank, host, pid, worker} of the last generation."""
        generations = self.events("generation")
        return {int(m["rank"]): m for m in generations[-1]["members"]} if generations else {}

    def wait_for(self, what: str, look: Callable[[], T | None]) -> T:
        """The first thing that `look` finds; meanwhile we are the driver that asks how it goes. Raises InVain."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        asked = 0.0
        while not (found := look()):
            if time.monotonic() > deadline:
                raise InVain(f"waited {PATIENCE_SECONDS:g} s in vain for {what}\n{self.story()}")
            if time.monotonic() > asked + 2.0:
                asked = time.monotonic()
                if self._ended() is not None and not look():
                    raise InVain(f"the job ended before {what}\n{self.story()}")
            time.sleep(0.03)
        return found

    def _ended(self) -> Record | None:
        answer = self.status()
        return answer if answer is not None and answer["phase"] in ("finished", "failed") else None

    def story(self) -> str:
        """What somebody needs to see who looks for what went wrong."""
        logs = sorted((self.folder / "logs").glob("*"))
        lines = [f"== {log.name}\n{log.read_text(errors='replace')[-3500:]}" for log in logs]
        processes = [f"{c.kind} {c.host} {c.pid} {c.status} removed={c.removed}" for c in self.processes()]
        return "\n".join([*processes, *lines])

    # ------------------------------------------------------------------ the end

    @property
    def memory_folder(self) -> Path:
        """Where its ranks share memory."""
        return memory_folder(self._runtime)

    @property
    def _runtime(self) -> Path:
        return runtime_dir(self.folder.name, self.folder)

    def clear(self) -> None:
        """Kill what there is, and wait until it is gone."""
        self._ask(do="end")
        self.wait_for("the end of every process", lambda: all(c.status is not None for c in self.processes()))
        for folder in (self._runtime, self.memory_folder):
            shutil.rmtree(folder, ignore_errors=True)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file whose writer may have been killed in the middle of the last one."""
    for line in path.read_text().split("\n")[:-1]:
        yield json.loads(line)


def read_settings(folder: Path) -> dict[str, Any]:
    """`gang.json`."""
    return dict(json.loads((folder / "gang.json").read_text()))
