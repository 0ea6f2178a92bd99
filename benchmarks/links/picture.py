"""Step time against link speed, a line per method, ours on top."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from benchmarks.links.cells import RATES, TITLES
from benchmarks.links.methods import ADAPTIVE, ALONE, METHODS, PEERS
from benchmarks.links.summary import Table

UNSHAPED_AT = 10_000
"""Where on the axis of Mbit/s the unshaped links stand."""
APART = 0.032
"""Of the height of a panel, between the names of two lines."""
BLUE, GREY = "#2864b4", "#c0c6cf"
COLORS = dict(zip(PEERS, ("#c8372d", "#d98b1f", "#1e8c5a"), strict=True))


def points(table: Table, method: str) -> list[tuple[float, float]]:
    """(Mbit/s, milliseconds), from slow links to fast ones."""
    found = ((rate or UNSHAPED_AT, table.get((key, method))) for key, rate in RATES.items())
    return sorted((mbit, timing.median * 1000) for mbit, timing in found if timing is not None)


def spread(heights: Mapping[str, float], apart: float) -> dict[str, float]:
    """The same heights, moved up where two are nearer than `apart`."""
    found: dict[str, float] = {}
    least = float("-inf")
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        found[name] = max(height, least)
        least = found[name] + apart
    return found


def draw(tables: Mapping[str, Table], layout: str, path: Path) -> None:
    """A panel for each model of `tables`. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(tables), 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (model, table) in zip(panels, tables.items(), strict=True):
        named: dict[str, tuple[float, float]] = {}
        for method in METHODS.values():
            found = points(table, method.key)
            if not found or method is ALONE:
                continue
            first = method is ADAPTIVE
            axes.plot(
                *zip(*found, strict=True),
                marker="o",
                markersize=6 if first else 3.5,
                linewidth=2.8 if first else 1.8 if method.key in COLORS else 1.0,
                color=BLUE if first else COLORS.get(method.key, GREY),
                zorder=4 if first else 3 if method.key in COLORS else 2,
                label=method.label if first or method.key in COLORS else None,
            )
            if method.ours and not first:
                named[method.label.removeprefix("ours, ")] = found[0]
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(0.5, 1.6 * UNSHAPED_AT)
        axes.set_xticks([rate or UNSHAPED_AT for rate in RATES.values()], [*RATES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.set_title(model, fontsize=10)
        axes.set_xlabel("link, Mbit/s")
        axes.set_ylabel("step, ms (median)")
        axes.legend(fontsize=8)
        bottom, top = (math.log10(edge) for edge in axes.get_ylim())
        heights = spread({name: math.log10(at[1]) for name, at in named.items()}, APART * (top - bottom))
        for name, (mbit, milliseconds) in named.items():
            axes.annotate(
                name,
                (mbit, milliseconds),
                (0.74 * mbit, 10 ** heights[name]),
                ha="right",
                va="center",
                fontsize=7,
                color="#5a6470",
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5},
            )
    figure.suptitle(f"{TITLES[layout]}; thin grey: ours with other settings", fontsize=11)
    figure.savefig(path)
