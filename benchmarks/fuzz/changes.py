"""What is done to a sound one: blindly, or sealed again behind the checksum of a manifest, of a shard, of a tensor."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from benchmarks.fuzz.corpus import checkpoints_in, shards
from workers.checkpoint.places import MANIFEST
from workers.checkpoint.planes import join_planes
from workers.qins.manifest import TENSORS

Random = random.Random

INTERESTING = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    1e308,
    0.5,
)
WORDS = (
    "",
    ".",
    "..",
    "../../x",
    "/etc/passwd",
    "a" * 5000,
    "\0",
    "é\n",
    "float32",
    "exact",
    "qins",
    "0" * 32,
    "shard-00000.qins",
)


def change_bytes(content: bytes, chance: Random) -> bytes:
    """A few bytes are others, missing, more, or elsewhere."""
    data = bytearray(content)
    at = chance.randrange(len(data) + 1)
    length = min(len(data) - at, chance.choice((1, 2, 4, 8, 64, 4096)))
    match chance.randrange(8):
        case 0 if data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + length]
        case 3:
            data[at:at] = data[at : at + length]
        case 4:
            data[at : at + length] = bytes(length)
        case 5:
            data[at : at + length] = b"\xff" * length
        case 6:
            data[at : at + length] = chance.randbytes(length)
        case _:
            data += chance.randbytes(chance.choice((1, 16, 1000)))
    return bytes(data)


def change_json(value: Any, chance: Random) -> Any:
    """One node of plain JSON is another one."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        match chance.randrange(12):
            case 0:
                del value[key]
            case 1:
                value[f"{key}2"] = value[key]
            case 2:
                value[key] = _other(value[key], chance)
            case _:
                value[key] = change_json(value[key], chance)
        return value
    if isinstance(value, list) and value and chance.random() < 0.9:
        index = chance.randrange(len(value))
        match chance.randrange(8):
            case 0:
                del value[index]
            case 1:
                value.append(copy.deepcopy(value[index]))
            case 2:
                chance.shuffle(value)
            case _:
                value[index] = change_json(value[index], chance)
        return value
    return _other(value, chance)


def _other(value: Any, chance: Random) -> Any:
    if isinstance(value, str) and value and chance.random() < 0.3:
        at = chance.randrange(len(value))
        return value[:at] + chance.choice("0f/.-x\0") + value[at + 1 :]
    if isinstance(value, int) and chance.random() < 0.5:
        return value + chance.choice((-1, 1, 128, -value - 1, 2**31))
    deep: Any = 0
    for _ in range(chance.choice((1, 3, 500))):
        deep = [deep]
    return chance.choice((*INTERESTING, *WORDS, None, True, [], {}, [0], {"dict": [[1, 2]]}, {"tuple": 3}, deep))


def seal(fields: dict[str, Any], digest: Callable[[bytes], str]) -> str:
    """The text of a manifest whose checksum is right."""
    fields.pop("checksum", None)
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**fields, "checksum": digest(text)})


def blake(content: bytes) -> str:
    """BLAKE2b-128 as 32 hex digits."""
    return blake2b(content, digest_size=16).hexdigest()


def in_bytes(folder: Path, chance: Random) -> None:
    """Of any file, and nothing is sealed."""
    path = chance.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    path.write_bytes(change_bytes(path.read_bytes(), chance))


def in_manifest(folder: Path, chance: Random) -> None:
    """In the fields, sealed again, and so in those of all that are differences to it."""
    path = chance.choice(sorted(folder.rglob(MANIFEST)))
    fields = change_json(json.loads(path.read_text()), chance)
    if isinstance(fields, dict):
        is_model = not checkpoints_in(folder)
        path.write_text(seal(fields, (lambda text: sha256(text).hexdigest()) if is_model else blake))
    else:
        path.write_text(json.dumps(fields))
    relink(folder)


def in_records(folder: Path, chance: Random) -> None:
    """In what a shard says of its tensors."""

    def change(records: list[dict[str, Any]], blobs: dict[str, np.ndarray], metadata: dict[str, str]) -> Any:
        if chance.random() < 0.1:
            metadata["format"] = str(_other(metadata["format"], chance))
        return change_json(records, chance)

    forge(chance.choice(shards(folder)), change)
    relink(folder)


def in_frames(folder: Path, chance: Random) -> None:
    """In zstd frames."""

    def change(records: list[dict[str, Any]], blobs: dict[str, np.ndarray], metadata: dict[str, str]) -> Any:
        key = chance.choice(sorted(blobs))
        blobs[key] = np.frombuffer(change_bytes(blobs[key].tobytes(), chance), np.uint8)
        if chance.random() < 0.2:
            blobs[chance.choice((key + "0", "x", "0.99"))] = blobs.pop(key)
        return records

    forge(chance.choice(shards(folder)), change)
    relink(folder)


def in_payloads(folder: Path, chance: Random) -> None:
    """In what is in the frames, and each tensor's checksum fits."""

    def change(records: list[dict[str, Any]], blobs: dict[str, np.ndarray], metadata: dict[str, str]) -> Any:
        position = chance.choice([index for index in range(len(records)) if f"{index}.0" in blobs])
        record, key = records[position], f"{position}.0"
        payload = zstandard.ZstdDecompressor().decompress(blobs[key].tobytes())
        changed = change_bytes(payload, chance)
        if chance.random() < 0.7:  # else it is refused for its size
            changed = (changed + payload[len(changed) :])[: len(payload)]
        blobs[key] = np.frombuffer(zstandard.ZstdCompressor().compress(changed), np.uint8)
        raw = np.frombuffer(changed, np.uint8)
        if record["codec"] == "planes.zstd/1" and len(changed) == len(payload):
            size = {"float32": 4, "bfloat16": 2, "int64": 8}[record["dtype"]]
            raw = np.empty(len(changed), np.uint8)
            join_planes(np.frombuffer(changed, np.uint8), size, raw)
        record["checksum"] = blake(raw.tobytes())
        return records

    forge(chance.choice(shards(folder)), change)
    relink(folder)


def in_model(folder: Path, chance: Random) -> None:
    """In the tensors of a model folder, whose manifest fits."""
    path = folder / TENSORS
    path.write_bytes(change_bytes(path.read_bytes(), chance))
    manifest = folder / MANIFEST
    fields = json.loads(manifest.read_text())
    fields["bytes"], fields["sha256"] = path.stat().st_size, sha256(path.read_bytes()).hexdigest()
    manifest.write_text(seal(fields, lambda text: sha256(text).hexdigest()))


def in_folder(folder: Path, chance: Random) -> None:
    """Files are missing, exchanged, empty, links or folders."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    path, other = chance.choice(files), chance.choice(files)
    match chance.randrange(5):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(other.read_bytes())
        case 2:
            path.write_bytes(b"")
        case 3:
            path.unlink()
            path.symlink_to(other if other != path else "nowhere")
        case _:
            path.unlink()
            path.mkdir()


CANNOT_CHANGE = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError),
    *(zstandard.ZstdError, SafetensorError),
)
BLIND = (in_bytes, in_folder)
"""Nothing is sealed again after these."""

CONTAINER_CHANGES = (in_bytes, in_records, in_frames, in_payloads, in_payloads, in_folder)
CHECKPOINT_CHANGES = (in_bytes, in_manifest, in_records, in_frames, in_payloads, in_payloads, in_folder)
MODEL_CHANGES = (in_bytes, in_manifest, in_model, in_model, in_folder)


def forge(shard: Path, change: Callable[[list[dict[str, Any]], dict[str, np.ndarray], dict[str, str]], Any]) -> None:
    """Change a shard's records and blobs, and what the manifest beside it says of the file."""
    with safe_open(shard, "numpy") as container:
        blobs = {key: container.get_tensor(key) for key in list(container.keys())}
        metadata = dict(container.metadata())
    metadata["tensors"] = json.dumps(change(json.loads(metadata["tensors"]), blobs, metadata))
    metadata["checksum"] = blake(metadata["tensors"].encode())
    save_file(blobs, shard, metadata=metadata)
    path = shard.with_name(MANIFEST)
    if not path.exists():  # a file by itself
        return
    fields = json.loads(path.read_text())
    for entry in fields["shards"]:
        if entry["name"] == shard.name:
            entry["bytes"], entry["checksum"] = shard.stat().st_size, blake(shard.read_bytes())
    path.write_text(seal(fields, blake))


def relink(folder: Path) -> None:
    """Have every difference name its base as it is now, the lowest first."""
    for path in checkpoints_in(folder):
        manifest = path / MANIFEST
        try:
            fields = json.loads(manifest.read_text())
            below = path.parent / fields["base"]["folder"] / MANIFEST
            fields["base"]["checksum"] = blake(below.read_bytes())
        except (OSError, ValueError, KeyError, TypeError):
            continue
        manifest.write_text(seal(fields, blake))
