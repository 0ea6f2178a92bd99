"""`report.json`: what a job did, for machines, and the same as a table for people.

Every value is measured by whoever wrote it down; what nobody measured is null (TA-1).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.audit import SAMPLES, AuditResult, audit
from orchestrator.errors import ExitCode
from orchestrator.output import output_path
from orchestrator.records import (
    TRAINING_PHASES,
    Incident,
    Record,
    phase_words,
    read_events,
    read_incidents,
    read_object,
    read_phases,
    read_steps,
    recipe_of,
)

REPORT = "report.json"

Report = dict[str, Any]
"""`job`, `recipe`, `seed`, `world {min, max, final}`, `steps {committed, discarded}`, `samples {per_epoch, each_once}`,
`phases [{phase, step}]`, `accuracy {fp32, int8, evaluation}`, `loss {fp32, int8}`, `bytes {fp32, int8_packed}`,
`gates [{gate, passed, values, conditions, failures}]`, `verified`, `checkpoint {path, tier, bytes, ratio}`,
`resumed {path, tier, step}`, `incidents [{t, kind, host, rank, recovery_seconds, back_seconds}]`, `seconds {total}`,
`output`, `result`.

Weights of other bits than 8 have numbers of their own, `int4` and `int4_packed`; then those of `int8` are null.

The world is counted in ranks, times are Unix seconds, accuracy is 0 to 1, a loss is in nats; `evaluation` is the accuracy
of the task's own last evaluation. A training phase begins with its `step`, any other one after it. `verified` is null where
the job has not come so far or trains a script, which has neither a `recipe` nor `gates`. `output` is the file with what the
lowest rank printed; `result` is all that the task returned."""

Numbers = Mapping[str, float | None]
"""By name: `fp32`, `int8`, …"""


def build(folder: Path, *, seconds_total: float | None) -> Report:
    """Gather the report of the job in `folder` and write it to `report.json` there.

    Args:
        folder: of the job, with `job.json`, `steps.jsonl`, `events.jsonl` and what else it wrote.
        seconds_total: from the start of the command to now.

    Raises:
        OSError: a file of the job cannot be read, or the report not be written.
    """
    job, result = read_object(folder / "job.json"), read_object(folder / "result.json")
    events, steps = read_events(folder), read_steps(folder)
    audited = audit(folder) if (folder / SAMPLES).is_dir() and steps else None
    report: Report = {
        "job": job.get("name"),
        "recipe": recipe_of(job),
        "seed": job.get("seed"),
        "world": _world(steps),
        "steps": {"committed": len(steps), "discarded": audited.discarded if audited else _discarded(events)},
        "samples": _samples(audited),
        "phases": [_pick(phase, "phase", "step") for phase in read_phases(events)],
        "accuracy": _accuracy(result, events),
        "loss": _widths(result.get("loss")),
        "bytes": _widths(result.get("bytes"), "_packed"),
        "gates": result.get("gates") or [],
        "verified": result.get("verified"),
        "checkpoint": _checkpoint(events),
        "resumed": _resumed(events),
        "incidents": [_incident(incident) for incident in read_incidents(events)],
        "seconds": {"total": seconds_total},
        "output": _output(folder, events),
        "result": result,
    }
    report = _finite(report)
    write(report, folder / REPORT)
    return report


def write(report: Report, path: Path) -> None:
    """Write a report as JSON, whole or not at all; numbers that JSON lacks (NaN, infinity) become null.

    Raises:
        OSError: `path` cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_finite(report), indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def _world(steps: list[Record]) -> dict[str, int | None]:
    """Fewest and most ranks that committed a step, and those of the last one."""
    ranks = [int(step["ranks"]) for step in steps if step.get("ranks") is not None]
    if not ranks:
        return {"min": None, "max": None, "final": None}
    return {"min": min(ranks), "max": max(ranks), "final": ranks[-1]}


def _discarded(events: Iterable[Record]) -> int | None:
    """Discarded steps as the coordinator counts them: each incarnation starts at 0 and says how far it has come."""
    counted: dict[int, int] = {}
    for event in events:
        if event["kind"] == "generation" and isinstance(event.get("discarded"), int):
            incarnation = int(event["generation"][0])
            counted[incarnation] = max(counted.get(incarnation, 0), event["discarded"])
    return sum(counted.values()) if counted else None


def _samples(audited: AuditResult | None) -> dict[str, Any]:
    if audited is None:
        return {"per_epoch": None, "each_once": None}
    return {"per_epoch": audited.per_epoch, "each_once": audited.each_once}


def _accuracy(result: Record, events: Iterable[Record]) -> dict[str, float | None]:
    """What the recipe returned; a script evaluates by `Job(evaluate=…)`, or returns one number."""
    returned = result.get("accuracy")
    if isinstance(returned, int | float):
        return {"fp32": None, "int8": None, "evaluation": float(returned)}
    own = [event.get("accuracy") for event in events if event["kind"] == "evaluation" and event.get("name") == "evaluate"]
    return {**_widths(returned), "evaluation": own[-1] if own else None}


def _widths(source: object, suffix: str = "") -> dict[str, Any]:
    """`fp32`, `int8` and what else `source` holds of that kind: `int4`."""
    found: Mapping[str, Any] = source if isinstance(source, Mapping) else {}
    return _pick(found, "fp32", f"int8{suffix}", *(key for key in found if re.fullmatch(rf"int\d+{suffix}", key)))


def _output(folder: Path, events: Iterable[Record]) -> str | None:
    """Where the lowest rank of the last generation has printed to, inside the folder; None where it printed nothing."""
    generations = [event for event in events if event["kind"] == "generation" and event["members"]]
    if not generations:
        return None
    path = output_path(folder / "logs", min(generations[-1]["members"], key=lambda member: int(member["rank"])))
    return str(path.relative_to(folder)) if path.is_file() and path.stat().st_size else None


def _resumed(events: Iterable[Record]) -> dict[str, Any]:
    """The checkpoint that the last run in the folder has gone on from."""
    found = [event for event in events if event["kind"] == "resumed"]
    return _pick(found[-1] if found else None, "path", "tier", "step")


def _checkpoint(events: Iterable[Record]) -> dict[str, Any]:
    """The last checkpoint that was published; its ratio is raw bytes over bytes on disk."""
    published = [event for event in events if event["kind"] == "checkpoint"]
    last = _pick(published[-1] if published else None, "path", "tier", "bytes", "raw_bytes")
    raw = last.pop("raw_bytes")
    return {**last, "ratio": raw / last["bytes"] if raw and last["bytes"] else None}


def _incident(incident: Incident) -> dict[str, Any]:
    return {
        "t": incident.t,
        "kind": incident.kind,
        "host": incident.host,
        "rank": incident.rank,
        "recovery_seconds": incident.recovery_seconds,
        "back_seconds": incident.back_seconds,
    }


def _pick(source: object, *keys: str) -> dict[str, Any]:
    found: Mapping[str, Any] = source if isinstance(source, Mapping) else {}
    return {key: found.get(key) for key in keys}


def _finite(value: Any) -> Any:
    """`value` with every number that JSON cannot hold replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def show(report: Report, path: Path, console: Console | None = None, *, outcome: str = "done") -> None:
    """Print a report as a table, its last line one sentence that says how the job ended.

    Args:
        report: what `build` returned.
        path: where the report was written, as the last line names it.
        outcome: first word of the last line: `done`, or `stopped` where the job did not come to its end.
    """
    console = console or Console()
    table = Table(title=f"job {_text(report['job'])}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(report):
        table.add_row(name, value)
    console.print(table)
    console.print(last_line(report, path, outcome), soft_wrap=True, highlight=False, markup=False)


def exit_code(report: Report) -> ExitCode:
    """Of a job that has come to its end: GATE where its integer model is not fit to be used."""
    return ExitCode.GATE if report.get("verified") is False else ExitCode.DONE


def last_line(report: Report, path: Path, outcome: str = "done") -> str:
    """`done: INT8 96.1 % (FP32 96.3 %), 372 steps, 1 incident recovered, report in runs/demo/report.json`.

    `NOT VERIFIED: INT8 …, gate verified: accuracy_drop is 0.04, but must be <= 0.01, 372 steps, …` where a gate has failed.
    """
    parts = []
    if perplexities := _compared(_perplexity(report), "{:.4g}".format):
        parts.append(f"perplexity {perplexities}")
    elif accuracies := _compared(report["accuracy"], percent):
        parts.append(accuracies)
    elif report["accuracy"]["evaluation"] is not None:
        parts.append(f"accuracy {percent(report['accuracy']['evaluation'])}")
    if report["verified"] is False:
        outcome = "NOT VERIFIED"
    for gate in _failed(report["gates"]):
        more = len(gate["failures"]) - 1
        parts.append(f"gate {gate['gate']}: {gate['failures'][0]}{f' (and {more} more)' if more else ''}")
    parts.append(_count(report["steps"]["committed"], "step"))
    parts.append(_incidents_phrase(report["incidents"]))
    if report["samples"]["each_once"] is False:
        parts.append("THE AUDIT OF SAMPLES FAILED")
    return f"{outcome}: {', '.join(parts)}, report in {path}"


def _compared(numbers: Numbers, text: Callable[[float | None], str]) -> str:
    """`INT8 96.1 % (FP32 96.3 %)`; `FP32 96.3 %` where nothing was quantized; empty where nothing was measured."""
    widths = {name: value for name, value in numbers.items() if name.startswith("int") and value is not None}
    quantized = ", ".join(f"{name.upper()} {text(value)}" for name, value in widths.items())
    full = "" if numbers["fp32"] is None else f"FP32 {text(numbers['fp32'])}"
    return f"{quantized} ({full or 'FP32 -'})" if quantized else full


def _perplexity(report: Report) -> Numbers:
    """exp of the loss, of a language model."""
    losses: Numbers = report["loss"] if report["recipe"] == "bytes" else {"fp32": None}
    return {name: None if loss is None else math.exp(min(loss, 700.0)) for name, loss in losses.items()}


def _failed(gates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [gate for gate in gates if not gate["passed"]]


def _incidents_phrase(incidents: list[dict[str, Any]]) -> str:
    if not incidents:
        return "no incidents"
    recovered = sum(incident["recovery_seconds"] is not None for incident in incidents)
    number = _count(len(incidents), "incident")
    return f"{number} recovered" if recovered == len(incidents) else f"{number} ({recovered} with a recovery)"


def _rows(report: Report) -> Iterable[tuple[str, str]]:
    world, steps, samples = report["world"], report["steps"], report["samples"]
    accuracy, sizes, checkpoint = report["accuracy"], report["bytes"], report["checkpoint"]
    once = {True: "each exactly once", False: "NOT each exactly once: run the audit", None: "not recorded"}
    if perplexities := _compared(_perplexity(report), "{:.4g}".format):
        yield "perplexity", perplexities
    if accuracies := _compared(accuracy, percent):
        yield "accuracy", accuracies
    elif accuracy["evaluation"] is not None:
        yield "accuracy", percent(accuracy["evaluation"])
    if weights := _compared({name.removesuffix("_packed"): number for name, number in sizes.items()}, size):
        yield "weights", weights
    if left := (report["result"] or {}).get("unquantized"):
        yield "in full precision", ", ".join(left)
    gates, failed = report["gates"], _failed(report["gates"])
    if gates:
        yield "gates", f"{len(gates) - len(failed)} of {len(gates)} passed"
    for gate in failed:
        yield f"gate {gate['gate']}", "failed: " + "; ".join(gate["failures"])
    if report["recipe"] is not None and report["phases"]:
        yield "phases", ", ".join(map(_phase, report["phases"]))
    yield "steps", f"{steps['committed']} committed, {_text(steps['discarded'])} discarded"
    if steps["committed"]:
        yield "samples", f"{_text(samples['per_epoch'])} per epoch, {once[samples['each_once']]}"
        yield "ranks", f"{_text(world['min'])} to {_text(world['max'])}, at the end {_text(world['final'])}"
    if checkpoint["path"] is not None:
        ratio = "" if (checkpoint["ratio"] or 0) < 1 else f", {checkpoint['ratio']:.2f} times smaller than raw"
        yield "checkpoint", f"{checkpoint['path']} ({checkpoint['tier']}, {size(checkpoint['bytes'])}{ratio})"
    if report["resumed"]["path"] is not None:
        yield "resumed from", f"{report['resumed']['path']} ({report['resumed']['tier']})"
    if report["output"] is not None:
        yield "printed", report["output"]
    for number, incident in enumerate(report["incidents"], start=1):
        yield f"incident {number}", _incident_row(incident)
    seconds = report["seconds"]["total"]
    yield "time", "-" if seconds is None else f"{seconds:.1f} s"


def _phase(phase: dict[str, Any]) -> str:
    """`QAT from step 321`; `calibration`, which has no steps."""
    begins = f" from step {phase['step']}" if phase["phase"] in TRAINING_PHASES else ""
    return phase_words(phase["phase"]) + begins


def _incident_row(incident: dict[str, Any]) -> str:
    where = [incident["host"]] if incident["host"] else []
    where = [f"rank {incident['rank']}", *where] if incident["rank"] is not None else where
    parts = [f"{incident['kind'].replace('_', ' ')}{': ' if where else ''}{' on '.join(where)}"]
    if incident["recovery_seconds"] is not None:
        verb = "back" if incident["kind"] == "agent_lost" else "went on"
        parts.append(f"{verb} after {incident['recovery_seconds']:.2f} s")
    if incident["back_seconds"] is not None:
        parts.append(f"full again after {incident['back_seconds']:.2f} s")
    return ", ".join(parts)


def percent(share: float | None) -> str:
    """`96.1 %` for 0.961, `-` for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def size(number: float | None) -> str:
    """Bytes in the largest decimal unit that leaves at least 1: `407.1 kB`; `-` for None."""
    if number is None:
        return "-"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f} B"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _text(value: object) -> str:
    return "-" if value is None else str(value)
