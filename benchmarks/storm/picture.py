"""Steps per second over a storm, with a mark for every fault in the color of its kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.storm.kinds import TRAITS, Kind
from benchmarks.storm.records import Fault
from benchmarks.storm.stretch import Stretch
from benchmarks.storm.summary import Run
from orchestrator.records import Record, surviving

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BIN_SECONDS = 1.0
GREY, BLUE = "#eef1f5", "#2864b4"


def rates(steps: Sequence[Record], begin: float, end: float) -> tuple[list[float], list[float]]:
    """(seconds from `begin`, steps per second), of each bin of a second."""
    bins = [0] * max(1, round((end - begin) / BIN_SECONDS))
    for step in steps:
        place = math.floor((float(step["t"]) - begin) / BIN_SECONDS)
        if 0 <= place < len(bins):
            bins[place] += 1
    return [(place + 0.5) * BIN_SECONDS for place in range(len(bins))], [count / BIN_SECONDS for count in bins]


def draw(run: Run, path: Path) -> None:
    """Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    begin = run.quiet[0].begin if run.quiet else run.storm.begin
    end = max([run.storm.end, *(each.end for each in run.quiet)])
    kept = surviving(run.steps)
    figure = Figure(figsize=(12, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1.4))
    for each in run.quiet:
        above.axvspan(each.begin - begin, each.end - begin, color=GREY, zorder=0)
    above.step(*rates(kept, begin, end), where="mid", color=BLUE, linewidth=1.2)
    above.set_ylim(bottom=0)
    above.set_ylabel("steps a second, kept")
    above.set_title("grey: nothing is done", fontsize=9, loc="left")
    kinds = [kind for kind in Kind if any(fault.kind is kind for fault in run.faults)]
    for fault in run.faults:
        _mark(above, below, fault, kinds.index(fault.kind), run.storm, begin)
    below.set_yticks(range(len(kinds)), [kind.value for kind in kinds], fontsize=7)
    below.set_ylim(len(kinds) - 0.5, -0.5)
    below.grid(axis="y", alpha=0.3)
    below.set_xlabel("seconds; hollow: passed over")
    below.set_xlim(0, end - begin)
    figure.savefig(path)


def _mark(above: Axes, below: Axes, fault: Fault, row: int, storm: Stretch, begin: float) -> None:
    """A line through the steps, and in the row of its kind how long it lasted."""
    color = TRAITS[fault.kind].color
    if fault.t is None:
        below.plot([storm.begin + fault.at - begin], [row], marker="o", markersize=5, markerfacecolor="none", color=color)
        return
    at = fault.t - begin
    above.axvline(at, color=color, linewidth=0.8, alpha=0.7)
    below.plot([at, fault.until - begin], [row, row], color=color, linewidth=4, alpha=0.5, solid_capstyle="butt")
    below.plot([at], [row], marker="o", markersize=5, color=color)
