"""`report.json` and its table: what was measured, null for what was not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.errors import ExitCode
from orchestrator.report import build, exit_code, last_line, percent, show, size, write

START = 1_790_000_000.0


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Two epochs of 8 samples in steps of 4; rank 2 was killed in step 3, which was recomputed."""
    folder = tmp_path / "demo"
    folder.mkdir()
    plan = [(1, 1, 1, 0, 0, 3), (2, 1, 1, 0, 0, 3), (3, 1, 2, 1, 1, 2), (4, 1, 3, 0, 1, 3)]
    steps, samples = [], []
    for step, incarnation, counter, attempt, epoch, ranks in plan:
        header = {"step": step, "generation": [incarnation, counter], "attempt": attempt, "epoch": epoch}
        ids = list(range(4)) if step % 2 else list(range(4, 8))
        steps.append({**header, "t": START + step, "samples": 4, "loss": 1.0 / step, "ranks": ranks})
        samples.append({**header, "ids": ids})
    samples.append({"step": 3, "generation": [1, 1], "attempt": 0, "epoch": 1, "ids": [0, 1]})
    members = [{"rank": rank, "host": f"host-{rank}", "pid": rank, "worker": f"w{rank}"} for rank in range(3)]
    events = [
        {"kind": "generation", "generation": [1, 1], "members": members, "discarded": 0},
        {"kind": "checkpoint", "path": "checkpoints/a", "tier": "exact", "step": 2, "bytes": 9, "raw_bytes": 10},
        {"kind": "worker_exit", "host": "host-2", "rank": 2, "pid": 2, "worker": "w2", "signal": 9, "status": -9},
        {"kind": "generation", "generation": [1, 2], "members": members[:2], "discarded": 1},
        {"kind": "recovered", "incident": "worker_killed", "host": "host-2", "rank": 2, "seconds": 0.25, "world": 2},
        {"kind": "checkpoint", "path": "checkpoints/b", "tier": "exact", "step": 4, "bytes": 50, "raw_bytes": 100},
    ]
    _write(folder / "steps.jsonl", steps)
    _write(folder / "samples" / "rank-0.jsonl", samples)
    times = [0.0, 2.0, 2.5, 2.6, 2.75, 4.0]
    _write(folder / "events.jsonl", [{"t": START + t, **event} for t, event in zip(times, events, strict=True)])
    (folder / "job.json").write_text(json.dumps({"name": "demo", "seed": 7}))
    result = {"accuracy": {"fp32": 0.963, "int8": 0.961}, "bytes": {"fp32": 407080, "int8_packed": 102568}}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_a_report_says_what_the_job_did(job: Path) -> None:
    report = build(job, seconds_total=41.5)
    assert json.loads((job / "report.json").read_text()) == report
    del report["result"]
    assert report == {
        "job": "demo",
        "recipe": None,
        "seed": 7,
        "world": {"min": 2, "max": 3, "final": 3},
        "steps": {"committed": 4, "discarded": 1},
        "samples": {"per_epoch": 8, "each_once": True},
        "phases": [],
        "accuracy": {"fp32": 0.963, "int8": 0.961, "evaluation": None},
        "loss": {"fp32": None, "int8": None},
        "bytes": {"fp32": 407080, "int8_packed": 102568},
        "gates": [],
        "verified": None,
        "checkpoint": {"path": "checkpoints/b", "tier": "exact", "bytes": 50, "ratio": 2.0},
        "resumed": {"path": None, "tier": None, "step": None},
        "incidents": [
            {
                "t": START + 2.5,
                "kind": "worker_killed",
                "host": "host-2",
                "rank": 2,
                "recovery_seconds": 0.25,
                "back_seconds": None,
            }
        ],
        "seconds": {"total": 41.5},
        "output": None,
    }


def test_what_was_not_measured_is_null(tmp_path: Path) -> None:
    report = build(tmp_path, seconds_total=None)
    assert report["world"] == {"min": None, "max": None, "final": None}
    assert report["steps"] == {"committed": 0, "discarded": None}
    assert report["samples"] == {"per_epoch": None, "each_once": None}
    assert report["accuracy"] == {"fp32": None, "int8": None, "evaluation": None}
    assert report["bytes"] == {"fp32": None, "int8_packed": None}
    assert report["loss"] == {"fp32": None, "int8": None}
    assert (report["recipe"], report["phases"], report["gates"], report["verified"]) == (None, [], [], None)
    assert exit_code(report) == ExitCode.DONE
    assert report["checkpoint"] == {"path": None, "tier": None, "bytes": None, "ratio": None}
    assert (report["job"], report["seed"], report["incidents"], report["seconds"]) == (None, None, [], {"total": None})


def test_without_a_record_of_samples_the_coordinator_counts_discards_of_each_incarnation(job: Path) -> None:
    (job / "samples" / "rank-0.jsonl").unlink()
    (job / "samples").rmdir()
    with (job / "events.jsonl").open("a") as file:
        for counter, discarded in ((1, 1), (2, 2)):
            event = {"t": START + 9, "kind": "generation", "generation": [2, counter], "members": []}
            file.write(json.dumps({**event, "discarded": discarded}) + "\n")
    report = build(job, seconds_total=1.0)
    assert report["steps"]["discarded"] == 3
    assert report["samples"]["each_once"] is None


def test_ep17_a_lost_sample_is_in_the_report_and_in_the_last_line(job: Path) -> None:
    record = job / "samples" / "rank-0.jsonl"
    record.write_text(record.read_text().replace("[4, 5, 6, 7]", "[4, 5, 6]", 1))
    report = build(job, seconds_total=1.0)
    assert report["samples"]["each_once"] is False
    assert "THE AUDIT OF SAMPLES FAILED" in last_line(report, job / "report.json")


def test_the_last_line_says_how_it_ended(job: Path) -> None:
    report = build(job, seconds_total=1.0)
    path = Path("runs/demo/report.json")
    end = "INT8 96.1 % (FP32 96.3 %), 4 steps, 1 incident recovered, report in runs/demo/report.json"
    assert last_line(report, path) == f"done: {end}"
    assert last_line(report, path, "stopped") == f"stopped: {end}"
    report["incidents"].append({**report["incidents"][0], "recovery_seconds": None})
    assert "2 incidents (1 with a recovery)" in last_line(report, path)
    report["incidents"].clear()
    report["accuracy"]["int8"] = None
    assert last_line(report, path).startswith("done: FP32 96.3 %, 4 steps, no incidents,")


def test_the_table_shows_every_measured_value_and_ends_with_the_last_line(job: Path) -> None:
    out = io.StringIO()
    report = build(job, seconds_total=41.5)
    path = job / "report.json"
    show(report, path, Console(file=out, width=120, color_system=None))
    text = out.getvalue()
    for part in (
        "INT8 96.1 % (FP32 96.3 %)",
        "INT8 102.6 kB (FP32 407.1 kB)",
        "4 committed, 1 discarded",
        "8 per epoch, each exactly once",
        "2 to 3, at the end 3",
        "checkpoints/b (exact, 50 B, 2.00 times smaller than raw)",
        "worker killed: rank 2 on host-2, went on after 0.25 s",
        "41.5 s",
    ):
        assert part in text, part
    assert text.splitlines()[-1] == last_line(report, path)


def test_the_table_of_an_empty_job_can_be_shown(tmp_path: Path) -> None:
    text = _shown(tmp_path)
    assert "0 committed, - discarded" in text
    assert not any(word in text for word in ("FP32", "weights", "samples", "ranks", "printed"))


def test_a_script_shows_its_own_evaluation_and_where_it_printed(job: Path) -> None:
    (job / "result.json").write_text("{}")
    (job / "logs").mkdir()
    (job / "logs" / "w0.out").write_text("hello\n")
    (job / "logs" / "w1.out").write_text("hello\n")
    with (job / "events.jsonl").open("a") as file:
        for step, name, accuracy in ((2, "evaluate", 0.5), (4, "evaluate", 0.93), (4, "another", 0.1)):
            event = {"t": START + step, "kind": "evaluation", "step": step, "name": name, "accuracy": accuracy}
            file.write(json.dumps(event) + "\n")
    text = _shown(job)
    assert "93.0 %" in text and "logs/w0.out" in text
    assert not any(word in text for word in ("FP32", "INT8", "weights"))
    report = json.loads((job / "report.json").read_text())
    assert report["accuracy"] == {"fp32": None, "int8": None, "evaluation": 0.93}
    assert report["output"] == "logs/w0.out"
    assert last_line(report, job / "report.json").startswith("done: accuracy 93.0 %, 4 steps")


def test_a_script_may_return_its_accuracy_as_one_number(job: Path) -> None:
    (job / "result.json").write_text(json.dumps({"accuracy": 0.75}))
    assert build(job, seconds_total=None)["accuracy"] == {"fp32": None, "int8": None, "evaluation": 0.75}


def gate(name: str, *failures: str) -> dict[str, Any]:
    return {"gate": name, "passed": not failures, "values": {}, "conditions": [], "failures": list(failures)}


def _recipe(folder: Path, recipe: str, **result: Any) -> None:
    """Make the job in `folder` one of a recipe that has returned `result`."""
    (folder / "job.json").write_text(json.dumps({"name": "demo", "seed": 7, "task": {"recipe": recipe, "script": None}}))
    (folder / "result.json").write_text(json.dumps(result))


def _phases(folder: Path, *phases: tuple[str, int]) -> None:
    with (folder / "events.jsonl").open("a") as file:
        for number, (phase, step) in enumerate(phases):
            file.write(json.dumps({"t": START + 5 + number, "kind": "phase", "phase": phase, "step": step}) + "\n")


def test_qs22_the_phases_of_a_recipe_and_its_gates_are_shown(job: Path) -> None:
    gates = [gate("fp32_warmup"), gate("verified")]
    _recipe(job, "spiking", accuracy={"fp32": 0.946, "int8": 0.945}, gates=gates, verified=True)
    _phases(job, ("data", 0), ("fp32_warmup", 1), ("qat", 3), ("calibration", 4), ("verify", 4))
    report = build(job, seconds_total=None)
    assert report["phases"][1:3] == [{"phase": "fp32_warmup", "step": 1}, {"phase": "qat", "step": 3}]
    assert (report["recipe"], report["gates"], report["verified"]) == ("spiking", gates, True)
    text = _shown(job, width=160)
    assert "data check, FP32 warm-up from step 1, QAT from step 3, calibration, verification" in text
    assert "2 of 2 passed" in text
    assert text.splitlines()[-1].startswith("done: INT8 94.5 % (FP32 94.6 %), 4 steps")
    assert exit_code(report) == ExitCode.DONE


def test_ta19_a_model_that_is_not_verified_is_told_plainly_and_ends_with_10(job: Path) -> None:
    failures = ["accuracy_drop is 0.034, but must be <= 0.01", "not_finite is 3, but must be <= 0"]
    gates = [gate("fp32_warmup"), gate("verified", *failures)]
    _recipe(job, "mlp", accuracy={"fp32": 0.946, "int8": 0.912}, gates=gates, verified=False)
    text = _shown(job, width=160)
    assert "1 of 2 passed" in text
    assert f"failed: {failures[0]}; {failures[1]}" in text
    assert text.splitlines()[-1].startswith(
        f"NOT VERIFIED: INT8 91.2 % (FP32 94.6 %), gate verified: {failures[0]} (and 1 more), 4 steps"
    )
    assert exit_code(build(job, seconds_total=None)) == ExitCode.GATE


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_qs29_other_widths_are_never_shown_as_int8(job: Path, bits: int) -> None:
    name = f"int{bits}"
    sizes = {"fp32": 4000, f"{name}_packed": 500}
    _recipe(job, "cnn", accuracy={"fp32": 0.9, name: 0.89}, loss={"fp32": 0.3, name: 0.31}, bytes=sizes, verified=True)
    report = build(job, seconds_total=None)
    assert report["accuracy"] == {"fp32": 0.9, "int8": None, name: 0.89, "evaluation": None}
    assert report["loss"] == {"fp32": 0.3, "int8": None, name: 0.31}
    assert report["bytes"] == {"fp32": 4000, "int8_packed": None, f"{name}_packed": 500}
    text = _shown(job)
    assert f"INT{bits} 89.0 % (FP32 90.0 %)" in text.splitlines()[-1]
    assert f"INT{bits} 500 B (FP32 4.0 kB)" in text
    assert "INT8" not in text


def test_a_language_model_is_judged_by_its_perplexity(job: Path) -> None:
    _recipe(job, "bytes", accuracy={"fp32": 0.6, "int8": 0.59}, loss={"fp32": 1.25, "int8": 1.26}, verified=True)
    text = _shown(job)
    assert text.splitlines()[-1].startswith("done: perplexity INT8 3.525 (FP32 3.49), 4 steps")
    assert "INT8 59.0 % (FP32 60.0 %)" in text


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e6])
def test_a_loss_that_has_gone_astray_can_be_shown(job: Path, loss: float) -> None:
    _recipe(job, "bytes", loss={"fp32": 1.25, "int8": loss}, verified=False, gates=[gate("verified", "it is")])
    assert _shown(job).splitlines()[-1].startswith("NOT VERIFIED: perplexity ")


def _shown(folder: Path, width: int = 80) -> str:
    out = io.StringIO()
    show(build(folder, seconds_total=None), folder / "report.json", Console(file=out, width=width, color_system=None))
    return out.getvalue()


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "report.json"
    write({"result": {"loss": float("nan"), "steps": [1, float("inf"), 2.5]}}, path)
    assert json.loads(path.read_text()) == {"result": {"loss": None, "steps": [1, None, 2.5]}}
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


def test_sizes_and_shares_are_readable() -> None:
    assert [size(n) for n in (None, 999, 1000, 407080, 2_500_000, 3e9)] == [
        "-",
        "999 B",
        "1.0 kB",
        "407.1 kB",
        "2.5 MB",
        "3.0 GB",
    ]
    assert (percent(None), percent(0.961), percent(1.0)) == ("-", "96.1 %", "100.0 %")
