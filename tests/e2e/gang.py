"""A `quantarion train` as a test sees it: from outside, through its folder, its coordinator's port and its output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

from orchestrator import reaper, status
from orchestrator.records import Record, read_events, read_steps

Found = TypeVar("Found")

LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 240.0
"""For anything to happen on a machine that does much else; a test that waits this long has failed."""


def quantarion(*arguments: object, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; stdout and stderr come back together, in `stdout`."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *map(str, arguments)],
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def wait_for(what: str, look: Callable[[], Found | None], *, alive: Callable[[], bool] = lambda: True) -> Found:
    """The first thing that `look` finds; fails where it finds nothing in time, or what it waits for has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        living = alive()
        found = look()
        if found:
            return found
        if not living:
            raise AssertionError(f"it has ended before: {what}")
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE_SECONDS:g} s in vain for: {what}")
        time.sleep(LOOK_SECONDS)


def is_alive(pid: int) -> bool:
    """True while the process runs; a zombie does not."""
    return reaper.identity(pid) is not None


class Gang:
    """One run of `quantarion train`, started at once.

    `name` is the job's, `--set` adds it and `storage` to `arguments`. The run is a session of its own, so that a
    signal to it reaches nothing else.
    """

    def __init__(
        self, job: Path, *arguments: object, storage: Path, name: str, environment: dict[str, str], cwd: Path
    ) -> None:
        self.storage, self.name, self.folder = storage, name, storage / name
        self.environment, self.cwd = environment, cwd
        storage.mkdir(parents=True, exist_ok=True)
        self.log = storage / f"{name}-{len(list(storage.glob(f'{name}-*.out'))) + 1}.out"
        sets = [f"storage={storage}", f"name={name}"]
        command = [sys.executable, "-m", "orchestrator", "train", str(job), *map(str, arguments)]
        command += [part for each in sets for part in ("--set", each)]
        self.started = time.time()
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._driver = str(reaper.identity(self.process.pid))

    # ------------------------------------------------------------------ what it shows

    @property
    def output(self) -> str:
        return self.log.read_text()

    def events(self, kind: str = "", since: float = 0.0) -> list[Record]:
        """Events of this run (a resumed folder holds those of earlier ones), of one kind, from a moment on."""
        since = max(since, self.started)
        return [e for e in read_events(self.folder) if e["t"] >= since and kind in ("", e["kind"])]

    def steps(self) -> list[Record]:
        """The surviving line."""
        return read_steps(self.folder)

    def last_step(self) -> int:
        steps = self.steps()
        return int(steps[-1]["step"]) if steps else 0

    def status(self) -> Record | None:
        """The coordinator's answer; None where it is away."""
        return status.fetch(self.folder)

    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Another command, beside this one."""
        return quantarion(*arguments, environment=self.environment, cwd=self.cwd)

    def members(self) -> dict[int, int]:
        """Rank to pid, of the generation that trains now; empty while none does."""
        state = self.status()
        if state is None or state["phase"] != "training":
            return {}
        ranks = {r["rank"]: r["pid"] for r in state["ranks"] if r["rank"] >= 0}
        training = all(r["state"] == "training" for r in state["ranks"] if r["rank"] >= 0)
        return ranks if training and all(map(is_alive, ranks.values())) else {}

    def coordinator(self) -> int:
        """Its pid."""
        found = status.read_coordinator(self.folder)
        assert found is not None
        return found.pid

    # ------------------------------------------------------------------ waiting

    def until(self, what: str, look: Callable[[], Found | None]) -> Found:
        """Wait for something while the run goes on; fails with the run's output."""
        try:
            return wait_for(what, look, alive=lambda: self.process.poll() is None)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def until_event(self, kind: str, since: float, **fields: object) -> Record:
        def look() -> Record | None:
            found = self.events(kind, since)
            return next((e for e in found if all(e.get(k) == v for k, v in fields.items())), None)

        return self.until(f"event {kind} {fields or ''}", look)

    def until_full(self, ranks: int, spares: int = 1) -> dict[int, int]:
        """Wait until `ranks` ranks train and `spares` idle workers stand by: rank to pid."""

        def look() -> dict[int, int] | None:
            state = self.status() or {"ranks": []}
            idle = sum(r["state"] == "idle" for r in state["ranks"])
            members = self.members()
            return members if len(members) == ranks and idle >= spares else None

        return self.until(f"{ranks} ranks and {spares} spares", look)

    def until_step(self, step: int) -> None:
        self.until(f"step {step}", lambda: self.last_step() >= step)

    def until_more(self, steps: int) -> int:
        """Wait for so many more committed steps; returns the last one before."""
        before = self.last_step()
        self.until_step(before + steps)
        return before

    def end(self) -> int:
        """Wait for the end; the exit code."""
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end\n{self.describe()}") from None

    def describe(self) -> str:
        events = "\n".join(str(event) for event in self.events()[-25:])
        return f"exit code {self.process.poll()}, output:\n{self.output}\nlast events:\n{events}"

    # ------------------------------------------------------------------ signals

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def everything(self) -> list[psutil.Process]:
        """The guardian, the driver, all that descends from it, and all that carries its mark, in this order."""
        tree = self.guardians()
        with suppress(psutil.NoSuchProcess):
            driver = psutil.Process(self.process.pid)
            tree += [driver, *driver.children(recursive=True)]
        known = {process.pid for process in tree}
        for marked in self.marked():
            if marked.pid not in known:
                with suppress(psutil.NoSuchProcess):
                    tree.append(psutil.Process(marked.pid))
        return tree

    def guardians(self) -> list[psutil.Process]:
        """What is to clean up after the driver; no child of it, so that no kill of a process tree takes it along."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if self._driver in process.cmdline():
                    found.append(process)
        return found

    def marked(self) -> list[reaper.Marked]:
        """Living processes of the embedded cluster and the job."""
        return [each for each in reaper.marked() if Path(each.folder) == self.folder]

    def left_over(self) -> list[str]:
        """What is still there of this job: its guardian, marked processes, and every process that its events name."""
        named = {int(event["pid"]) for event in self.events() if "pid" in event}
        named |= {int(m["pid"]) for event in self.events("generation") for m in event["members"]}
        found = status.read_coordinator(self.folder)
        named |= {found.pid} if found else set()
        pids = {pid for pid in named if is_alive(pid)}
        pids |= {each.pid for each in self.guardians()} | {each.pid for each in self.marked()}
        return [_describe(pid) for pid in sorted(pids)]

    def put_away(self) -> None:
        """After a test that failed half-way: nothing of the run may stay."""
        victims = self.everything()
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        reaper.kill(lambda each: Path(each.folder) == self.folder)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def kill(pids: Sequence[int]) -> float:
    """kill -9; the time of it."""
    now = time.time()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return now


def _describe(pid: int) -> str:
    try:
        return f"{pid} {' '.join(psutil.Process(pid).cmdline())[:120]}"
    except psutil.Error:
        return str(pid)
