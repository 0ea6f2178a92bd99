"""CK-10: whatever lies in the folder, reading it gives the right state or one sentence; memory is bounded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from safetensors import safe_open
from safetensors.numpy import save_file

from workers.checkpoint import CheckpointError, Published, load, newest_valid, verify
from workers.checkpoint.codec import Decoder
from workers.state import Captured, digest

Publish = Callable[..., Published]
Damage = Callable[[Path], None]
SHARD = "shard-00000.qins"


def checksum(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def forge_manifest(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest and seal it again, as an attacker would."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["checksum"]
    edit(fields)
    fields["checksum"] = checksum(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
    path.write_text(json.dumps(fields))


def reseal_shard(folder: Path) -> None:
    """Make the manifest agree with the shard's bytes."""
    content = (folder / SHARD).read_bytes()
    forge_manifest(folder, lambda fields: fields["shards"][0].update(bytes=len(content), checksum=checksum(content)))


def forge_shard(folder: Path, edit: Callable[[list[dict[str, Any]], dict[str, np.ndarray], dict[str, str]], None]) -> None:
    """Edit records, blobs and metadata of the shard, and seal everything again."""
    with safe_open(folder / SHARD, "numpy") as container:
        blobs = {key: container.get_tensor(key) for key in list(container.keys())}
        metadata = dict(container.metadata())
    records = json.loads(metadata["tensors"])
    edit(records, blobs, metadata)
    if metadata.get("tensors"):
        metadata["tensors"] = json.dumps(records)
    metadata["checksum"] = checksum(metadata.get("tensors", "").encode())
    save_file(blobs, folder / SHARD, metadata=metadata)
    reseal_shard(folder)


def bomb(num_bytes: int) -> np.ndarray:
    """A zstd frame of that many zeros, made without holding them."""
    compressor = zstandard.ZstdCompressor().compressobj(size=num_bytes)
    piece = bytes(1 << 20)
    frame = b"".join(compressor.compress(piece) for _ in range(num_bytes >> 20)) + compressor.flush()
    return np.frombuffer(frame, np.uint8)


# ---------------------------------------------------------------------- the folder of hostile checkpoints


def _truncate(name: str, keep: Callable[[int], int]) -> Damage:
    return lambda folder: os.truncate(folder / name, keep((folder / name).stat().st_size))


def _write(name: str, content: bytes) -> Damage:
    def run(folder: Path) -> None:
        (folder / name).write_bytes(content)
        if name == SHARD:
            reseal_shard(folder)

    return run


def _field(**values: Any) -> Damage:
    return lambda folder: forge_manifest(folder, lambda fields: fields.update(values))


def _shard_name(name: str) -> Damage:
    return lambda folder: forge_manifest(folder, lambda fields: fields["shards"][0].update(name=name))


def _record(**values: Any) -> Damage:
    return lambda folder: forge_shard(folder, lambda records, blobs, metadata: records[0].update(values))


def _listed_twice(folder: Path) -> None:
    forge_manifest(folder, lambda fields: fields["shards"].append(fields["shards"][0]))


def _tensor_in_two_shards(folder: Path) -> None:
    shutil.copy(folder / SHARD, folder / "shard-00001.qins")
    forge_manifest(folder, lambda fields: fields["shards"].append({**fields["shards"][0], "name": "shard-00001.qins"}))


def _tensor_twice_in_a_shard(folder: Path) -> None:
    def edit(records: list[dict[str, Any]], blobs: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        blobs[f"{len(records)}.0"] = blobs["0.0"]
        records.append(dict(records[0]))

    forge_shard(folder, edit)


def _tensor_gone_from_the_shard(folder: Path) -> None:
    def edit(records: list[dict[str, Any]], blobs: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        del blobs[f"{len(records) - 1}.0"]
        records.pop()

    forge_shard(folder, edit)


def _tensor_gone_everywhere(folder: Path) -> None:
    _tensor_gone_from_the_shard(folder)
    forge_manifest(folder, lambda fields: fields["shards"][0]["tensors"].pop())


def _link_elsewhere(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / SHARD).rename(elsewhere)
    (folder / SHARD).symlink_to(elsewhere)


def _pipe(name: str) -> Damage:
    def run(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return run


def _bomb(folder: Path) -> None:
    """4 GiB of honest zeros behind a few hundred kB; the manifest's total is left small."""

    def edit(records: list[dict[str, Any]], blobs: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        frame = bomb(64 << 20)
        records[0].update(shape=[64, 16 << 20], chunk=16 << 20)
        blobs.update({f"0.{index}": frame for index in range(64)})

    forge_shard(folder, edit)


def _bomb_in_a_small_tensor(folder: Path) -> None:
    forge_shard(folder, lambda records, blobs, metadata: blobs.update({"0.0": bomb(64 << 20)}))


def _extra_blob(folder: Path) -> None:
    forge_shard(folder, lambda records, blobs, metadata: blobs.update(extra=np.zeros(3, np.uint8)))


def _wide_blob(folder: Path) -> None:
    forge_shard(folder, lambda records, blobs, metadata: blobs.update({"0.0": np.zeros((2, 2), np.float32)}))


def _metadata(**values: str) -> Damage:
    return lambda folder: forge_shard(folder, lambda records, blobs, metadata: metadata.update(values))


def _container_header(length: int) -> Damage:
    def run(folder: Path) -> None:
        content = (folder / SHARD).read_bytes()
        (folder / SHARD).write_bytes(length.to_bytes(8, "little") + content[8:])
        reseal_shard(folder)

    return run


def _another_folder(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("kept"))
    forge_manifest(folder, lambda fields: fields.update(step=fields["step"] + 1))


PICKLE = b"cos\nsystem\n(S'touch pickle-was-run'\ntR."

HOSTILE: dict[str, tuple[Damage, str]] = {
    "manifest empty": (_write("manifest.json", b""), "not JSON"),
    "manifest cut": (_truncate("manifest.json", lambda size: size - 10), "not JSON"),
    "manifest not an object": (_write("manifest.json", b"[1]"), "not a JSON object"),
    "manifest not text": (_write("manifest.json", b"\xff\xfe\x00"), "not JSON"),
    "manifest nested deep": (_write("manifest.json", b'{"a":' + b"[" * 200_000), "not JSON"),
    "manifest number of 10,000 digits": (_write("manifest.json", b'{"step":' + b"9" * 10_000 + b"}"), "not JSON"),
    "manifest a pickle": (_write("manifest.json", PICKLE), "not JSON"),
    "manifest huge": (_truncate("manifest.json", lambda size: (64 << 20) + 1), "larger than"),
    "manifest a pipe": (_pipe("manifest.json"), "not a plain file"),
    "manifest gone": (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json is missing"),
    "newer schema": (_field(schema_version=2), "schema version 2.*reads 1"),
    "schema of another kind": (_field(schema_version={"a": 1}), "schema version"),
    "unknown tier": (_field(tier="zip"), "tier 'zip'.*reads exact"),
    "tier of other codecs": (
        _field(tier="qins"),
        "format 'quantarion.exact/1', but this version reads 'quantarion.qins/1'",
    ),
    "codec of the other tier": (_record(codec="int8.128/1"), "codec 'int8.128/1', but here stand 'planes"),
    "refusals no texts": (_field(refused={"parameter.a": 1}), "'refused.parameter.a'"),
    "unknown field": (_field(run="rm -rf"), "'run'"),
    "step negative": (_field(step=-1), "'step'"),
    "lineage not hex": (_field(lineage="x" * 16), "'lineage'"),
    "another step": (_another_folder, "belongs to step-11-gen-1.2"),
    "plain values forged": (_field(meta={"dict": [[{"dict": []}, 1]]}), "plain values"),
    "plain values no dict": (_field(meta=[1]), "plain values"),
    "name climbs out": (_shard_name("../../shard-00000.qins"), "not a shard's name"),
    "name absolute": (_shard_name("/etc/passwd"), "not a shard's name"),
    "name with a folder": (_shard_name("sub/shard-00000.qins"), "not a shard's name"),
    "name with a zero byte": (_shard_name("shard-00000.qins\0"), "not a shard's name"),
    "name with a line end": (_shard_name("shard-00000.qins\n"), "not a shard's name"),
    "name of an unwritten shard": (_shard_name("shard-00007.qins"), r"shard-00007\.qins is missing"),
    "shard listed twice": (_listed_twice, "'shard-00000.qins' twice"),
    "tensor in two shards": (_tensor_in_two_shards, "lists tensor 'parameter.weight' twice"),
    "tensor twice in a shard": (_tensor_twice_in_a_shard, "holds tensor 'parameter.weight' twice"),
    "tensor gone from the shard": (_tensor_gone_from_the_shard, r"lacks tensor 'optimizer\.weight\|bytes'"),
    "tensor gone everywhere": (_tensor_gone_everywhere, "differ from its signature"),
    "tensor renamed": (_record(name="parameter.other"), "'parameter.other'.*does not list"),
    "shard gone": (lambda folder: (folder / SHARD).unlink(), r"shard-00000\.qins is missing"),
    "shard cut by one": (_truncate(SHARD, lambda size: size - 1), "bytes instead of"),
    "shard empty": (_truncate(SHARD, lambda size: 0), "has 0 bytes"),
    "shard a link": (_link_elsewhere, "not a plain file"),
    "shard a pipe": (_pipe(SHARD), "not a plain file"),
    "shard a pickle": (_write(SHARD, PICKLE), "not a safetensors"),
    "header beyond the file": (_container_header(2**40), "not a safetensors"),
    "header of 2^64 - 1": (_container_header(2**64 - 1), "not a safetensors"),
    "header of 0": (_container_header(0), "not a safetensors"),
    "container of a newer format": (_metadata(format="quantarion.exact/2"), r"format 'quantarion\.exact/2'.*reads"),
    "container without records": (_metadata(tensors=""), "list of tensors is wrong"),
    "codec unknown": (_record(codec="pickle/1"), "codec 'pickle/1'"),
    "dtype unknown": (_record(dtype="object"), "unknown dtype 'object'"),
    "dtype of another size": (_record(dtype="float16"), "declares 8448 bytes instead of 4224"),
    "dtype of the same size": (_record(dtype="int32"), "differ from its signature"),
    "shape negative": (_record(shape=[-1, 33]), "list of tensors is wrong at 0.shape.0"),
    "shape huge": (_record(shape=[2**62, 2**62]), "needs .* chunks"),
    "shape huge in one chunk": (_record(shape=[2**31], chunk=2**31), "list of tensors is wrong at 0.chunk"),
    "shape more than its bytes hold": (_record(shape=[2**26], chunk=2**26), "more than its .* bytes can unfold to"),
    "shape huge and empty": (_record(shape=[0, 2**62, 2**62]), "needs 0 chunks"),
    "shape of 65 dimensions": (_record(shape=[1] * 65), "list of tensors is wrong at 0.shape"),
    "shape as text": (_record(shape="64"), "list of tensors is wrong"),
    "chunk of nothing": (_record(chunk=0), "list of tensors is wrong at 0.chunk"),
    "bomb of 4 GiB": (_bomb, "only 21115 can be there"),
    "bomb in a small tensor": (_bomb_in_a_small_tensor, "declares 67108864 bytes instead of 8448"),
    "blob of no tensor": (_extra_blob, "1 blobs that belong to no tensor"),
    "blob not bytes": (_wide_blob, "not a row of bytes"),
    "checksum of other bytes": (_record(checksum="0" * 32), "do not match their checksum"),
}

DECODED_FIRST = {
    *("dtype of another size", "dtype of the same size", "bomb in a small tensor", "checksum of other bytes"),
    *("tensor renamed", "tensor gone from the shard", "tensor gone everywhere"),
    *("plain values forged", "plain values no dict"),
}
"""Found out only from the content, one bounded chunk at a time; all others before anything is allocated."""


@pytest.mark.parametrize("name", HOSTILE)
def test_ck10_hostile_checkpoints_are_refused_in_a_sentence(
    name: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish().path
    damage, words = HOSTILE[name]
    damage(folder)
    if name not in DECODED_FIRST:
        monkeypatch.setattr(Decoder, "decode", lambda *arguments: pytest.fail("decoded what should have been refused"))
    for read in (load, verify):
        with pytest.raises(CheckpointError, match=words) as refusal:
            read(folder)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600


def test_ck10_nothing_is_lost_among_a_folder_of_hostile_ones(publish: Publish, state: Captured) -> None:
    """CK-10, CK-9: with every kind of damage in newer checkpoints the sound one is found."""
    good = publish(step=1)
    for step, (damage, _) in enumerate(HOSTILE.values(), start=2):
        folder = publish(step=step).path
        damage(folder)
    skipped: list[str] = []
    entry = newest_valid(good.path.parent, on_skip=lambda entry: skipped.append(entry.reason))
    assert entry is not None and entry.path == good.path
    assert len(skipped) == len(HOSTILE)
    assert digest(load(entry.path)) == digest(state)


def test_ck10_more_than_the_memory_is_refused(publish: Publish) -> None:
    with pytest.raises(CheckpointError, match="more than the 100 allowed"):
        load(publish().path, limit=100)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["manifest.json", SHARD]),
    where=st.floats(0, 1, exclude_max=True),
    flipped=st.integers(1, 255),
    lost=st.sampled_from([0, 0, 1, 8, 1000]),
    is_resealed=st.booleans(),
)
def test_ck10_no_flipped_byte_is_believed(
    name: str, where: float, flipped: int, lost: int, is_resealed: bool, publish: Publish, tmp_path: Path
) -> None:
    """CK-10: either the state is exactly what was saved, or it is refused; also behind forged outer checksums."""
    small = Captured({"a": torch.arange(40.0), "b": torch.tensor(3), "c": torch.zeros(0)}, {"step": 7, "pair": (1, 2.5)})
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    folder = publish(state=small).path
    content = bytearray((folder / name).read_bytes())
    content[int(where * len(content))] ^= flipped
    (folder / name).write_bytes(content[: len(content) - lost] if lost < len(content) else b"")
    if is_resealed and name == SHARD:
        reseal_shard(folder)
    try:
        back = load(folder)
    except CheckpointError:
        return
    assert digest(back) == digest(small)


def test_ck10_a_sentence_is_one_line_whatever_it_quotes(publish: Publish) -> None:
    folder = publish().path
    _record(dtype="a\n" * 3000)(folder)
    with pytest.raises(CheckpointError, match=r"has the unknown dtype 'a.na") as refusal:
        load(folder)
    text = str(refusal.value)
    assert "\n" not in text and len(text) <= 1500 and " … " in text
    assert CheckpointError("ü" * 1500).args == ("ü" * 1500,)
