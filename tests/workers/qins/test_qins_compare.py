"""CK-1: what each codec of weights makes of a checkpoint, beside the exact one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW
from typer.testing import CliRunner

from orchestrator.errors import UserError
from orchestrator.qins_commands import app
from workers.checkpoint import CheckpointError, save
from workers.models.transformer import ByteTransformer, next_token_loss
from workers.qins.compare import CHOICES, compare_checkpoint
from workers.state import ReplicatedState

SIZES = {"context": 16, "width": 16, "depth": 1, "heads": 2}
TEXT = b"def add(x, y):\n    return x + y\n\n\n" * 120


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that has learned a little, with a checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "text"
    folder.mkdir()
    settings = {"name": "text", "optimizer": {"name": "adamw", "lr": 0.01}, "task": {"recipe": "bytes", "text": SIZES}}
    (folder / "job.json").write_text(json.dumps({**settings, "started": 1.0, "checkpoint": {"every": 5}}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ByteTransformer(context=16, width=16, depth=1, heads=2)
        optimizer = AdamW(model.parameters(), lr=0.01)
        tokens = torch.tensor(list(TEXT[:2000]))[: 17 * 117].view(-1, 17)
        for _ in range(30):
            optimizer.zero_grad()
            next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()
            optimizer.step()
    state = ReplicatedState(model, optimizer).capture()
    arguments = {"job": "text", "step": 30, "generation": (1, 1), "lineage": 1, "world": 1}
    save(state, folder / "checkpoints", fence=lambda: True, **arguments)  # type: ignore[arg-type]
    return folder


def checkpoint(job: Path) -> Path:
    return job / "checkpoints" / "step-30-gen-1.1"


def test_ck1_each_choice_has_its_bytes_errors_and_losses(job: Path) -> None:
    rows = {row.name: row for row in compare_checkpoint(checkpoint(job), job, TEXT)}
    assert tuple(rows) == CHOICES
    exact = rows["exact"]
    assert (exact.weights, exact.first, exact.second) == (0.0, 0.0, 0.0)
    assert exact.at_restore is not None and exact.afterwards is not None and exact.afterwards < exact.at_restore
    for name in ("int8", "v1", "log7", "log8"):
        row = rows[name]
        assert row.bytes < exact.bytes / 2 and row.raw_bytes == exact.raw_bytes
        assert row.weights is not None and row.first is not None and row.second is not None
        assert 1e-3 < row.weights < 0.05 and 0 < row.first < 0.05 and 0 < row.second < 0.1
        assert row.at_restore is not None and row.at_restore != exact.at_restore
        assert row.at_restore == pytest.approx(exact.at_restore, rel=0.02)
        assert row.afterwards == pytest.approx(exact.afterwards, rel=0.05)
    assert rows["log8"].weights is not None and rows["log7"].weights is not None
    assert rows["log8"].weights < rows["log7"].weights


def test_ck1_the_same_twice(job: Path) -> None:
    """But for the moment that stands in a manifest."""
    first, second = ([replace(row, bytes=0) for row in compare_checkpoint(checkpoint(job), job, TEXT)] for _ in range(2))
    assert first == second


def run(*words: object) -> str:
    result = CliRunner().invoke(app, ["compare", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_ck1_on_the_command_line(job: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.py"
    text.write_bytes(TEXT)
    rows = json.loads(run(checkpoint(job), "--text", text, "--json"))
    assert [row["name"] for row in rows] == list(CHOICES) and rows[1]["afterwards"] > 0
    lines = run(checkpoint(job)).splitlines()
    assert [line.split()[0] for line in lines] == ["weights", *CHOICES] and lines[1].endswith("–")


def test_what_cannot_be_compared_is_a_sentence(job: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.py"
    short.write_bytes(b"x" * 20)
    for words, sentence in (
        ((checkpoint(job), "--text", short), "the text has 20 bytes; give one of 85 or more"),
        ((checkpoint(job), "--text", tmp_path / "none"), "cannot be read"),
        ((tmp_path / "none",), "no checkpoint at"),
        (("s3://bucket/x/step-1-gen-1.1", "--text", short), "with --text write --job"),
    ):
        with pytest.raises(UserError, match=sentence):
            run(*words)
    other = tmp_path / "job.json"
    other.write_text(json.dumps({"task": {"recipe": "mlp"}}))
    with pytest.raises(CheckpointError, match="only 'bytes'"):
        list(compare_checkpoint(checkpoint(job), tmp_path, TEXT))
