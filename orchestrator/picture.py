"""`picture.png`: one look at a whole job. Loss, accuracy and live ranks over time, its phases and incidents marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UserError
from orchestrator.records import (
    Incident,
    Record,
    measured_accuracy,
    phase_words,
    read_events,
    read_incidents,
    read_object,
    read_phases,
    read_steps,
    recipe_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "picture.png"
BLUE, GREEN, GREY, RED = "#2864b4", "#1e8c5a", "#5a6470", "#c8372d"
MAX_LABELS = 12
"""More incidents than these keep their line and lose their label."""
SHORTEST_PHASE = 0.02
"""Of the job's time; a shorter phase shares the label of the next one."""

Points = list[tuple[float, float]]
"""(seconds since the start, value)."""


def draw(folder: Path) -> Path:
    """Draw the job in `folder` from its `steps.jsonl` and `events.jsonl`; returns the path of `picture.png` there.

    Raises:
        UserError: matplotlib is not installed.
        OSError: the folder cannot be read or written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError:
        raise UserError("the picture needs matplotlib; install it with: pip install 'quantarion[picture]'") from None
    steps, events = read_steps(folder), read_events(folder)
    start = min((float(record["t"]) for record in (*steps[:1], *events)), default=0.0)
    end = max((float(record["t"]) for record in (*steps, *events)), default=start)
    job, incidents = read_object(folder / "job.json"), read_incidents(events)
    phases = phase_points(events, start) if recipe_of(job) else []
    figure = Figure(figsize=(11, 6.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, ranks = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1.4))
    _draw_loss(loss, _points(steps, "loss", start))
    _draw_accuracy(accuracy, accuracy_points(steps, events, start))
    _draw_ranks(ranks, world_points(steps, events, start), end - start)
    ranks.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in (loss, accuracy, ranks):
        _style(axes)
        _mark(axes, incidents, start)
        _mark_phases(axes, phases)
    _label(loss, incidents, start, end)
    _label_phases(loss, merged(phases, SHORTEST_PHASE * (end - start)))
    figure.suptitle(
        f"{job.get('name') or folder.name}: {len(steps)} committed steps, {_count(incidents)}",
        x=0.01,
        ha="left",
        weight="bold",
    )
    ranks.set_xlabel("seconds since the start")
    path = folder / PICTURE
    figure.savefig(path)
    return path


def _points(steps: Sequence[Record], key: str, start: float) -> Points:
    values = ((float(step["t"]) - start, step.get(key)) for step in steps)
    return [(t, float(value)) for t, value in values if value is not None and math.isfinite(value)]


def accuracy_points(steps: Sequence[Record], events: Sequence[Record], start: float) -> dict[str, Points]:
    """Evaluations by name, from the `evaluation` events; from the steps, where a new value appears, without events."""
    found: dict[str, Points] = {}
    for event in events:
        accuracy = measured_accuracy(event)
        if accuracy is not None:
            found.setdefault(str(event["name"]), []).append((float(event["t"]) - start, accuracy))
    if found:
        return found
    points = _points(steps, "accuracy", start)
    changes = [point for before, point in zip([None, *points], points, strict=False) if not before or before[1] != point[1]]
    return {"evaluation": changes} if changes else {}


def world_points(steps: Sequence[Record], events: Sequence[Record], start: float) -> Points:
    """How many ranks were alive, from when on: members of each generation less those that exited since.

    Without events: the ranks of each committed step.
    """
    points: Points = []
    members: set[str] = set()
    for event in events:
        before = len(members)
        if event["kind"] == "generation":
            members = {str(member["worker"]) for member in event["members"]}
        elif event["kind"] == "worker_exit":
            members.discard(str(event["worker"]))
        elif event["kind"] in ("finished", "failed"):
            members = set()
        if len(members) != before:
            points.append((float(event["t"]) - start, len(members)))
    return points or _points(steps, "ranks", start)


def phase_points(events: Sequence[Record], start: float) -> list[tuple[float, str]]:
    """(seconds since the start, phase as people read it) where each begins."""
    return [(float(phase["t"]) - start, phase_words(phase["phase"])) for phase in read_phases(events)]


def merged(phases: Sequence[tuple[float, str]], shortest: float) -> list[tuple[float, str]]:
    """`phases`, those that are shorter than `shortest` seconds joined to the next one: `data check, FP32 warm-up`."""
    joined: list[tuple[float, str]] = []
    for t, words in phases:
        if joined and t - joined[-1][0] < shortest:
            joined[-1] = (t, f"{joined[-1][1]}, {words}")
        else:
            joined.append((t, words))
    return joined


def _draw_loss(axes: Axes, points: Points) -> None:
    if points:
        t, values = zip(*points, strict=True)
        axes.plot(t, values, color=BLUE, linewidth=0.8, alpha=0.35)
        axes.plot(t, smooth(values), color=BLUE, linewidth=1.8)
    if points and min(value for _, value in points) > 0:
        axes.set_yscale("log")
    axes.set_ylabel("loss")


def smooth(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential mean, m_i = w m_{i-1} + (1 - w) v_i, divided by 1 - w^i so that it is unbiased from the start."""
    mean, smoothed = 0.0, []
    for number, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        smoothed.append(mean / (1 - weight**number))
    return smoothed


def _draw_accuracy(axes: Axes, series: dict[str, Points]) -> None:
    markers, colors = "osD^v", (GREEN, RED, BLUE, GREY)
    for number, (name, points) in enumerate(series.items()):
        t, values = zip(*points, strict=True)
        percent = [100 * value for value in values]
        style: dict[str, Any] = {"marker": markers[number % 5], "color": colors[number % 4], "markersize": 5}
        axes.plot(t, percent, linewidth=1.2, label=f"{name}: {percent[-1]:.1f} %", **style)
    if series:
        axes.legend(loc="lower right", frameon=False)
    axes.set_ylabel("accuracy, %")


def _draw_ranks(axes: Axes, points: Points, end: float) -> None:
    if points:
        t, values = zip(*points, strict=True)
        t, values = (*t, end), (*values, values[-1])
        axes.step(t, values, where="post", color=GREY, linewidth=1.6)
        axes.fill_between(t, values, step="post", color=GREY, alpha=0.15, linewidth=0)
        axes.set_ylim(0, max(values) * 1.25)
        axes.set_xlim(0, 1.01 * end or 1)
    axes.set_ylabel("live ranks")


def _style(axes: Axes) -> None:
    axes.grid(True, color="#d8dce2", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_label_coords(-0.05, 0.5)


def _mark(axes: Axes, incidents: Sequence[Incident], start: float) -> None:
    for incident in incidents:
        axes.axvline(incident.t - start, color=RED, linestyle=(0, (4, 3)), linewidth=1.0, alpha=0.8)


def _mark_phases(axes: Axes, phases: Sequence[tuple[float, str]]) -> None:
    for t, _ in phases:
        axes.axvline(t, color=GREY, linestyle=":", linewidth=1.0, alpha=0.8)


def _label_phases(axes: Axes, phases: Sequence[tuple[float, str]]) -> None:
    """Along each line from the top, where a loss that falls leaves room."""
    for t, words in phases:
        axes.annotate(
            words,
            xy=(t, 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize=8,
            color=GREY,
        )


def _label(axes: Axes, incidents: Sequence[Incident], start: float, end: float) -> None:
    """Say beside each line what happened; neighbours stand at different heights."""
    for number, incident in enumerate(incidents[:MAX_LABELS]):
        late = incident.t > start + 0.85 * (end - start)
        axes.annotate(
            label(incident),
            xy=(incident.t - start, 0.97 - 0.09 * (number % 4)),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if late else 4, 0),
            textcoords="offset points",
            ha="right" if late else "left",
            va="top",
            fontsize=8,
            color=RED,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


def label(incident: Incident) -> str:
    """`rank 2 killed, 0.14 s`: what happened and after how long the others went on."""
    who = f"rank {incident.rank}" if incident.rank is not None else incident.host or "coordinator"
    if incident.kind == "agent_lost":
        who = f"agent of {who}"
    what = {"worker_killed": "killed", "worker_exited": "exited", "apply_failed": "failed"}.get(incident.kind, "lost")
    after = "" if incident.recovery_seconds is None else f", {incident.recovery_seconds:.2f} s"
    return f"{who} {what}{after}"


def _count(incidents: Sequence[Incident]) -> str:
    return "1 incident" if len(incidents) == 1 else f"{len(incidents) or 'no'} incidents"
