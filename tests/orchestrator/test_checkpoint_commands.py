"""CK-11 and CK-10 on the command line: `quantarion checkpoint list | show | verify | convert | restore`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp
from typer.testing import CliRunner

from orchestrator import status
from orchestrator.checkpoint_commands import app
from orchestrator.errors import ExitCode, UserError
from orchestrator.folder import held
from workers.checkpoint import Remote, list_checkpoints, load, newest_valid, save
from workers.checkpoint.chain import Chain
from workers.state import Captured


def run(*words: object, ends: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False, terminal_width=200)
    assert result.exit_code == ends, result.output
    return result.output


def failing(*words: object) -> UserError:
    with pytest.raises(UserError) as refusal:
        run(*words)
    assert "\n" not in str(refusal.value)
    return refusal.value


def state_at(step: int) -> Captured:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(60, 50, generator=generator)
    moved = weight + 1e-3 * step * torch.randn(60, 50, generator=generator)
    tensors = {
        "parameter.layer.weight": moved,
        "parameter.layer.bias": torch.full((60,), float("nan")),
        "buffer.count": torch.tensor(step),
        "optimizer.layer.weight|exp_avg_sq": moved.square() * 1e-6,
    }
    return Captured(tensors, {"at": step})


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The folder of a job with an exact checkpoint and, after it, two of the qins tier."""
    folder, chain = tmp_path / "runs" / "mine", Chain()
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    for step, tier in ((10, "exact"), (20, "qins"), (30, "qins")):
        arguments: dict[str, Any] = {"job": "mine", "generation": (1, 2), "lineage": 3, "world": 4, "fence": lambda: True}
        save(state_at(step), folder / "checkpoints", step=step, tier=tier, chain=chain, whole_every=8, **arguments)
    return folder


def newest(job: Path) -> Path:
    return job / "checkpoints" / "step-30-gen-1.2-qins"


def break_base(job: Path) -> Path:
    """Damage the whole checkpoint that the newest one is a difference to."""
    shard = job / "checkpoints" / "step-20-gen-1.2-qins" / "shard-00000.qins"
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(content)
    return shard


def test_list_shows_what_is_there_and_what_needs_what(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "find", lambda name, storage: storage / name)
    lines = run("list", "mine", "--storage", job.parent).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["30", "qins"], ["20", "qins"], ["10", "exact"]]
    assert (
        "difference to step-20-gen-1.2-qins" in lines[1]
        and "whole" in lines[2]
        and "1.2" in lines[1]
        and "s ago" in lines[1]
    )
    for where in (job, job / "checkpoints"):
        rows = json.loads(run("list", where, "--json"))
        assert [row["step"] for row in rows] == [30, 20, 10]
        assert rows[0]["bases"] == ["step-20-gen-1.2-qins"] and rows[0]["valid"] is None
        assert 0 < rows[0]["bytes"] < rows[1]["bytes"] < rows[2]["bytes"] < rows[2]["raw_bytes"] * 1.2


def test_ck6_what_is_pinned_says_so_and_stays(job: Path) -> None:
    first = job / "checkpoints" / "step-10-gen-1.2"
    assert run("pin", first) == "step-10-gen-1.2 stays\n"
    assert [row["pinned"] for row in json.loads(run("list", job, "--json"))] == [False, False, True]
    assert "pinned" in run("list", job).splitlines()[3]
    assert "may be deleted" in run("pin", first, "--off") and "pinned" not in run("list", job)
    assert "manifest.json is missing" in str(failing("pin", job / "checkpoints" / "step-11-gen-1.2"))


def test_list_says_what_is_damaged_and_goes_on(job: Path) -> None:
    (job / "checkpoints" / "step-20-gen-1.2-qins" / "manifest.json").write_text("{")
    rows = json.loads(run("list", job, "--json"))
    assert [row["valid"] for row in rows] == [False, False, None] and rows[1]["bytes"] is None
    assert "not JSON" in rows[1]["reason"] and "to another step-20-gen-1.2-qins" in rows[0]["reason"]
    assert "not JSON" in run("list", job)


def test_list_without_any_is_one_sentence(tmp_path: Path) -> None:
    assert "no checkpoints" in str(failing("list", tmp_path)) and failing("list", tmp_path).exit_code == ExitCode.DATA
    unknown = failing("list", "nobody", "--storage", tmp_path)
    assert "no job 'nobody'" in str(unknown) and unknown.exit_code == ExitCode.USAGE
    gone = failing("verify", tmp_path / "step-1-gen-1.1")
    assert "no checkpoint at" in str(gone) and gone.exit_code == ExitCode.DATA


def test_show_names_each_tensor_with_its_codec(job: Path) -> None:
    text = run("show", newest(job))
    assert "job mine, step 30, 4 ranks, tier qins, the difference to step-20-gen-1.2-qins; 4 tensors" in text
    assert "int8.128.delta/1" in text and "qins.log8u.delta/1" in text and "60×50" in text and "holds NaN" in text
    shown = json.loads(run("show", newest(job), "--json"))
    tensors = {each["name"]: each for each in shown["tensors"]}
    weight = tensors["parameter.layer.weight"]
    assert (weight["shape"], weight["dtype"], weight["raw"]) == ([60, 50], "float32", 12000)
    assert 0 < weight["stored"] < 3000 and tensors["buffer.count"]["codec"] == "planes.zstd/1"
    assert "there is no checkpoint at" in str(failing("show", job / "checkpoints" / "step-9-gen-1.1"))


def test_verify_reads_all_and_ends_with_3_where_one_is_damaged(job: Path) -> None:
    assert run("verify", job).count(": sound\n") == 3
    shard = break_base(job)
    text = run("verify", job, ends=ExitCode.DATA)
    assert text.count("sound") == 1 and text.count(f"{shard} is damaged") == 2
    run("verify", job / "checkpoints" / "step-10-gen-1.2")
    rows = json.loads(run("verify", newest(job), "--json", ends=ExitCode.DATA))
    assert [row["valid"] for row in rows] == [False]


@pytest.mark.parametrize("everything", [False, True])
def test_ck11_a_checkpoint_becomes_a_plain_state_dict(everything: bool, job: Path, tmp_path: Path) -> None:
    """By the names that the model has; with all tensors by those of the checkpoint."""
    expected = load(newest(job)).tensors
    if not everything:
        expected = {name.partition(".")[2]: each for name, each in expected.items() if not name.startswith("optimizer")}
        assert set(expected) == {"layer.weight", "layer.bias", "count"}
    options = ["--everything"] if everything else []
    file, folder = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "dcp"
    assert "in safetensors" in run("convert", newest(job), file, *options)
    assert "torch.distributed.checkpoint" in run("convert", newest(job), folder, *options)
    empty = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    dcp.load(empty, checkpoint_id=folder, no_dist=True)
    for found in (load_file(file), empty):
        assert set(found) == set(expected)
        assert all(torch.equal(found[name].nan_to_num(9), tensor.nan_to_num(9)) for name, tensor in expected.items())
    for target in (file, folder):
        assert "exists already" in str(failing("convert", newest(job), target))
    assert sorted(path.name for path in file.parent.iterdir()) == ["dcp", "model.safetensors"]


def test_ck11_published_weights_become_a_checkpoint(tmp_path: Path) -> None:
    """In one file, or in several of a folder."""
    first = {"a.weight": torch.randn(256, 30), "a.ids": torch.arange(7)}
    second = {"b.weight": torch.randn(3, 3).bfloat16()}
    source = tmp_path / "published"
    source.mkdir()
    save_file(first, source / "model-1.safetensors")
    assert "times less" in run("convert", source / "model-1.safetensors", tmp_path / "one")
    back = load(next((tmp_path / "one").iterdir()))
    assert set(back.tensors) == {"parameter.a.weight", "buffer.a.ids"}
    assert torch.equal(back.tensors["parameter.a.weight"], first["a.weight"])
    save_file(second, source / "model-2.safetensors")
    run("convert", source, tmp_path / "both", "--tier", "qins", "--weights", "log8")
    found = newest_valid(tmp_path / "both", "qins")
    assert found is not None
    tensors = load(found.path).tensors
    assert tensors["parameter.b.weight"].dtype == torch.bfloat16
    error = (tensors["parameter.a.weight"] - first["a.weight"]).norm() / first["a.weight"].norm()
    assert 0 < float(error) < 0.02
    assert "exists already" in str(failing("convert", source, tmp_path / "both", "--tier", "qins"))
    save_file(first, source / "model-3.safetensors")
    assert "holds tensor 'a.ids', which another file" in str(failing("convert", source, tmp_path / "twice"))


def test_ck10_what_is_no_safetensors_file_is_one_sentence(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"\xff" * 100)
    refusal = failing("convert", wrong, tmp_path / "out")
    assert "it is no safetensors file" in str(refusal) and refusal.exit_code == ExitCode.DATA
    assert "there are no weights at" in str(failing("convert", tmp_path / "nothing", tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    assert "there are no weights at" in str(failing("convert", tmp_path / "empty", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert "--tier is 'half'; write one of exact, qins" in str(
        failing("convert", wrong, tmp_path / "out", "--tier", "half")
    )
    assert "--weights is 'int3'" in str(failing("convert", wrong, tmp_path / "out", "--weights", "int3"))


def test_ck7_a_target_that_cannot_be_written_leaves_nothing(job: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "model.safetensors", tmp_path / "file" / "dcp"):
        refusal = failing("convert", newest(job), target)
        assert "part of that path is a file" in str(refusal) and refusal.exit_code == ExitCode.STORAGE


def test_restore_sets_aside_what_is_newer(job: Path) -> None:
    text = run("restore", job / "checkpoints" / "step-10-gen-1.2")
    assert text.count("set aside: ") == 2 and "--resume" in text
    assert [entry.step for entry in list_checkpoints(job / "checkpoints")] == [10]
    assert len(list((job / "checkpoints").glob("rolled-back-*"))) == 2
    assert run("restore", job / "checkpoints" / "step-10-gen-1.2").count("set aside") == 0


def test_restore_refuses_a_damaged_one_and_a_job_that_runs(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = break_base(job)
    assert f"{shard} is damaged" in str(failing("restore", newest(job)))
    assert "quantarion checkpoint list" in str(failing("restore", job / "checkpoints" / "step-11-gen-1.2"))
    with held(job):
        refusal = failing("restore", job / "checkpoints" / "step-10-gen-1.2")
    assert "which holds" in str(refusal) and refusal.exit_code == ExitCode.RUNNING
    monkeypatch.setattr(status, "fetch", lambda folder: {"phase": "training"} if folder == job else None)
    refusal = failing("restore", newest(job) / ".." / "step-10-gen-1.2")
    assert f"a job named mine is running in {job}; stop it with: " in str(refusal)
    assert refusal.exit_code == ExitCode.RUNNING
    assert len(list_checkpoints(job / "checkpoints")) == 3


def test_ck10_a_job_that_no_job_can_be_called_leads_nowhere(tmp_path: Path) -> None:
    """The manifest of a checkpoint in a store, which anybody may have written."""
    root = Remote(f"memory://{tmp_path.name}")
    arguments: dict[str, Any] = {"generation": (1, 2), "lineage": 3, "world": 4, "fence": lambda: True}
    path = save(state_at(1), root, job="../../elsewhere", step=1, **arguments).path
    assert "is of a job named '../../elsewhere'" in str(failing("restore", path, "--storage", tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []
    assert "a URL; write a folder or file of this machine" in str(failing("convert", path, "s3://bucket/out.safetensors"))


def test_a_job_whose_settings_are_damaged_still_has_its_checkpoints(job: Path) -> None:
    (job / "job.json").write_text("{")
    assert len(json.loads(run("list", job, "--json"))) == 3
