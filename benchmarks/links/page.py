"""`docs/results/links.md` from the raw measurements."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median, stdev

from benchmarks.links.cells import (
    LAST_EVALUATIONS,
    LAST_STEPS,
    LEAD_STEPS,
    RATES,
    REACT_STEPS,
    TITLES,
    TURN_STEPS,
    WARM_UP,
    Record,
)
from benchmarks.links.change import change_section
from benchmarks.links.limit import BOUND, EXCHANGES, WAYS, least_seconds
from benchmarks.links.methods import ADAPTIVE, ADAPTIVE_LOOSE, ALONE, FP32, METHODS, START
from benchmarks.links.records import Records, in_order
from benchmarks.links.summary import (
    Table,
    always_first,
    exposed,
    fastest_peer,
    layouts_of,
    learned,
    seconds_to_target,
    timings,
    verdicts,
)
from benchmarks.links.tasks import TASKS, parameters
from benchmarks.machine import made_by

EMPTY = "–"


def page(records: Records, accuracy_layout: str) -> str:
    """The whole page."""
    lines = [
        "# Step time against link speed",
        "",
        "Hosts of a lab on this machine (`benchmarks/lab`), links shaped with tbf, one thread per rank. First come "
        f"{WARM_UP} unshaped steps, so that compressors have left their dense start; then the link gets its speed. What "
        f"chooses by its measurements gets up to {REACT_STEPS} steps there before those that count, the others one or two. "
        "All methods of a layout and a speed live side by side and train in turns, since this machine is faster now and "
        f"slower then; a turn is up to {TURN_STEPS} steps, after up to {LEAD_STEPS} that do not count. A step's time is "
        "the mean over ranks; the table has the median and the 95th percentile. Slow cells have fewer steps; the column "
        "says how many.",
        "",
        "*Exposed* is the median less that of the same compute without any exchange, which takes its turns too. "
        "*kB* are the payload of TCP on a host's interface, per step; beside it what our metric claims. *× peer* is the "
        "median over that of the fastest peer at this speed.",
        "",
        f"Loss (training, the last {LAST_STEPS} steps) and accuracy (held out, the last {LAST_EVALUATIONS} evaluations) "
        f"are those of trainings on {accuracy_layout} over unshaped links, for adaptive and the ladder over links of each "
        "speed: mean and standard deviation over seeds. The time to the set accuracy is the number of steps it took times "
        f"this cell's median, where the first {START} steps of a codec with a dense start count as dense; adaptive and the "
        "ladder were timed while they learned.",
        "",
    ]
    timed, trained, limited = records.of("time"), records.of("accuracy"), records.of("limit")
    changed = records.of("change")
    for model in in_order({record["model"] for record in (*timed, *trained)}, TASKS):
        task = TASKS[model]
        lines += [
            f"## {task.title}",
            "",
            f"{parameters(task) / 1e6:.2f} M parameters, global batch {task.global_batch}.",
            "",
        ]
        for layout in layouts_of(timed, model):
            lines += _section(timed, trained, model, layout)
        lines += _learning(trained, model)
    lines += change_section(changed, records.of("kept"))
    lines += _limit(limited)
    lines += _failed(records.failed())
    lines += _commits(timed)
    commands = dict.fromkeys(record["command"] for record in (*timed, *trained, *limited, *changed))
    return "\n".join([*lines, made_by("\n".join(commands)), ""])


def _commits(timed: Sequence[Record]) -> list[str]:
    """Which contests were timed with which state of the source, where they were not all timed with one."""
    found: dict[str, dict[str, None]] = {}
    for record in timed:
        found.setdefault(record.get("commit") or "unknown", {})[f"{record['layout']} {record['rate']}"] = None
    if len(found) < 2:
        return []
    lines = ["Steps were timed with more than one state of the source:", ""]
    return [*lines, *(f"- `{name}`: {', '.join(contests)}" for name, contests in found.items()), ""]


def _section(timed: Sequence[Record], trained: Sequence[Record], model: str, layout: str) -> list[str]:
    table = timings(timed, model, layout)
    lines = [f"### {TITLES[layout]}", ""]
    if alone := table.get(("unshaped", ALONE.key)):
        lines += [f"Without any exchange a step takes {alone.median * 1000:.1f} ms.", ""]
    target = f"s to {TASKS[model].target:.0%}"
    lines += [
        f"| link | method | steps | ms | p95 | exposed ms | × peer | kB | we claim | loss | accuracy | {target} |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for rate in in_order({rate for rate, _ in table}, RATES):
        methods = in_order({method for each, method in table if each == rate and method != ALONE.key}, METHODS)
        lines += [_row(table, trained, model, rate, method) for method in methods]
    lines += ["", f"![Step time against link speed](links-{layout}.png)", ""]
    return lines + _verdicts(table, model)


def _row(table: Table, trained: Sequence[Record], model: str, rate: str, key: str) -> str:
    timing, method = table[rate, key], METHODS[key]
    peer, beyond = fastest_peer(table, rate), exposed(table, rate, key)
    found = learned(trained, model, method, rate, TASKS[model].target)
    reached = seconds_to_target(table, rate, method, found)
    cells = [
        rate,
        f"**{method.label}**" if method is ADAPTIVE else method.label,
        str(timing.steps),
        f"{timing.median * 1000:.1f}",
        f"{timing.p95 * 1000:.1f}",
        EMPTY if beyond is None else f"{beyond * 1000:.1f}",
        EMPTY if peer is None else f"{timing.median / peer:.2f}",
        f"{timing.payload / 1e3:.0f}",
        EMPTY if timing.claimed is None else f"{timing.claimed / 1e3:.0f} ({timing.claimed / timing.payload - 1:+.1%})",
        EMPTY if found is None else _spread(found.losses, 4),
        EMPTY if found is None else _spread([100 * each for each in found.accuracies], 2) + " %",
        EMPTY if found is None else "never" if found.steps_to_target is None else _seconds(reached),
    ]
    return "| " + " | ".join(cells) + " |"


def _seconds(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.1f}"


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{fmean(values):.{digits}f}"
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean


def _verdicts(table: Table, model: str) -> list[str]:
    """CC-28; also where as much of the gradient may be left to error feedback as a peer of low rank leaves."""
    low_rank = TASKS[model].low_rank
    found = [each for method in (ADAPTIVE, ADAPTIVE_LOOSE) for each in verdicts(table, method, low_rank=low_rank)]
    if not found:
        return []
    lines = ["| method | link | against | ratio of medians | at most | |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {each.method} | {each.rate} | {each.against} | {each.ratio:.3f} | {each.bound:.3f} "
        f"| {'met' if each.met else 'MISSED'} |"
        for each in found
    ]
    first = always_first(table)
    return [*lines, "", f"Within 5 % of the fastest peer at every speed: {', '.join(first) if first else 'none'}.", ""]


def _learning(trained: Sequence[Record], model: str) -> list[str]:
    """Every training, also of cells that were not timed."""
    task = TASKS[model]
    runs = [record for record in trained if record["model"] == model]
    if not runs:
        return []
    seeds = {run["number"] for run in runs}
    steps_of_runs = " or ".join(map(str, sorted({run["curve"][-1][0] for run in runs})))
    lines = [
        f"### {steps_of_runs} steps, {len(seeds)} {'seeds' if len(seeds) > 1 else 'seed'}",
        "",
        f"| method | link | loss | accuracy | points above {FP32.label} | steps to {task.target:.0%} |",
        "|---|---|---|---|---|---|",
    ]
    plain = learned(trained, model, FP32, "unshaped", task.target)
    for method in METHODS.values():
        for rate in RATES if method.reacts else ("unshaped",):
            if found := learned(trained, model, method, rate, task.target):
                steps = "never" if found.steps_to_target is None else f"{found.steps_to_target:.0f}"
                accuracy = _spread([100 * each for each in found.accuracies], 2)
                above = EMPTY if plain is None else f"{100 * (fmean(found.accuracies) - fmean(plain.accuracies)):+.2f}"
                lines.append(f"| {method.label} | {rate} | {_spread(found.losses, 4)} | {accuracy} % | {above} | {steps} |")
    return [*lines, ""]


def _limit(records: Sequence[Record]) -> list[str]:
    """CC-8."""
    if not records:
        return []
    lines = [
        "## The exchange of one bucket",
        "",
        "Uncompressed float32, one rank per host, nothing else to do. Seconds count from the last rank that begins until "
        f"the last has the result; the median of {EXCHANGES}. The limit is 2(H-1)/H · n·b / bandwidth; headers alone take "
        f"4.5 % of a link. The bound is {BOUND} times the limit.",
        "",
        "| hosts | MiB | Mbit/s | limit ms | " + " | ".join(f"{way} ms | × limit" for way in WAYS.values()) + " |",
        "|---|---|---|---|" + "---|---|" * len(WAYS),
    ]
    cases = sorted({(int(r["layout"][0]), int(r["rate"]), int(r["number"])) for r in records})
    seconds = {(int(r["layout"][0]), int(r["rate"]), int(r["number"]), r["method"]): median(r["seconds"]) for r in records}
    for hosts, rate, mebibytes in cases:
        least = least_seconds(hosts, mebibytes, rate)
        cells = [str(hosts), str(mebibytes), str(rate), f"{least * 1000:.1f}"]
        for way in WAYS:
            found = seconds.get((hosts, rate, mebibytes, way))
            cells += [EMPTY, EMPTY] if found is None else [f"{found * 1000:.1f}", f"{found / least:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _failed(records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    lines = ["## Cells that failed", ""]
    for record in records:
        words = (str(record[key]) for key in ("kind", "model", "layout", "rate", "method", "number"))
        lines.append(f"- {' '.join(words)}: {record['error']}")
    return [*lines, ""]
