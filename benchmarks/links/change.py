"""Links whose speed changes in the middle of a training: what it costs until the plan has followed (CC-21)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.links.cells import RATES, SLOW_STEP, WARM_UP, Cell, Record, run_steps
from benchmarks.links.gang import Hosts
from benchmarks.links.methods import ADAPTIVE, ADAPTIVE_LOOSE, ALONE, FP32, LOOSE, METHODS, POWERSGD
from workers.compression.controller.config import ControllerConfig

STRETCHES = ("1000", "10", "1000")
"""Mbit/s, one after the other."""
STEPS = 500
"""Of a stretch."""
SETTLE, FEW, MANY = 2, 3, 20
"""Of a method that does not react, for each stretch: steps that do not count, and those that do; few where it is slow."""
LONGEST = 120.0
"""Seconds of a stretch after which the rest is reckoned from its last step."""
LAYOUT = "4x1"
BOUND = 1.10


@dataclass(frozen=True)
class ChangeCell(Cell):
    """One method over all stretches."""


def change_cells(models: Sequence[str]) -> Iterator[ChangeCell]:
    for model in models:
        for method in METHODS.values():
            if method is not ALONE:
                yield ChangeCell("change", model, LAYOUT, "-".join(STRETCHES), method.key, 0)


def measure_change(hosts: Hosts, cell: ChangeCell) -> Record:
    """Seconds of the steps of each stretch: of what reacts all `STEPS`, of the others some. Raises CellFailed."""
    reacts = METHODS[cell.method].reacts
    hosts.lab.set_rate(None)
    found = []
    with hosts.start(4, 1, {"model": cell.model, "method": cell.method, "seed": 1}) as gang:
        run_steps(gang, WARM_UP)
        for rate in STRETCHES:
            hosts.lab.set_rate(RATES[rate])
            seconds: list[float] = []
            wanted = STEPS
            if not reacts:
                pace = run_steps(gang, SETTLE).seconds[-1]
                wanted = FEW if pace > SLOW_STEP else MANY
            while len(seconds) < wanted and sum(seconds) < LONGEST:
                slow = not seconds or seconds[-1] > SLOW_STEP
                seconds += run_steps(gang, 1 if slow else min(5, wanted - len(seconds))).seconds
            found.append(seconds)
        hosts.lab.set_rate(None)
        gang.ask({"close": True})
    return {"stretches": found, "seconds": [second for stretch in found for second in stretch], "payload": 0.0}


def spent(record: Record) -> list[float]:
    """Seconds of each stretch: those that were taken, or as many steps of the median time."""
    if METHODS[record["method"]].reacts:
        return [sum(stretch) + (STEPS - len(stretch)) * stretch[-1] for stretch in record["stretches"]]
    return [STEPS * median(stretch) for stretch in record["stretches"]]


def change_section(records: Sequence[Record], kept: Sequence[Record] = ()) -> list[str]:
    """A table for each model that was measured; `kept` tells what codecs leave behind."""
    if not records:
        return []
    lines = [
        "## Links that change their speed",
        "",
        f"4 hosts × 1 rank, {STEPS} steps at each of {', '.join(STRETCHES)} Mbit/s. Seconds of each stretch; those of "
        "adaptive and the ladder count from the moment of the change, those of the others are the median step times "
        f"{STEPS}. *Best* is the sum over the stretches of whichever fixed choice of ours was the fastest there; adaptive "
        f"may take {BOUND:.2f} times that. *Left* is the share of a gradient's energy that a codec leaves to error "
        "feedback in a step, of one rank of a training without any; adaptive's budget for it is "
        f"{ControllerConfig().error_budget:g}, and what leaves more is none of its choices; what "
        "a model learns with it is in the tables of trainings above.",
        "",
    ]
    for model in dict.fromkeys(record["model"] for record in records):
        mine = {record["method"]: spent(record) for record in records if record["model"] == model}
        left = {record["method"]: record["left"] for record in kept if record["model"] == model}
        fixed = {key: times for key, times in mine.items() if METHODS[key].ours and not METHODS[key].reacts}
        best = _best(fixed.values())
        head = ["method", *(f"{rate} Mbit/s" for rate in STRETCHES), "sum", "× best", "left"]
        lines += [f"### {model}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for key in METHODS:
            if key in mine:
                lines.append(_row(METHODS[key].label, mine[key], best, left.get(key)))
        rows, verdicts = [_row("best fixed choice of each stretch", best, best)] if best else [], []
        for method, budget in ((ADAPTIVE, ControllerConfig().error_budget), (ADAPTIVE_LOOSE, LOOSE)):
            if method.key not in mine or not best:
                continue
            verdicts.append(f"- {method.label}: {_verdict(mine[method.key], best)}")
            within = _best(times for key, times in fixed.items() if left.get(key, math.inf) <= budget)
            if within:
                rows.append(_row(f"best that leaves {budget:g} at most", within, best))
                verdicts[-1] += f"; of those that leave {budget:g} at most: {_verdict(mine[method.key], within)}"
        lines += [*rows, "", f"![Step time of adaptive while links change](links-change-{model}.png)", "", *verdicts, ""]
    return lines


def _best(choices: Iterable[Sequence[float]]) -> list[float]:
    """The least seconds of each stretch."""
    return [min(times) for times in zip(*choices, strict=True)]


def _verdict(times: Sequence[float], best: Sequence[float]) -> str:
    ratio = sum(times) / sum(best)
    return f"{ratio:.3f} of the best, {'met' if ratio <= BOUND else 'MISSED'} ({BOUND:.2f})"


def _row(label: str, times: Sequence[float], best: Sequence[float], left: float | None = None) -> str:
    ratio = sum(times) / sum(best) if sum(best) else 0.0
    seconds = (f"{each:.1f}" for each in (*times, sum(times)))
    return f"| {label} | {' | '.join(seconds)} | {ratio:.2f} | {'' if left is None else f'{left:.3f}'} |"


def draw_change(records: Sequence[Record], model: str, path: Path) -> None:
    """Each step of adaptive, and the medians of some others. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {record["method"]: record["stretches"] for record in records if record["model"] == model}
    figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for key, color in ((FP32.key, "#c8372d"), (POWERSGD.key, "#1e8c5a")):
        if key in found:
            heights = [median(stretch) * 1000 for stretch in found[key]]
            edges = [i * STEPS for i in range(len(heights) + 1)]
            axes.stairs(heights, edges, baseline=None, color=color, label=METHODS[key].label)
    if ADAPTIVE.key in found:
        steps = [second * 1000 for stretch in found[ADAPTIVE.key] for second in stretch]
        axes.plot(range(len(steps)), steps, color="#2864b4", linewidth=1.4, label=ADAPTIVE.label)
    for i, rate in enumerate(STRETCHES):
        axes.annotate(f"{rate} Mbit/s", ((i + 0.5) * STEPS, 1), xycoords=("data", "axes fraction"), va="top", ha="center")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("ms")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)
