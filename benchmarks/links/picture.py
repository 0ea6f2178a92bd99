"""Step time against link speed, a line per method, ours on top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.links.cells import RATES, TITLES
from benchmarks.links.methods import ADAPTIVE, ALONE, METHODS, PEERS
from benchmarks.links.summary import Table

UNSHAPED_AT = 10_000
"""Where on the axis of Mbit/s the unshaped links stand."""
BLUE, GREY = "#2864b4", "#c0c6cf"
COLORS = dict(zip(PEERS, ("#c8372d", "#d98b1f", "#1e8c5a"), strict=True))


def points(table: Table, method: str) -> list[tuple[float, float]]:
    """(Mbit/s, milliseconds), from slow links to fast ones."""
    found = ((rate or UNSHAPED_AT, table.get((key, method))) for key, rate in RATES.items())
    return sorted((mbit, timing.median * 1000) for mbit, timing in found if timing is not None)


def draw(tables: Mapping[str, Table], layout: str, path: Path) -> None:
    """A panel for each model of `tables`. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(tables), 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (model, table) in zip(panels, tables.items(), strict=True):
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
                axes.annotate(
                    method.label.removeprefix("ours, "),
                    found[0],
                    (-4, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    fontsize=7,
                    color="#5a6470",
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(4, 1.6 * UNSHAPED_AT)
        axes.set_xticks([rate or UNSHAPED_AT for rate in RATES.values()], [*RATES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.set_title(model, fontsize=10)
        axes.set_xlabel("link, Mbit/s")
        axes.set_ylabel("step, ms (median)")
        axes.legend(fontsize=8)
    figure.suptitle(f"{TITLES[layout]}; thin grey: ours with other settings", fontsize=11)
    figure.savefig(path)
