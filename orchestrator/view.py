"""What a person sees while a job trains: a live panel in a terminal, plain lines anywhere else.

It only reads: in the job's folder `steps.jsonl`, `events.jsonl` and what the lowest rank prints (`logs/<worker>.out`), and
the status that the coordinator answers.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.output import TaskOutput
from orchestrator.records import (
    EVENT_KEYS,
    EVENTS,
    STEP_KEYS,
    STEPS,
    TRAINING_PHASES,
    Incident,
    Incidents,
    Record,
    Tail,
    calibrated,
    generation_of,
    measured_accuracy,
    phase_words,
)
from orchestrator.report import percent
from orchestrator.sentences import CompressionChanges, event_sentence, incident_sentence, waiting

Status = Mapping[str, Any]
"""A StatusReply as a mapping: phase, step, total_steps, generation, ranks [{rank, host, pid, state}],
hosts [{host, state}], message."""

PLAIN_SECONDS = 5.0
"""Seconds between two lines of progress where there is no terminal."""
RECOVERY_WAIT = 1.5
"""Seconds that the news of a death waits for the news of its recovery, so that one line tells both."""
TOLD = (
    "rank_back",
    "resumed",
    "checkpoint_skipped",
    "checkpoint_failed",
    "record_failed",
    "task_error",
    "data_warning",
    "topology",
    "topology_warning",
    "shared_memory",
    "non_finite",
    "rolls_back",
    "peer_refused",
    "certificate_expires",
    "plaintext",
    "resource_pressure",
)
"""Kinds of events that are said above a live panel too."""
SPARK = "▁▂▃▄▅▆▇█"
COLORS = {
    "healthy": "green",
    "training": "green",
    "finished": "green",
    "lost": "red",
    "failed": "red",
    "detached": "yellow",
    "waiting": "yellow",
    "stopping": "yellow",
}


@dataclass
class Seen:
    """All that the view knows of the job at one moment."""

    title: str
    phase: str = "starting"  # of the job: waiting, starting, training, stopping, finished, failed
    training_phase: str | None = None  # of the recipe: fp32_warmup, qat, …
    calibrated: int = 0  # batches of the calibration in progress
    step: int = 0
    total: int | None = None
    loss: float | None = None
    accuracy: float | None = None  # 0 to 1
    rate: float | None = None  # samples/s
    world: int | None = None  # ranks of the last committed step
    generation: str | None = None
    hosts: list[tuple[str, str]] = field(default_factory=list)  # (host, state)
    ranks: Counter[str] = field(default_factory=Counter)  # state to number
    message: str = ""
    last: str = ""
    elapsed: float = 0.0  # seconds
    incidents: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=2000))


class View:
    """Shows the job in `folder`; call `update()` some four times a second inside `with View(...) as view`.

    What the folder holds before belongs to an earlier run and is not told.

    Args:
        folder: of the job; it need not exist yet, and may be replaced by a new one.
        total: optimizer steps of the whole job, or None where only the coordinator will know.
        status: asks the coordinator; None while it does not answer.
        phases: whether the names of the phases mean anything in this job.
        console: where to write; the terminal by default.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        folder: Path,
        total: int | None = None,
        status: Callable[[], Status | None] = lambda: None,
        *,
        phases: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.console = console or Console()
        self.seen = Seen(title=folder.name, total=total)
        self._status, self._phases, self._clock = status, phases, clock
        self._steps = Tail(folder / STEPS, STEP_KEYS)
        self._events = Tail(folder / EVENTS, EVENT_KEYS)
        for earlier in (self._steps, self._events):
            with suppress(OSError):
                earlier.lines()
        self._output = TaskOutput(folder)
        self._newest = ((0, 0), 0)
        self._phase_step = 0
        self._incidents = Incidents()
        self._changes = CompressionChanges()
        self._untold: list[tuple[float, Incident]] = []
        self._told: list[Incident] = []  # with their recovery
        self._said_once: set[str] = set()
        self._answered = False
        self._started = self._told_progress = clock()
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live = Live(console=self.console, auto_refresh=False) if live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        else:
            steps = f", {self.seen.total} steps" if self.seen.total else ""
            self._say(f"job {self.seen.title}: starting{steps}, folder {self.folder}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._read(self._clock(), to_the_end=True)
        for _, incident in self._untold:
            self._tell_incident(incident)
        self._untold.clear()
        if self._live is not None:
            self._draw(self._live)
            self._live.stop()
        elif self.seen.step:
            self._say(progress_line(self.seen))

    def note(self, text: str) -> None:
        """Say one sentence at once; it stays above the live panel."""
        self.seen.last = text
        self._say(text)

    def update(self) -> None:
        """Read what is new, say what is worth a line, and draw."""
        now = self._clock()
        self._take_status(self._status())
        self._read(now)
        if self._live is not None:
            self._draw(self._live)
        elif self.seen.step and now - self._told_progress >= PLAIN_SECONDS:
            self._told_progress = now
            self._say(progress_line(self.seen))

    def _read(self, now: float, *, to_the_end: bool = False) -> None:
        self.seen.elapsed = now - self._started
        try:
            self._tell_output(to_the_end=to_the_end)
            for record in heapq.merge(self._steps.read(), self._events.read(), key=lambda record: record.get("t") or 0.0):
                if "kind" in record:
                    self._take_event(record, now)
                else:
                    self._take_step(record)
            if to_the_end:
                self._tell_output(to_the_end=True)
        except OSError as error:
            self.seen.last = f"{error.filename} cannot be read ({error.strerror}); training does not depend on it"
        due = [incident for at, incident in self._untold if now - at >= RECOVERY_WAIT]
        for incident in due:
            self._tell_incident(incident)
        self._untold = [(at, incident) for at, incident in self._untold if now - at < RECOVERY_WAIT]

    def _draw(self, live: Live) -> None:
        unicode = self.console.encoding.lower().startswith("utf")
        live.update(panel(self.seen, unicode=unicode), refresh=True)

    def _take_status(self, status: Status | None) -> None:
        seen = self.seen
        if status is None:
            away = self._answered and seen.phase == "training"
            seen.message = "the coordinator does not answer; training goes on without it" if away else ""
            return
        self._answered = True
        phase, message = str(status.get("phase") or seen.phase), str(status.get("message") or "")
        if phase in ("waiting", "starting") and message and (message != seen.message or phase != seen.phase):
            self._say_plain(waiting(message) if phase == "waiting" else message)
        seen.phase, seen.message = phase, message
        seen.step = max(seen.step, int(status.get("step") or 0))
        seen.total = int(status.get("total_steps") or 0) or seen.total
        seen.hosts = [(str(host["host"]), str(host["state"])) for host in status.get("hosts") or ()]
        ranks = status.get("ranks") or ()
        seen.ranks = Counter(str(r["state"]) if int(r.get("rank", 0)) >= 0 else "idle spare" for r in ranks)

    def _take_step(self, step: Record) -> None:
        position = (generation_of(step), int(step["step"]))
        if position <= self._newest:
            return  # a successor wrote a line that its predecessor could not write
        self._newest = position
        seen = self.seen
        seen.step, seen.generation = position[1], "{}.{}".format(*position[0])
        seen.loss, seen.rate, seen.world = step.get("loss"), step.get("training_rate"), step.get("ranks")
        seen.accuracy = seen.accuracy if step.get("accuracy") is None else step["accuracy"]
        if seen.loss is not None:
            seen.losses.append(float(seen.loss))
        if step.get("phase") is not None and seen.step > self._phase_step:  # else the event came before the line
            self._enter_phase(str(step["phase"]), seen.step)

    def _enter_phase(self, phase: str, step: int) -> None:
        seen = self.seen
        if not self._phases or phase == seen.training_phase or step < self._phase_step:
            return
        begins = seen.training_phase is not None or step == 1  # else a resume has come into the middle of it
        seen.training_phase, self._phase_step, seen.calibrated = phase, step, 0
        trains = phase in TRAINING_PHASES
        seen.rate = seen.rate if trains else None
        self._say_plain(f"phase {phase_words(phase)}" + (f" from step {step}" if trains and begins else ""))

    def _take_event(self, event: Record, now: float) -> None:
        incident = self._incidents.add(event)
        self.seen.incidents = len(self._incidents.all)
        if incident is not None and event["kind"] != "rank_back":
            self.seen.last = incident_sentence(incident)
            self._take_incident(incident, now)
            return
        if event["kind"] == "generation":
            self._output.follow(event["members"])
        elif event["kind"] == "phase":
            self._enter_phase(str(event["phase"]), int(event["step"]))
            return
        self.seen.calibrated = calibrated(event) or self.seen.calibrated
        sentence = self._changes.add(event) or event_sentence(event)
        if sentence is None or self._is_repeated(event, sentence):
            return
        self.seen.last = sentence
        if event["kind"] == "resumed":
            self.seen.step = self._phase_step = int(event["step"])
            self.seen.training_phase = None
        elif event["kind"] == "evaluation":
            self.seen.accuracy = measured_accuracy(event)
        elif event["kind"] in ("finished", "failed"):
            self.seen.phase, self.seen.message = event["kind"], ""
        if event["kind"] in TOLD:
            self._say(sentence)
        elif event["kind"] == "gate" and not event["passed"]:
            self._say(sentence, style="yellow")
        elif event["kind"] in ("evaluation", "gate", "stopping", "finished", "compression_plan"):
            self._say_plain(sentence)

    def _is_repeated(self, event: Record, sentence: str) -> bool:
        """Every rank tells of a full disk and of its gradients at every step, and each of a host that it shares no memory;
        a rank that takes over tells of a gate, a warning and a decision again."""
        match event:
            case {"kind": "record_failed" as told}:
                pass
            case {"kind": "shared_memory", "host": which} | {"kind": "non_finite", "parameter": which}:
                told = f"{event['kind']} {which} {event.get('again')}"
            case {"kind": "gate" | "data_warning" | "compression_plan"}:
                told = sentence
            case _:
                return False
        repeated = told in self._said_once
        self._said_once.add(told)
        return repeated

    def _take_incident(self, incident: Incident, now: float) -> None:
        """Hold back an incident that is likely to be recovered from at once; tell it when it was."""
        if incident.recovery_seconds is not None:
            self._untold = [(at, held) for at, held in self._untold if held is not incident]
            if not any(told is incident for told in self._told):
                self._told.append(incident)
                self._tell_incident(incident)
        elif incident.rank is not None or incident.kind == "host_lost":
            self._untold.append((now, incident))
        else:
            self._tell_incident(incident)

    def _tell_incident(self, incident: Incident) -> None:
        self._say(incident_sentence(incident), style="yellow")

    def _tell_output(self, *, to_the_end: bool = False) -> None:
        for line in self._output.read(to_the_end=to_the_end):
            self._say(line)

    def _say_plain(self, text: str) -> None:
        if self._live is None:
            self._say(text)

    def _say(self, text: str, style: str = "") -> None:
        stamp = (f"[{self._clock() - self._started:6.1f} s] ", "dim")
        self.console.print(Text.assemble(stamp, (text, style)), soft_wrap=True)


def progress_line(seen: Seen) -> str:
    """`step 120/372 (32 %), loss 0.213, accuracy 95.1 %, 18,233 samples/s, 8 ranks`."""
    parts = [_position(seen)]
    if seen.calibrated:
        parts.append(_batches(seen))
    if seen.loss is not None:
        parts.append(f"loss {seen.loss:.4g}")
    if seen.accuracy is not None:
        parts.append(f"accuracy {percent(seen.accuracy)}")
    if seen.rate is not None:
        parts.append(f"{seen.rate:,.0f} samples/s")
    if seen.world is not None:
        parts.append(f"{seen.world} {'rank' if seen.world == 1 else 'ranks'}")
    return ", ".join(parts)


def panel(seen: Seen, *, unicode: bool = True) -> RenderableType:
    """The live panel: where the job stands, how well it learns, on what, and what happened last."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", min_width=8)
    rows.add_column(ratio=1)
    color = COLORS.get(seen.phase, "cyan")
    phase = Text(seen.phase, style=f"bold {color}")
    phase.append(f", {phase_words(seen.training_phase)}" if seen.training_phase else "", style="default")
    phase.append(f", {_batches(seen)}" if seen.calibrated else "", style="default")
    phase.append(f"   generation {seen.generation}" if seen.generation else "", style="dim")
    rows.add_row("phase", phase)
    if seen.message:
        words = seen.message.removeprefix("waiting ") if seen.phase == "waiting" else seen.message
        rows.add_row("waiting" if seen.phase == "waiting" else "message", Text(words, style="bold yellow"))
    rows.add_row("step", _progress(seen))
    rows.add_row("learning", _learning(seen, unicode))
    rows.add_row("hosts", _hosts(seen.hosts, unicode))
    rows.add_row("ranks", _states(seen.ranks) if seen.ranks else Text("-" if seen.world is None else str(seen.world)))
    rows.add_row("incidents", Text(str(seen.incidents), style="yellow" if seen.incidents else ""))
    rows.add_row("last", Text(seen.last or "-", overflow="ellipsis", no_wrap=True))
    minutes, seconds = divmod(int(seen.elapsed), 60)
    return Panel(
        rows,
        title=f"quantarion [bold]{seen.title}[/]",
        title_align="left",
        subtitle=f"{minutes}:{seconds:02d}",
        subtitle_align="right",
        border_style=color,
    )


def _progress(seen: Seen) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=seen.total or 1, completed=min(seen.step, seen.total or 0), width=40)
    grid.add_row(bar, Text(_position(seen).removeprefix("step ")))
    return Group(grid)


def _position(seen: Seen) -> str:
    if not seen.total:
        return f"step {seen.step}"
    return f"step {seen.step}/{seen.total} ({100 * seen.step // seen.total} %)"


def _batches(seen: Seen) -> str:
    return f"{seen.calibrated} {'batch' if seen.calibrated == 1 else 'batches'} calibrated"


def _learning(seen: Seen, unicode: bool) -> Text:
    text = Text("loss ").append("-" if seen.loss is None else f"{seen.loss:.4g}", style="bold")
    if unicode and len(seen.losses) > 1:
        text.append(f" {sparkline(list(seen.losses), 20)}", style="cyan")
    text.append("   accuracy ").append(percent(seen.accuracy), style="bold")
    text.append("   ").append("-" if seen.rate is None else f"{seen.rate:,.0f}", style="bold")
    return text.append(" samples/s")


def sparkline(values: list[float], width: int) -> str:
    """`values` as at most `width` bars: the mean of equal pieces, scaled between the least and the greatest mean."""
    width = min(width, len(values))
    edges = [len(values) * i // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    finite = [mean for mean in means if abs(mean) < float("inf")]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    scale = (len(SPARK) - 1) / span if span else 0.0
    return "".join(SPARK[round((mean - low) * scale)] if abs(mean) < float("inf") else "?" for mean in means)


def _hosts(hosts: list[tuple[str, str]], unicode: bool) -> Text:
    """A coloured dot for each of at most 16 hosts, then how many are in which state."""
    text = Text()
    for _, state in hosts if len(hosts) <= 16 else ():
        text.append("● " if unicode else "* ", style=COLORS.get(state, "cyan"))
    return text.append_text(_states(Counter(state for _, state in hosts))) if hosts else Text("-")


def _states(counts: Counter[str]) -> Text:
    parts = [Text(f"{number} {state}", style=COLORS.get(state, "cyan")) for state, number in counts.most_common()]
    return Text(", ").join(parts)
