"""QN-14: `quantarion qins convert | test | chat`, and the sentence and exit code of what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from orchestrator.errors import ExitCode, UserError
from orchestrator.qins_commands import app
from workers.models.transformer import ByteTransformer
from workers.qins.architectures import byte_transformer
from workers.qins.files import save_model

SIZES = byte_transformer(context=16, width=16, depth=1, heads=2)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_model(ByteTransformer(256, 16, 16, 1, 2), tmp_path / "float", SIZES)
    return tmp_path / "float"


def run(*words: object, typed: str | None = None) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def failing(*words: object) -> UserError:
    with pytest.raises(UserError) as refusal:
        run(*words)
    assert "\n" not in str(refusal.value)
    return refusal.value


def test_qn14_convert_then_chat(source: Path, tmp_path: Path) -> None:
    told = run("convert", "--model", source, "--output", tmp_path / "coded")
    assert "5 layers encoded" in told and "times less than float32" in told
    plain = run("convert", "--model", source, "--output", tmp_path / "plain", "--floor", 0)
    assert plain.split("error")[1] != told.split("error")[1]
    answer = run("chat", "--model", tmp_path / "coded", "--prompt", "def ", "--max-tokens", 5)
    assert answer.endswith("\n") and len(answer) > 1
    assert run("chat", "--model", tmp_path / "coded", "--prompt", "def ", "--max-tokens", 5) == answer


def test_qn14_a_conversation_ends_with_an_empty_line_or_the_input(source: Path) -> None:
    for typed in ("a\nb\n\nc\n", "a\nb\n"):
        assert run("chat", "--model", source, "--max-tokens", 3, typed=typed).count("> ") == 3


def test_qn15_test_prints_a_table_or_json(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("the text that was held out, " * 20)
    arguments = ("test", "--model", source, "--text", text, "--windows", 2)
    shown = run(*arguments)
    tiers = ["tier_int8", "tier_v1", "tier_log7", "tier_log8", "tier_exact"]
    assert shown.splitlines()[0].split() == ["v1", "v1_floor", "bf16", "int8", *tiers]
    figures = json.loads(run(*arguments, "--json"))
    assert figures["v1"]["sign_preservation"] == 1 and 1 < figures["v1"]["ratio"] < 2
    exact = figures["tier_exact"]
    assert (exact["greedy"], exact["top1"], exact["kl"], exact["nrmse"]) == (1, 1, 0, 0)  # QN-15
    assert figures["tier_v1"]["nrmse"] == pytest.approx(figures["v1"]["nrmse"])
    assert {"greedy", "top1", "top10", "kl", "perplexity_delta", "mean_relative_error", "nrmse"} <= set(figures["bf16"])


def test_qn14_what_goes_wrong_is_a_sentence_with_an_exit_code(source: Path, tmp_path: Path) -> None:
    refusal = failing("convert", "--model", tmp_path, "--output", tmp_path / "out")
    assert refusal.exit_code == ExitCode.DATA and "holds no model" in str(refusal)
    refusal = failing("convert", "--model", source, "--output", source)
    assert refusal.exit_code == ExitCode.DATA and "there already" in str(refusal)
    (tmp_path / "file").touch()
    refusal = failing("convert", "--model", source, "--output", tmp_path / "file" / "out")
    assert refusal.exit_code == ExitCode.STORAGE and "part of that path is a file" in str(refusal)
    refusal = failing("convert", "--model", source, "--output", tmp_path / "out", "--floor", 0.5)
    assert refusal.exit_code == ExitCode.DATA and "write 0 to 0.1" in str(refusal)
    assert not (tmp_path / "out").exists()
    refusal = failing("chat", "--model", tmp_path / "nothing", "--prompt", "a")
    assert refusal.exit_code == ExitCode.DATA and "no model folder" in str(refusal)
    refusal = failing("test", "--model", source, "--text", tmp_path / "nothing")
    assert refusal.exit_code == ExitCode.DATA and "give a file" in str(refusal)
    run("convert", "--model", source, "--output", tmp_path / "coded")
    refusal = failing("test", "--model", tmp_path / "coded", "--text", source / "manifest.json")
    assert refusal.exit_code == ExitCode.DATA and "not a converted one" in str(refusal)
