"""A gang on real processes without Ray (`benchmarks.gang`): break it, and see that nobody else noticed.

A "host" is an address of the loopback network.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gang import gang
from benchmarks.gang.control import death_file
from benchmarks.gang.gang import read_json_lines, read_settings
from benchmarks.gang.zygote import Child
from orchestrator import stop
from orchestrator.audit import audit
from orchestrator.jobspec import JobSpec
from orchestrator.records import read_steps
from tests.gang.program import SAMPLES, learning_rate
from workers.faults import parse
from workers.link import page_path
from workers.memory_file import memory_path
from workers.page import Page

PROGRAM = Path(__file__).with_name("program.py")

GLOBAL_BATCH = 32
STEPS_PER_EPOCH = SAMPLES // GLOBAL_BATCH
EPOCHS = 15
TOTAL_STEPS = EPOCHS * STEPS_PER_EPOCH
WORLD = 4
IMPATIENT = {"prepare": 5.0, "patience": 4.0}
"""Limits for a gang in which a rank is stopped for good."""

ADDRESSES = [f"127.0.0.{number}" for number in range(2, 10)]


@dataclass
class Gang(gang.Gang):
    """Two hosts with two ranks and an idle worker each, unless told otherwise."""

    faults: tuple[str, ...] = ()
    hosts_min: int = 1
    spares: int = 1
    agent_grace: float = 20.0
    exits_allowed: int = 5
    own_seeds: bool = False
    odd_rounds: bool = False
    full: tuple[str, ...] = ()  # hosts whose /dev/shm has no room
    greet: bool = False  # in every generation, over the memory of a host
    reproducible: bool = False
    codec: str = "none"
    policy: str = "fixed"
    sync: dict[str, Any] = field(default_factory=dict)
    topology: dict[str, Any] = field(default_factory=dict)
    governor: dict[str, Any] = field(default_factory=dict)
    security: dict[str, Any] = field(default_factory=dict)
    spare_hosts: int = 0
    groups: dict[str, int] = field(default_factory=dict)  # `group` and `streams` of JobSpec's `hosts`
    lost_device: tuple[int, int] | None = None  # of this rank, in the step after so many
    lame: tuple[str, ...] = ()  # hosts that take LAME_SECONDS longer for a micro-batch
    sensors: tuple[str, ...] = ()  # hosts that have the temperature that `heat` gives them
    epochs: int = EPOCHS
    checkpoint_every: int = 50
    checkpoint: dict[str, Any] = field(default_factory=dict)  # what else
    replace_wait: float = 600.0
    wide: bool = False  # a model for which links matter
    continued: int = 0  # stopped ranks that were let go on in time
    killed: list[int] = field(default_factory=list)  # workers that the test has killed
    agents_killed: int = 0
    coordinators_killed: int = 0

    def _furnish(self) -> None:
        (self.folder / "hurry").unlink(missing_ok=True)
        if self.own_seeds:
            (self.folder / "own-seeds").touch()
        if self.odd_rounds:
            (self.folder / "odd-rounds").touch()
        if self.wide:
            (self.folder / "wide").touch()
        if self.greet:
            (self.folder / "greetings").mkdir()
        if self.lost_device is not None:
            rank, step = self.lost_device
            (self.folder / f"device-{rank}-{step}.lost").touch()
        for host in self.lame:
            (self.folder / f"{host}.lame").touch()
        for host in self.full:
            (self.folder / f"{host}.full").touch()
        for host in self.sensors:
            self.heat(host, 50.0)

    def _spec(self) -> JobSpec:
        return JobSpec.model_validate(
            {
                "name": "gang",
                "storage": str(self.storage),
                "global_batch": GLOBAL_BATCH,
                "micro_batch": 4,
                "reproducible": self.reproducible,
                "compression": {"policy": self.policy, "codec": self.codec},
                "sync": self.sync,
                "topology": self.topology,
                "governor": self.governor,
                "security": self.security,
                "ranks_per_host": self.ranks_per_host,
                "spares_per_host": self.spares,
                "hosts": {
                    "min": self.hosts_min,
                    "max": self.hosts,
                    "spares": self.spare_hosts,
                    **self.groups,
                    "replace_wait": self.replace_wait,
                },
                "task": {"script": str(PROGRAM)},
                "phases": {"fp32_epochs": self.epochs, "qat_epochs": 0},
                "evaluate_every": 5,
                "checkpoint": {"every": self.checkpoint_every, **self.checkpoint},
                "limits": {"agent_grace": self.agent_grace, "exits_allowed": self.exits_allowed},
                "faults": list(self.faults),
            }
        )

    def heat(self, host: str, degrees: float) -> None:
        """What its sensors show from now on, as files of the kernel."""
        for sensor, number, name in (("thermal_zone0", "temp", "type"), ("hwmon0", "temp1_input", "name")):
            folder = self.folder / f"{host}.sensors" / sensor
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("cpu\n")
            (folder / number).write_text(f"{degrees * 1000:.0f}\n")

    @property
    def addresses(self) -> list[str]:
        """Of all machines that there could be."""
        return ADDRESSES

    def wait_for_step(self, step: int) -> None:
        self.wait_for(f"step {step}", lambda: self.step() >= step)

    def wait_until_measured(self) -> None:
        """Until the coordinator knows how long a step takes: then a planned change discards nothing."""
        seen: set[int] = set()

        def look() -> bool:
            state = self.status()
            seen.add(int(state["step"]) if state else 0)
            return len(seen - {0}) > 2

        self.wait_for("some beats", look)

    def wait_for_faults(self) -> None:
        """Until every fault has happened."""
        for text in self.faults:
            self.wait_for(f"the fault {text}", partial(self.has_happened, text))
        for point in self.coordinator_deaths:
            self.wait_for(f"the coordinator's death at {point}", death_file(self.folder, point).exists)

    def has_happened(self, fault: str) -> bool:
        return parse(fault).mark(self.folder / "faults").exists()

    def wait_until_whole(self) -> None:
        """Until `world` living members train in a generation after the first."""
        self.wait_for(f"{self.world} ranks that train again", self._is_whole)

    def _is_whole(self) -> bool:
        made = self.events("generation")
        dead = {c.pid for c in self.processes("worker") if c.status is not None}
        if (
            not made
            or made[-1]["generation"] == [1, 1]
            or len({m["pid"] for m in made[-1]["members"]} - dead) != self.world
        ):
            return False
        running = [r for r in self.events("running") if r["generation"] == made[-1]["generation"]]
        state = self.status()
        training = state is not None and state["phase"] == "training"
        return training and {r["rank"] for r in running} == set(range(self.world))

    # ------------------------------------------------------------------ breaking

    def kill(self, *ranks: int) -> None:
        """kill -9 of the processes of these ranks, all at once; returns when they are dead."""
        members = self.members()
        pids = {int(members[rank]["pid"]) for rank in ranks}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.killed += pids
        self.wait_for("their end", lambda: pids <= {c.pid for c in self.processes() if c.status is not None})

    def wait_until_stopped(self, rank: int) -> int:
        """Until a fault has stopped this rank; returns how often its agent has rung so far."""
        members = self.wait_for("the gang", self.members)
        process = psutil.Process(int(members[rank]["pid"]))
        self.wait_for(f"rank {rank} to stop", lambda: process.status() == psutil.STATUS_STOPPED)
        return self._bell(rank)

    def go_on(self, rank: int, bell: int) -> None:
        """Continue a stopped rank as soon as a directive waits for it: its agent has rung more often than `bell`."""
        self.wait_for(f"a directive for rank {rank}", lambda: self._bell(rank) > bell)
        os.kill(int(self.members()[rank]["pid"]), signal.SIGCONT)
        self.continued += 1

    def _bell(self, rank: int) -> int:
        with closing(self._page(rank)) as page:
            return page.bell

    def page_step(self, rank: int) -> int:
        """The step that a rank says in shared memory to have committed."""
        with closing(self._page(rank)) as page:
            return page.progress().step

    def memory(self, rank: int) -> Path:
        """The file that this rank shows to the others of its host."""
        return memory_path(self.memory_folder, str(self.members()[rank]["worker"]))

    def _page(self, rank: int) -> Page:
        return Page(page_path(self._runtime, str(self.members()[rank]["worker"])))

    def idle(self, host: str) -> int | None:
        """The pid of the spare of a host, once it is up."""
        state = self.status()
        ranks = state["ranks"] if state else []
        return next((int(r["pid"]) for r in ranks if r["host"] == host and r["state"] == "idle"), None)

    def kill_agent(self, host: str, *, hold: bool = False) -> None:
        """kill -9 of an agent; it is started again at once, or after `release("agent")`."""
        self._kill_service("agent", host, hold)
        self.agents_killed += 1

    def kill_coordinator(self, *, hold: bool = False) -> None:
        self._kill_service("coordinator", "", hold)
        self.coordinators_killed += 1

    def _kill_service(self, kind: str, host: str, hold: bool) -> None:
        if hold:
            self._ask(do="hold", kind=kind)
        victim = self._living(kind, host)
        os.kill(victim.pid, signal.SIGKILL)
        self.wait_for(f"the end of the {kind}", lambda: next(c for c in self.processes(kind) if c.pid == victim.pid).status)

    def signal_agent(self, host: str, number: signal.Signals) -> None:
        os.kill(self._living("agent", host).pid, number)

    def _living(self, kind: str, host: str) -> Child:
        """The process, once it is there."""
        return self.wait_for(
            f"the {kind} {host}", lambda: [c for c in self.processes(kind) if c.host == host and c.status is None]
        )[0]

    def lives(self, rank: int) -> bool:
        """Does the process run that has this rank in the last generation?"""
        pid = self.members()[rank]["pid"]
        return any(c.pid == pid and c.status is None for c in self.processes("worker"))

    def release(self, kind: str) -> None:
        self._ask(do="release", kind=kind)

    def stop_host(self, host: str) -> float:
        """SIGSTOP of everything on a host, agent and ranks; the time of it, Unix seconds."""
        now = time.time()
        for child in self.processes():
            if child.host == host and child.status is None:
                os.kill(child.pid, signal.SIGSTOP)
        return now

    def keep_host(self, host: str) -> None:
        """From now on nobody can end what runs on this host, and its machine is no other host."""
        (address,) = {child.address for child in self.processes("agent") if child.host == host}
        settings = read_settings(self.folder)
        others = [each for each in settings["nodes"] if each != address]
        self._write_settings(settings | {"nodes": others, "out_of_reach": [address]})

    def wake_host(self, host: str) -> list[Child]:
        """SIGCONT of everything on a host that was stopped; the processes."""
        woken = [child for child in self.processes() if child.host == host and child.status is None]
        for child in woken:
            os.kill(child.pid, signal.SIGCONT)
        return woken

    def lose_host(self, host: str, *, replace: bool = True) -> None:
        """Everything on a host dies at once, and its address with it; another machine appears."""
        lost = [c for c in self.processes() if c.host == host]
        kept = [address for address in ADDRESSES[: self.hosts + self.spare_hosts] if address != lost[0].address]
        self.set_nodes([*kept, ADDRESSES[-1]] if replace else kept)
        self._ask(do="remove", host=host)

    def stop(self) -> None:
        """As `quantarion stop` does."""
        stop.ask(self.folder, False, "the test asked for it")

    # ------------------------------------------------------------------ the end

    def hurry(self) -> None:
        """From now on a step takes only as long as it needs."""
        (self.folder / "hurry").touch()

    def finish(self) -> int:
        """Let the job run to its end, clear up as `train` does, and return its exit code."""
        self.hurry()
        answer = self.wait_for("the end", self._ended)
        alive = [c for c in self.processes() if c.status is None and not c.removed]
        self.left_over = [c for c in alive if c.kind not in ("coordinator", "observer")]
        self.left_memory = sorted(self.memory_folder.glob("*.memory"))
        self.clear()
        return int(answer["exit_code"])

    def check(self, *, same_as: str | None = None) -> None:
        """Run to the end and assert everything that must hold whatever was broken. What was rolled back is no state.

        `same_as`: the final digest of a run whose arithmetic was the same.
        """
        self.wait_for_faults()
        exit_code = self.finish()
        assert exit_code == 0, self.story()
        self.check_processes()
        self.check_line()
        final = self.check_digests()
        if same_as is not None:
            assert final == same_as

    def check_processes(self) -> None:
        """Nobody died but those that were killed, every survivor left of its own accord, nothing is left over."""
        known = {int(event["pid"]) for event in self.events("worker_up")}
        ended = [c for c in self.processes("worker") if c.pid in known]
        by_signal = [c for c in ended if c.status != 0 and not (c.removed and c.host in self._lost_hosts())]
        expected = len(self.killed) + sum(map(_kills, self.faults)) - self.continued
        assert [c.status for c in by_signal] == [-signal.SIGKILL] * expected, f"{by_signal}\n{self.story()}"
        assert set(self.killed) <= {c.pid for c in by_signal}
        unasked = [c for c in self.processes() if c.kind != "worker" and not c.removed]
        died = len([c for c in unasked if c.kind == "agent"]), len([c for c in unasked if c.kind == "coordinator"])
        assert died == (self.agents_killed, self.coordinators_killed + len(self.coordinator_deaths)), self.story()
        assert self.left_over == [], self.story()
        removed = [f"w{c.pid}-" for c in ended if c.removed]
        assert [path for path in self.left_memory if not path.name.startswith(tuple(removed))] == []

    def _lost_hosts(self) -> set[str]:
        return {str(event["host"]) for event in self.events("host_lost")}

    def check_line(self) -> None:
        """Every step once, at the learning rate that belongs to it; every sample once in each epoch (EP-4, EP-17)."""
        steps = read_steps(self.folder)
        begins = range(0, STEPS_PER_EPOCH, int(self.sync.get("every", 1)))
        first = [epoch * STEPS_PER_EPOCH + batch for epoch in range(self.epochs) for batch in begins]
        total = len(first)
        assert [step["step"] for step in steps] == list(range(1, total + 1))
        assert [step["lr_current"] for step in steps] == pytest.approx([learning_rate(n) for n in first])
        assert [step["inner_steps"] for step in steps] == [
            after - before for before, after in pairwise([*first, self.epochs * STEPS_PER_EPOCH])
        ]
        found = audit(self.folder)
        assert found.problems == []
        assert (found.steps, found.per_epoch, len(found.epochs)) == (total, SAMPLES, self.epochs)

    def check_digests(self) -> str:
        """Equal state ids have equal digests (EP-18), and all members end in one state, whose digest is returned."""
        by_state: dict[tuple[int, ...], set[str]] = defaultdict(set)
        left = list(zip(self.events("rolls_back"), self.events("rolled_back"), strict=True))
        final: dict[str, tuple[int, ...]] = {}
        for path in (self.folder / "digests").glob("*.jsonl"):
            for line in read_json_lines(path):
                state = tuple(line["state"])
                if any(state[0] > begun["at_most"] and state[2:4] < tuple(done["generation"]) for begun, done in left):
                    continue
                by_state[state].add(line["digest"])
                if line["final"]:
                    final[path.stem] = state
        different = {state: digests for state, digests in by_state.items() if len(digests) > 1}
        assert different == {}
        last = {m["worker"] for m in self.events("generation")[-1]["members"]}
        assert last <= final.keys()
        states = {final[worker] for worker in last}
        assert len(states) == 1
        (digest,) = by_state[states.pop()]
        return digest


def _kills(fault: str) -> bool:
    """A stopped process does not answer, so its agent kills it."""
    return parse(fault).action in ("kill", "stop", "hang")


def name(faults: str | tuple[str, ...]) -> str:
    """The id of a test."""
    text = faults if isinstance(faults, str) else "+".join(faults)
    return re.sub(r"[^A-Za-z0-9_+]+", "-", text)
