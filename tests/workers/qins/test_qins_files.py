"""QN-7, QN-12: model folders come back identical, or are refused in a sentence before any weight is set."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from workers.checkpoint.errors import CheckpointError, StorageError
from workers.models.transformer import ByteTransformer
from workers.qins import files
from workers.qins.convert import convert_model_to_projective, report_of
from workers.qins.files import QINSModelLoader, model_bytes, save_model
from workers.qins.linear import QINSLinear
from workers.qins.manifest import Architecture
from workers.qins.size import v1_bytes, v1_ratio

Damage = Callable[[Path], object]


@pytest.fixture
def folder(model: ByteTransformer, architecture: Architecture, tmp_path: Path) -> Path:
    convert_model_to_projective(model)
    save_model(model, tmp_path / "model", architecture)
    return tmp_path / "model"


def seal(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the manifest and give it a checksum that fits, as an attacker would."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["checksum"]
    edit(fields)
    fields["checksum"] = sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps(fields))


def forge(edit: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Edit the tensors; size and SHA-256 in the manifest follow."""

    def run(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)
        content = path.read_bytes()
        seal(folder, lambda fields: fields.update(bytes=len(content), sha256=sha256(content).hexdigest()))

    return run


def field(**values: Any) -> Damage:
    return lambda folder: seal(folder, lambda fields: fields.update(values))


def argument(**values: Any) -> Damage:
    return lambda folder: seal(folder, lambda fields: fields["architecture"]["arguments"].update(values))


def entry(name: str, **values: Any) -> Damage:
    return lambda folder: seal(folder, lambda fields: fields["tensors"][name].update(values))


def gone_everywhere(folder: Path) -> None:
    forge(lambda tensors: tensors.pop("norm.bias"))(folder)
    seal(folder, lambda fields: fields["tensors"].pop("norm.bias") and None)


def one_more_everywhere(folder: Path) -> None:
    forge(lambda tensors: tensors.update(more=torch.zeros(3)))(folder)
    seal(folder, lambda fields: fields["tensors"].update(more={"dtype": "float32", "shape": [3], "same_as": None}))


def flip(name: str) -> Damage:
    def run(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return run


HOSTILE: dict[str, tuple[Damage, str]] = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no model folder"),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), "missing"),
    "manifest a pickle": (lambda folder: (folder / "manifest.json").write_bytes(b"\x80\x04K\x01."), "not JSON"),
    "manifest no object": (lambda folder: (folder / "manifest.json").write_bytes(b"[]"), "not a JSON object"),
    "manifest flipped": (flip("manifest.json"), "checksum|not JSON|wrong"),
    "other version": (field(format="quantarion.model/9"), "reads 'quantarion.model/1'.*version of Quantarion"),
    "unknown field": (field(run="rm"), "'run'"),
    "tensors flipped": (flip("model.safetensors"), "SHA-256"),
    "tensors cut": (lambda folder: os.truncate(folder / "model.safetensors", 100), "has 100 bytes instead of"),
    "unknown architecture": (field(architecture={"name": "os", "arguments": {}}), "architecture 'os' is unknown"),
    "unknown argument": (argument(shell=1), "does not take"),
    "huge argument": (argument(depth=10**9), "depth 1000000000"),
    "huge product": (argument(width=12288, heads=1), "of another model"),
    "negative argument": (argument(depth=-1), "depth -1"),
    "heads that do not divide": (argument(heads=7), "does not take"),
    "another architecture": (argument(depth=1), "no tensor 'blocks.1"),
    "tensor missing from the file": (forge(lambda tensors: tensors.pop("norm.bias")), "lacks tensor 'norm.bias'"),
    "tensor missing everywhere": (gone_everywhere, "has no tensor 'norm.bias'"),
    "extra tensor in the file": (forge(lambda tensors: tensors.update(more=torch.zeros(2))), "holds tensor 'more'"),
    "extra tensor everywhere": (one_more_everywhere, "no tensor 'more'"),
    "wrong shape": (forge(lambda tensors: tensors.update({"norm.bias": torch.zeros(3)})), r"'norm.bias' is float32 \[3\]"),
    "wrong dtype": (forge(lambda tensors: tensors.update({"norm.bias": torch.zeros(48).half()})), "is float16"),
    "wrong shape in the table": (entry("norm.bias", shape=[3]), "of another model|not float32"),
    "negative shape": (entry("norm.bias", shape=[-1]), "shape"),
    "alias of nothing": (entry("norm.bias", same_as="nothing"), "said to be"),
    "alias of itself": (entry("norm.bias", same_as="norm.bias"), "said to be"),
    "illegal code": (forge(lambda tensors: tensors["head.stored"].zero_()), "code 0"),
    "range of NaN": (forge(lambda tensors: tensors["head.log_max"].fill_(float("nan"))), "no range"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_qn12_what_is_wrong_is_said_in_a_sentence_before_weights_are_set(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, words = HOSTILE[name]
    damage(folder)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *arguments: pytest.fail("weights were set"))
    with pytest.raises(CheckpointError, match=words) as refusal:
        QINSModelLoader().load(folder)
    assert "\n" not in str(refusal.value)


def test_qn12_loaded_and_converted_models_give_identical_outputs(
    model: ByteTransformer, folder: Path, tokens: torch.Tensor
) -> None:
    loaded, tokenizer = QINSModelLoader().load(folder)
    assert any(isinstance(module, QINSLinear) for module in model.modules()) and not loaded.training
    assert torch.equal(loaded(tokens[:8, :-1]), model(tokens[:8, :-1]))
    assert tokenizer.decode(tokenizer.encode("Grüße")) == "Grüße"


def test_qn12_float_and_partly_converted_models_are_kept_too(
    model: ByteTransformer, architecture: Architecture, tokens: torch.Tensor, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "float", architecture)
    assert torch.equal(QINSModelLoader().load(tmp_path / "float")[0](tokens[:2, :-1]), model(tokens[:2, :-1]))
    convert_model_to_projective(model, skip=["head"])
    save_model(model, tmp_path / "partly", architecture)
    loaded = QINSModelLoader().load(tmp_path / "partly")[0]
    assert isinstance(loaded.get_submodule("head"), nn.Linear)
    assert torch.equal(loaded(tokens[:2, :-1]), model(tokens[:2, :-1]))


def test_qn12_tied_tensors_are_stored_once_and_come_back(
    model: ByteTransformer, architecture: Architecture, tmp_path: Path
) -> None:
    model.head.weight = model.token_embedding.weight
    manifest = save_model(model, tmp_path / "tied", architecture)
    assert manifest.tensors["head.weight"].same_as == "token_embedding.weight"
    loaded = QINSModelLoader().load(tmp_path / "tied")[0].state_dict()
    assert torch.equal(loaded["head.weight"], model.token_embedding.weight)


def test_qn12_a_folder_is_never_overwritten_and_a_failed_write_leaves_nothing(
    folder: Path, model: ByteTransformer, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="there already"):
        save_model(model, folder, architecture)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(StorageError, match="disk is full"):
        save_model(model, folder.with_name("other"), architecture)
    assert os.listdir(folder.parent) == [folder.name]


def test_qn12_a_model_of_another_architecture_is_not_written(
    model: ByteTransformer, architecture: Architecture, tmp_path: Path
) -> None:
    wrong = Architecture(name=architecture.name, arguments={**architecture.arguments, "depth": 3})
    with pytest.raises(CheckpointError, match="another model"):
        save_model(model, tmp_path / "model", wrong)
    assert os.listdir(tmp_path) == []


def test_qn13_a_model_that_computes_on_codes_is_not_saved(
    model: ByteTransformer, architecture: Architecture, tmp_path: Path
) -> None:
    with pytest.warns(DeprecationWarning):
        convert_model_to_projective(model, use_codec=False)
    with pytest.raises(CheckpointError, match="computes on QINS codes"):
        save_model(model, tmp_path / "model", architecture)


def test_qn7_the_formula_gives_the_documented_figures() -> None:
    assert v1_bytes(3_820_000_000, 3_720_000_000, 224) / 2**30 == pytest.approx(7.30, abs=0.01)
    assert v1_ratio(3_820_000_000, 3_720_000_000, 224) == pytest.approx(1.949, abs=1e-3)
    assert v1_ratio(10**9, int(0.974359 * 10**9), 1) == pytest.approx(1.95, abs=1e-4)
    assert v1_ratio(10**9, 10**9, 1) <= 2
    assert v1_ratio(100, 0, 0) == 1
    for impossible in ((10, 11, 1), (10, 5, 0), (10, 0, 1), (10, 5, -1)):
        with pytest.raises(ValueError, match="cannot be"):
            v1_bytes(*impossible)


def test_qn7_the_measured_file_agrees_within_a_percent(tmp_path: Path) -> None:
    """On the full-size test model; with little ones the header weighs more."""
    model = ByteTransformer()
    total = sum(parameter.numel() for parameter in model.parameters())
    report = report_of(convert_model_to_projective(model))
    sizes = {"vocabulary": 256, "context": 128, "width": 128, "depth": 3, "heads": 4}
    manifest = save_model(model, tmp_path / "model", Architecture(name="byte_transformer", arguments=dict(sizes)))
    stored, fp32 = model_bytes(manifest)
    expected = v1_bytes(total, report.quality.num_weights, len(report.layers))
    assert stored == (tmp_path / "model" / "model.safetensors").stat().st_size
    assert stored == pytest.approx(expected, rel=0.01) and fp32 == 4 * total
    assert fp32 / stored == pytest.approx(v1_ratio(total, report.quality.num_weights, len(report.layers)), rel=0.01)
