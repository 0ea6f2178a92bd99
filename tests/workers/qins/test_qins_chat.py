"""QN-14: text in, pieces of text out, from a model folder; and models made of a job's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from workers.checkpoint import CheckpointError, save
from workers.models.transformer import ByteTransformer
from workers.qins.chat import QINSChatSystem
from workers.qins.convert import convert_model_to_projective
from workers.qins.files import save_model
from workers.qins.manifest import Architecture
from workers.qins.sources import open_model
from workers.qins.tokenizer import ByteTokenizer
from workers.state import Captured


@pytest.fixture
def folder(model: ByteTransformer, architecture: Architecture, tmp_path: Path) -> Path:
    convert_model_to_projective(model)
    save_model(model, tmp_path / "model", architecture)
    return tmp_path / "model"


def test_qn14_a_converted_model_goes_on_with_what_it_learned(folder: Path, trained: ByteTransformer) -> None:
    text = "".join(QINSChatSystem(folder, max_tokens=60).generate_streaming("def f1(x):\n"))
    assert "return x +" in text
    expected = bytes(trained.generate(torch.tensor(list(b"def f1(x):\n")), 60)).decode()
    assert text == expected


def test_qn14_pieces_come_one_by_one_and_history_counts(folder: Path) -> None:
    system = QINSChatSystem(folder, max_tokens=20)
    pieces = system.generate_streaming("def ")
    first = next(pieces)
    assert len(first) == 1
    whole = first + "".join(pieces)
    again = "".join(system.generate_streaming("ef ", [("", "d")]))
    assert again == whole and len(whole.encode()) == 20


def test_qn14_drawn_text_follows_its_seed(folder: Path) -> None:
    def draw(seed: int) -> str:
        return "".join(QINSChatSystem(folder, max_tokens=40, temperature=2.0, seed=seed).generate_streaming("def"))

    assert draw(1) == draw(1) and draw(1) != draw(2)


def test_qn14_no_text_at_all_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="write a prompt"):
        QINSChatSystem(folder).generate_streaming("")


def test_qn14_torn_characters_are_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = QINSChatSystem(folder)
    answer = "é€".encode()
    monkeypatch.setattr(system.model, "generate", lambda *arguments: iter([0xFF, *answer, answer[0]]))
    assert list(system.generate_streaming("x")) == ["\ufffd", "é", "€", "\ufffd"]


@given(st.text())
def test_qn12_the_tokenizer_gives_back_what_utf8_can_hold(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert all(0 <= token < 256 for token in ids)
    assert tokenizer.decode(ids) == text.encode(errors="replace").decode()


def write_checkpoint(root: Path, model: ByteTransformer, task: dict[str, object]) -> Path:
    tensors = {f"parameter.{name}": tensor for name, tensor in model.named_parameters()}
    state = Captured({**tensors, "buffer.head_input.low": torch.zeros(())}, {"groups": []})
    (root / "job.json").write_text(json.dumps({"name": "job", "task": task}))
    return save(
        state, root / "checkpoints", job="job", step=5, generation=(1, 1), lineage=3, world=1, fence=lambda: True
    ).path


SIZES = {"context": 32, "width": 48, "depth": 2, "heads": 4, "limit": 1000}


def test_qn12_a_checkpoint_of_the_recipe_bytes_becomes_its_model(
    trained: ByteTransformer, architecture: Architecture, tokens: torch.Tensor, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path, trained, {"recipe": "bytes", "text": SIZES})
    model, found = open_model(path)
    assert found == architecture and not model.training
    assert torch.equal(model(tokens[:2, :-1]), trained(tokens[:2, :-1]))


def test_qn12_the_folder_of_a_job_is_its_newest_sound_checkpoint(
    trained: ByteTransformer, tokens: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_checkpoint(tmp_path, trained, {"recipe": "bytes", "text": SIZES})
    torn = path.with_name("step-9-gen-1.1")
    torn.mkdir()
    model, _ = open_model(tmp_path)
    assert torch.equal(model(tokens[:2, :-1]), trained(tokens[:2, :-1]))
    assert str(torn) in caplog.text


def test_qn12_a_model_folder_is_opened_too(folder: Path, architecture: Architecture) -> None:
    assert open_model(folder)[1] == architecture


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"recipe": "digits"}, "recipe 'digits'"),
        ({"recipe": "bytes"}, "task.text"),
        ({"recipe": "bytes", "text": {**SIZES, "depth": 3}}, "no tensor 'blocks.2"),
        ({"recipe": "bytes", "text": {**SIZES, "depth": 10**9}}, "depth 1000000000"),
    ],
)
def test_qn12_checkpoints_of_other_models_are_refused(
    task: dict[str, object], words: str, trained: ByteTransformer, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path, trained, task)
    with pytest.raises(CheckpointError, match=words):
        open_model(path)


def test_qn12_what_holds_no_model_is_refused(trained: ByteTransformer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no model"):
        open_model(tmp_path)
    path = write_checkpoint(tmp_path, trained, {"recipe": "bytes", "text": SIZES})
    (tmp_path / "job.json").unlink()
    with pytest.raises(CheckpointError, match=r"job\.json is missing"):
        open_model(path)


def test_qn10_answers_with_a_cache_do_not_meet(folder: Path) -> None:
    """Two at a time, in turns, each as if it were alone."""
    system = QINSChatSystem(folder, max_tokens=20, v_format="fp16")
    alone = ["".join(system.generate_streaming(prompt)) for prompt in ("def f1", "x")]
    first, second = system.generate_streaming("def f1"), system.generate_streaming("x")
    pieces = [next(first), next(second), "".join(first), "".join(second)]
    assert [pieces[0] + pieces[2], pieces[1] + pieces[3]] == alone
