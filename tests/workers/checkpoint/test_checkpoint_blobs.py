"""QN-17, CK-5: files of tensors that are written while they are made."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from workers.checkpoint import CheckpointError, Published, StorageError, blobs, list_checkpoints, load
from workers.checkpoint.blobs import ALIGNMENT, BlobFile, room
from workers.checkpoint.codec import CHUNK_BYTES
from workers.checkpoint.manifest import read_manifest
from workers.state import Captured

ROWS = st.dictionaries(st.text(min_size=1, max_size=9).filter(lambda key: key != "__metadata__"), st.binary(max_size=300))
PRINTABLE = st.text(st.characters(codec="utf-8"), max_size=40)


@given(rows=ROWS, metadata=st.dictionaries(PRINTABLE, PRINTABLE, max_size=4))
def test_qn17_the_container_library_reads_what_was_written(rows: dict[str, bytes], metadata: dict[str, str]) -> None:
    """Whatever its rows are called and however long they are; equal input gives equal bytes."""
    with tempfile.TemporaryDirectory() as folder:
        contents = []
        for number in range(2):
            path = Path(folder, f"{number}.qins")
            with BlobFile(path, room(metadata, list(rows)), flushes=bool(number)) as file:
                for key, row in rows.items():
                    file.add(key, row)
                file.finish(metadata)
            contents.append(path.read_bytes())
        assert {key: row.tobytes() for key, row in load_file(path).items()} == rows
    assert contents[0] == contents[1]
    assert (8 + int.from_bytes(contents[0][:8], "little")) % ALIGNMENT == 0


def test_qn17_a_list_that_no_reader_takes_is_refused_before_anything_is_written() -> None:
    with pytest.raises(ValueError, match=r"2 chunks need a list of \d+ bytes, more than 100000000"):
        room({"tensors": "x" * 100_000_000}, ["0.0", "0.1"])


def test_qn17_chunks_are_small(publish: Callable[..., Published]) -> None:
    """QN-17: at most 4 MiB, each unfolded by itself."""
    state = Captured({"parameter.weight": torch.randn(5 * CHUNK_BYTES // 8)}, {})
    published = publish(state=state)
    [shard] = published.path.glob("*.qins")
    assert CHUNK_BYTES == 4 << 20 and sorted(load_file(shard)) == ["0.0", "0.1", "0.2"]
    assert torch.equal(load(published.path).tensors["parameter.weight"], state.tensors["parameter.weight"])


@pytest.mark.parametrize("tier", ["exact", "qins"])
def test_qn23_damage_is_told_by_file_tensor_and_chunk(publish: Callable[..., Published], tier: str) -> None:
    state = Captured({"parameter.first": torch.randn(50), "parameter.second": torch.randn(3 * CHUNK_BYTES // 4)}, {})
    published = publish(state=state, tier=tier)
    [shard] = published.path.glob("*.qins")
    whole = shard.read_bytes()
    last = len(whole) - 1000  # in the last chunk of the second one
    shard.write_bytes(whole[:last] + bytes([whole[last] ^ 1]) + whole[last + 1 :])
    with pytest.raises(CheckpointError, match=r"do not match the checksum.*: chunk 2 of tensor 'parameter.second'") as told:
        load(published.path)
    assert str(shard) in str(told.value) and str(told.value).count(str(shard)) == 1
    shard.write_bytes(whole)
    assert load(published.path).tensors.keys() == state.tensors.keys()


def test_ck7_a_disk_that_refuses_what_was_written_earlier_is_heard(
    publish: Callable[..., Published], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says so once; nothing becomes visible."""
    refused = threading.Event()

    def refuse(descriptor: int) -> None:
        refused.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(blobs, "FLUSH_BYTES", 1000)
    monkeypatch.setattr(blobs.os, "fdatasync", refuse)
    with pytest.raises(StorageError, match="input/output error"):
        publish()
    assert refused.is_set() and list_checkpoints(tmp_path / "checkpoints") == []
    monkeypatch.undo()
    published = publish()
    assert published.new and read_manifest(published.path).step == 10


def test_ck3_what_is_written_goes_to_the_disk_meanwhile(
    publish: Callable[..., Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    sync = os.fdatasync

    def note(descriptor: int) -> None:
        threads.append(threading.current_thread().name)
        sync(descriptor)

    monkeypatch.setattr(blobs, "FLUSH_BYTES", 1000)
    monkeypatch.setattr(blobs.os, "fdatasync", note)
    publish()
    assert set(threads) == {"checkpoint-flusher"}
    assert "checkpoint-flusher" not in {thread.name for thread in threading.enumerate()}
