"""QN-17 to QN-19, QN-23: one file of tensors comes back as it was, or is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_tensors
from typer.testing import CliRunner

from orchestrator.errors import ExitCode, UserError
from orchestrator.qins_commands import app
from workers.checkpoint import CheckpointError
from workers.qins.container import CODECS, read_container, write_container

STEPS = {"int8": 1 / 127, "v1": 0.05, "log7": 0.05, "log8": 0.025}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        "weight": torch.randn(70, 33, generator=generator),
        "half": torch.randn(5, 40, generator=generator).bfloat16(),
        "special": torch.cat((torch.tensor([1.0, float("nan"), float("inf"), -0.0, 0.0]), torch.rand(395) + 1)),
        "ones": torch.ones(7),
        "count": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
    }


@pytest.mark.parametrize("codec", CODECS)
def test_qn17_what_is_written_is_read(codec: str, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.qins"
    refused = write_container(path, tensors, codec)
    back = read_container(path)
    assert list(back) == list(tensors) and [path] == list(path.parent.iterdir())
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
    exact = [name for name in tensors if name in ("count", "mask", "none", *refused) or codec == "exact"]
    for name in exact:
        assert back[name].contiguous().view(-1).view(torch.uint8).tolist() == (
            tensors[name].contiguous().view(-1).view(torch.uint8).tolist()
        )
    if codec in ("log7", "log8"):
        head = back["special"][:5]
        assert "special" not in refused and head[0] > 0 and head[1].isnan() and head[2].isinf()
        assert head[3:].tolist() == [0.0, 0.0] and head[3].signbit() and not head[4].signbit()
    for name in set(tensors) - set(exact) - {"special"}:
        ours, theirs = back[name].float(), tensors[name].float()
        bound = STEPS[codec] * (theirs.abs().max() if codec == "int8" else theirs.abs()) + 1e-7
        assert bool(((ours - theirs).abs() <= bound).all()), name


def test_qn17_equal_input_gives_equal_bytes(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_container(tmp_path / f"{name}.qins", tensors, "log8")
    assert (tmp_path / "a.qins").read_bytes() == (tmp_path / "b.qins").read_bytes()


def test_qn23_every_flipped_byte_is_detected(tmp_path: Path) -> None:
    """In every section of the file: each byte in turn."""
    path = tmp_path / "small.qins"
    wanted = {"w": torch.arange(40.0).view(5, 8), "n": torch.tensor(3)}
    write_container(path, wanted, "log7")
    sound, missed = path.read_bytes(), []
    expected = read_container(path)
    for at in range(len(sound)):
        content = bytearray(sound)
        content[at] ^= 0x10
        path.write_bytes(content)
        try:
            found = read_container(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
            continue
        if list(found) != list(expected) or any(not torch.equal(found[name], expected[name]) for name in found):
            missed.append(at)
    assert missed == []


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_qn23_a_file_that_is_cut_is_refused(keep: int, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "cut.qins"
    write_container(path, tensors, "int8")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cut\.qins is damaged"):
        read_container(path)


def test_qn23_a_list_of_tensors_without_a_seal_is_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.qins"
    write_container(path, tensors, "int8")
    with safe_open(path, "numpy") as file:
        blobs = {key: file.get_tensor(key) for key in list(file.keys())}
        metadata = dict(file.metadata())
    del metadata["checksum"]
    save_file({key: np.ascontiguousarray(blob) for key, blob in blobs.items()}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="list of tensors does not match its checksum"):
        read_container(path)


def test_what_is_there_is_not_replaced(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.qins"
    path.write_text("mine")
    with pytest.raises(CheckpointError, match="exists already"):
        write_container(path, tensors, "int8")
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match=r"cannot be written: .*complex64"):
        write_container(tmp_path / "other.qins", {"c": torch.zeros(1, dtype=torch.complex64)}, "int8")
    assert list(tmp_path.iterdir()) == [path]


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_encode_inspect_and_decode_on_the_command_line(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    source, there, back = tmp_path / "in.safetensors", tmp_path / "model.qins", tmp_path / "out.safetensors"
    save_tensors(tensors, source)
    said = run("encode", source, there, "--codec", "int8")
    assert "7 tensors" in said and "bit for bit: special, because" in said
    rows = {row["name"]: row for row in json.loads(run("inspect", there, "--json"))}
    assert rows["weight"]["codec"] == "int8.128/1" and rows["special"]["codec"] == "planes.zstd/1"
    assert rows["weight"]["raw"] == 4 * 70 * 33 and rows["weight"]["stored"] < 70 * 33 * 1.1
    assert "weight  float32 70×33  int8.128/1" in run("inspect", there)
    run("decode", there, back)
    expected = read_container(there)
    for name, tensor in load_file(back).items():
        assert torch.equal(tensor.view(-1).view(torch.uint8), expected[name].view(-1).view(torch.uint8))


@pytest.mark.parametrize(
    ("words", "sentence", "code"),
    [
        (("encode", "in.safetensors", "x.qins"), "there are no weights at in.safetensors", ExitCode.DATA),
        (("encode", "in.safetensors", "x.bin"), "write a name that ends in .qins", ExitCode.USAGE),
        (("encode", "in.safetensors", "x.qins", "--codec", "int3"), "write one of exact, int8", ExitCode.USAGE),
        (("decode", "x.qins", "y.safetensors"), "x.qins is missing", ExitCode.DATA),
        (("decode", "x.qins", "y.bin"), "write a name that ends in .safetensors", ExitCode.USAGE),
        (("inspect", "x.qins"), "x.qins is missing", ExitCode.DATA),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    words: tuple[str, ...], sentence: str, code: ExitCode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence) as refusal:
        run(*words)
    assert refusal.value.exit_code == code and "\n" not in str(refusal.value)


@pytest.mark.parametrize("codec", ["int8", "v1", "log7", "log8"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_qn19_what_is_finite_stays_finite(codec: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The largest numbers there are, whose step is rounded upwards; and what float32 does not hold."""
    largest = torch.finfo(dtype).max
    generator = torch.Generator().manual_seed(3)
    extreme = torch.rand(300, generator=generator, dtype=torch.float64).mul(0.5).add(0.5).mul(largest).to(dtype)
    extreme[::7], extreme[1::7] = largest, -largest
    mask = torch.tensor([0.0, -largest, 1.0, 2.0], dtype=dtype)
    tiny = torch.tensor([1e-300, 1.0, 2.0], dtype=torch.float64)
    write_container(tmp_path / "x.qins", {"extreme": extreme, "mask": mask, "tiny": tiny}, codec)
    back = read_container(tmp_path / "x.qins")
    assert bool(torch.isfinite(back["extreme"]).all()) and bool(torch.isfinite(back["mask"]).all())
    assert torch.equal(back["tiny"], tiny)


def test_ck10_a_file_that_unfolds_to_more_than_there_is_is_refused(tmp_path: Path) -> None:
    write_container(tmp_path / "x.qins", {str(index): torch.zeros(1 << 20) for index in range(4)}, "exact")
    assert (tmp_path / "x.qins").stat().st_size < 1 << 16
    with pytest.raises(CheckpointError, match=r"declares 16777216 bytes of tensors, but only 10485760 can be there"):
        read_container(tmp_path / "x.qins", limit=10 << 20)
