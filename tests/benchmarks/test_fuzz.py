"""CK-10: a reader returns a state or says in one sentence what is wrong, whatever lies there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import readers
from benchmarks.fuzz.__main__ import fuzz
from benchmarks.fuzz.changes import CHECKPOINT_CHANGES, MODEL_CHANGES, Random
from benchmarks.fuzz.corpus import make_corpus
from benchmarks.fuzz.readers import Tally, one
from workers.checkpoint import CheckpointError, codec, reader, shard


def test_ck10_some_hundred_broken_and_hostile_ones(tmp_path: Path) -> None:
    tally, _ = fuzz(seed=3, inputs=600, seconds=None, memory=1024, patient=60.0, keep=tmp_path)
    assert tally.findings == []
    assert tally.inputs == 600 and tally.refused > 300 and tally.read > 20
    assert len(tally.sentences) > 40  # it comes to many places
    done = {name for kind in tally.kinds for name in kind.partition(": ")[2].split("+")}
    assert done == {each.__name__.removeprefix("in_") for each in (*CHECKPOINT_CHANGES, *MODEL_CHANGES)}


def test_a_reader_that_returns_another_state_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checksums that nobody looks at, and frames without one."""
    made = codec.zstandard.ZstdCompressor
    monkeypatch.setattr(codec.zstandard, "ZstdCompressor", lambda **options: made(**{**options, "write_checksum": False}))
    monkeypatch.setattr(shard, "_seal", lambda listed: "0" * 32)
    monkeypatch.setattr(codec, "_check_digest", lambda record, found: None)
    monkeypatch.setattr(reader, "_check_content", lambda *told: None)
    tally, _ = fuzz(seed=3, inputs=600, seconds=None, memory=1024, patient=60.0, keep=None)
    assert any("another state was read" in finding for finding in tally.findings)


def test_a_reader_that_raises_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(path: Path, limit: int) -> None:
        raise KeyError("shards")

    corpus = make_corpus(tmp_path / "made")
    monkeypatch.setattr(readers, "verify", careless)
    exact = next(path for path in corpus if path.name == "exact")
    finding = one(exact, tmp_path, Random(1), Tally(), 60.0)
    assert finding is not None and "KeyError: 'shards'" in finding


def test_a_reader_that_hangs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(tmp_path / "made")

    def endless(path: Path, limit: int) -> None:
        while True:
            pass

    monkeypatch.setattr(readers, "load", endless)
    exact = next(path for path in corpus if path.name == "exact")
    finding = one(exact, tmp_path, Random(1), Tally(), 0.2)
    assert finding is not None and "TooSlow" in finding


def test_a_text_of_two_lines_is_no_sentence() -> None:
    error = CheckpointError("")
    error.args = ("two\nlines of text",)  # as one that is made otherwise might have
    with pytest.raises(AssertionError, match="not one sentence"):
        readers._one_sentence(error)
