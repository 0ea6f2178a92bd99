"""What a person sees of a storm: a bar with what is going on, and a line for each thing that is done or noticed."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from benchmarks.storm.kinds import TRAITS
from benchmarks.storm.records import Fault
from benchmarks.storm.watch import Watch
from orchestrator.records import Record


def told(event: Record) -> str | None:
    """What is said of an event of the job; None where nothing is."""
    match event:
        case {"kind": "verdict", "act": "evict", "target": target, "mode": "enforce", "guard": ""}:
            return f"{target} is evicted ({', '.join(event['reasons'])})"
        case {"kind": "host_lost", "host": host, "reason": reason}:
            return f"{host} is lost: {reason}"
        case {"kind": "host_left", "host": host}:
            return f"{host} has left"
        case {"kind": "worker_exit", "host": host, "rank": int(rank), "role": "member"}:
            return f"rank {rank} on {host} is gone"
        case {"kind": "generation"}:
            hosts = {member["host"] for member in event["members"]}
            number = ".".join(map(str, event["generation"]))
            return f"generation {number}: {len(event['members'])} ranks on {len(hosts)} hosts ({event['reason']})"
        case {"kind": "digests_differ", "step": step}:
            return f"digests differ after step {step}"
        case {"kind": "resumed", "step": step}:
            return f"the job goes on from the checkpoint of step {step}"
        case {"kind": "non_finite", "rank": rank, "step": step}:
            return f"the gradient of rank {rank} in step {step} is not finite"
        case {"kind": "checkpoint_failed"}:
            return "a checkpoint could not be written"
        case {"kind": "coordinator_started", "recovered": True}:
            return "the coordinator is back"
        case {"kind": "agent_lost" | "agent_back" as kind, "host": host}:
            return f"the agent of {host} is {'gone' if kind == 'agent_lost' else 'back'}"
        case {"kind": "finished" | "failed" as kind}:
            return f"the job has {kind}: {event.get('message', '')}"
        case _:
            return None


class Screen:
    """Inside `with Screen(...)`; in a terminal a live bar, elsewhere only the lines."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(30),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"),
            console=console or Console(),
            refresh_per_second=4,
        )
        self._task: TaskID | None = None
        self.watch: Watch | None = None
        """Of the job, once there is one."""

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.__exit__(kind, error, trace)

    def begins(self, what: str, seconds: float) -> None:
        """A stretch of about so many seconds."""
        self._end_stretch()
        self._task = self._progress.add_task(what, total=seconds, now="")

    def goes_on(self, seconds: float, now: str) -> None:
        """So many of them are over; what happens now."""
        if self._task is not None:
            self._progress.update(self._task, completed=seconds, now=f"{self._pace()}{now}")

    def says(self, fault: Fault, what: str) -> None:
        """Something was done."""
        self._line(Text(f"{fault.words} {what}".rstrip(), style=f"bold {TRAITS[fault.kind].color}"))

    def heard(self, event: Record) -> None:
        """The job tells of something."""
        if (words := told(event)) is not None:
            self._line(Text(f"    {words}", style="dim"))

    def note(self, words: str) -> None:
        """Anything else."""
        self._line(Text(words))

    def _end_stretch(self) -> None:
        if self._task is not None:
            task = self._progress.tasks[self._progress.task_ids.index(self._task)]
            self._progress.update(self._task, completed=task.total, now="")
            self._progress.stop_task(self._task)

    def _pace(self) -> str:
        if self.watch is None or (rate := self.watch.rate) is None:
            return ""
        return f"step {self.watch.step}, {rate:.1f} a second on {self.watch.ranks} ranks; "

    def _line(self, text: Text) -> None:
        self._progress.console.print(
            Text(f"{time.strftime('%H:%M:%S')} ").append_text(text), soft_wrap=True, highlight=False
        )
