"""CK-11, QN-24: what any version of this project has written is read for ever."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from workers.checkpoint import list_checkpoints, load, verify
from workers.checkpoint.catalog import check
from workers.qins.container import read_container
from workers.qins.files import QINSModelLoader

HERE = Path(__file__).parent
SETS = sorted(path.name for path in HERE.iterdir() if path.name.isdigit())
CHECKPOINTS = ("exact", "shards", "round", "qins-int8", "qins-v1", "qins-log7", "qins-log8", "chain")


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, exact: bool) -> None:
    """Bit for bit, or within what two machines' exponentials differ by."""
    assert list(found) and set(found) == set(expected)
    for name, tensor in expected.items():
        ours = found[name]
        assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape), name
        if exact or not tensor.is_floating_point():
            same = (each.contiguous().view(-1).view(torch.uint8) for each in (ours, tensor))
            assert torch.equal(*same), name
        else:
            assert torch.allclose(ours.double(), tensor.double(), rtol=1e-6, atol=0, equal_nan=True), name


def test_there_are_sets() -> None:
    assert len(SETS) >= 2


@pytest.mark.parametrize("number", SETS)
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_ck11_checkpoints_of_every_version_are_read(number: str, kind: str) -> None:
    root = HERE / number / kind
    newest, *older = list_checkpoints(root)
    state = load(newest.path)
    assert_equal(state.tensors, load_file(root / "expected.safetensors"), exact="qins" not in newest.path.name)
    assert state.meta["position"] == {0: newest.step} and state.meta["groups"][0]["betas"] == (0.9, 0.999)
    assert state.meta["best"] == math.inf
    manifest = verify(newest.path)
    assert (manifest.job, manifest.generation, manifest.lineage_number) == ("golden", (2, 3), 2**64 - 2)
    assert len(older) == (2 if kind == "chain" else 0) and all(check(each).valid for each in older)


@pytest.mark.parametrize("number", SETS)
def test_qn24_model_folders_of_every_version_are_read(number: str) -> None:
    root = HERE / number / "model"
    model, _ = QINSModelLoader().load(root / "converted")
    expected = load_file(root / "expected.safetensors")
    with torch.inference_mode():
        assert torch.allclose(model(expected["tokens"]), expected["logits"], atol=1e-5)


@pytest.mark.parametrize("path", sorted(HERE.glob("*/container/*.qins")), ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_qn24_files_of_tensors_of_every_version_are_read(path: Path) -> None:
    assert_equal(read_container(path), load_file(path.with_suffix(".safetensors")), exact=path.stem == "exact")
