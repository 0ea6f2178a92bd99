"""CC-23: `quantarion explain compression JOB`, from the folder of a job that runs or has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import cli
from orchestrator.errors import ExitCode, UserError
from tests.orchestrator.fake_operator import append, make_job
from workers.compression.choice import NONE, Choice
from workers.compression.controller import records
from workers.compression.controller.candidates import INT8

PLAN = {"t": 1.0, "kind": "plan", "total_steps": 400, "steps_per_epoch": 40, "num_samples": 960, "parameters": 12}


def job(storage: Path, **compression: Any) -> Path:
    """A folder of a job of 10 epochs."""
    folder = make_job(storage, "demo")
    values = {"name": "demo", "phases": {"fp32_epochs": 10, "qat_epochs": 0}, "hosts": {"max": 2}}
    (folder / "job.json").write_text(json.dumps({**values, "compression": compression} if compression else values))
    return folder


def explained(storage: Path) -> str:
    words = ["explain", "compression", "demo", "--storage", str(storage)]
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_cc22_a_job_without_compression_says_so(tmp_path: Path) -> None:
    for number, compression in enumerate(({}, {"policy": "fixed", "codec": "none"})):
        storage = tmp_path / str(number)
        job(storage, **compression)
        assert explained(storage) == "The gradients of demo are not compressed (policy fixed, codec none)."


def test_cc22_a_fixed_codec_is_named(tmp_path: Path) -> None:
    job(tmp_path, policy="fixed", codec="int8")
    sentence = "The gradients of demo travel between hosts as int8, from the first step on (policy fixed)."
    assert explained(tmp_path) == sentence


def test_cc24_what_merges_by_rounds_sends_parameter_differences(tmp_path: Path) -> None:
    folder = job(tmp_path)
    values = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**values, "sync": {"every": 8, "codec": "int4"}}))
    sentence = "The parameter differences of demo travel between hosts as int4, from the first step on (policy fixed)."
    assert explained(tmp_path) == sentence


def test_cc14_so_is_the_dense_start_that_a_fixed_codec_needs(tmp_path: Path) -> None:
    """max(10 steps, 5 % of the planned ones), of which only the running job knows the number."""
    folder = job(tmp_path, policy="fixed", codec="powersgd 4")
    assert explained(tmp_path) == (
        "The gradients of demo travel between hosts as int8 in the first 10 steps or 5 % of those planned, whichever is "
        "more, the dense start, and as powersgd 4 after it (policy fixed)."
    )
    append(folder / "events.jsonl", PLAN)
    assert "as int8 up to step 20, the dense start, and as powersgd 4 after it" in explained(tmp_path)


def test_cc23_the_decisions_of_a_policy_are_explained(tmp_path: Path) -> None:
    folder = job(tmp_path, policy="adaptive")
    assert explained(tmp_path).startswith("No codec was chosen yet")
    lost, stays = Choice("topk", 0.01), (INT8,)
    append(
        folder / "events.jsonl",
        {"t": 2.0, **records.change(20, 0, NONE, INT8, "saves")},
        {"t": 2.0, **records.plan(20, stays, [0.001], [0.002], round_trip=0.001)},
        {"t": 3.0, **records.change(40, 0, INT8, lost, "saves")},
        {"t": 4.0, "kind": "generation", "generation": [1, 2], "members": [], "authority_step": 39},
        {"t": 5.0, **records.plan(40, stays, [0.001], [0.002], round_trip=0.001)},
    )
    text = explained(tmp_path)
    assert "none" in text and "predicted to save time" in text and "The plan after step 40" in text
    assert str(lost) not in text  # decided in a step that was lost


def test_cc23_an_unknown_job_is_refused_as_by_status(tmp_path: Path) -> None:
    job(tmp_path)
    refusals = []
    for words in (["explain", "compression", "dmeo"], ["status", "dmeo"]):
        with pytest.raises(UserError) as refusal:
            CliRunner().invoke(cli.app, [*words, "--storage", str(tmp_path)], catch_exceptions=False)
        refusals.append((str(refusal.value), refusal.value.exit_code))
    assert refusals[0] == refusals[1] and refusals[0][1] == ExitCode.USAGE


def test_cc23_explain_alone_names_what_can_be_explained(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["explain"])
    assert result.exit_code == ExitCode.USAGE and "compression" in result.output
