"""One `.qins` file: a safetensors container of uint8 blobs, described by JSON in its metadata.

The blobs of tensor t are named `t.0`, `t.1`, …: what a tensor is called stands in its record only.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from workers.checkpoint.blobs import BlobFile, room
from workers.checkpoint.codec import CODEC, Encoder, Link, TensorRecord, dtype_name, flaw
from workers.checkpoint.deltas import WHOLE, Coded
from workers.checkpoint.errors import CheckpointError, damaged, storage_error
from workers.checkpoint.lossy import LOSSY, is_first_moment
from workers.checkpoint.manifest import Base
from workers.checkpoint.places import Where
from workers.checkpoint.planes import Bytes

FORMATS = {"exact": "quantarion.exact/1", "qins": "quantarion.qins/1"}
"""By tier."""
CODECS = {"exact": (CODEC,), "qins": (CODEC, *LOSSY, *WHOLE)}
"""That a record may name, by tier."""

SEAL = "checksum"
"""In the metadata: BLAKE2b-128 of the list of tensors. The first shards had none; their manifest proves them."""

_RECORDS = TypeAdapter(list[TensorRecord])


@dataclass(frozen=True)
class Increment:
    """One checkpoint: `before` has the codes in its `base`, by name, and gets none itself; `after` gets its own."""

    base: Base | None
    before: Mapping[str, Coded]
    after: dict[str, Coded] = field(default_factory=dict)

    def keeps(self, name: str) -> bool:
        """Whether a later checkpoint may hold a difference of this tensor. First moments are others after some steps."""
        return not is_first_moment(name)


def write_shard(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    encoder: Encoder,
    tier: str = "exact",
    codecs: Mapping[str, str] | None = None,
    increment: Increment | None = None,
    *,
    flushes: bool = False,
) -> dict[str, str]:
    """Write `tensors` to a new file, not yet synced: in the lossy codec that `codecs` has for a name, else bit for bit;
    with an `increment` as the difference to its base, where that is smaller. With `flushes` the disk gets to work on it
    while it is written. Holds the encoded bytes of one tensor at a time.

    Returns the reason by name for each that its codec refused, and that is kept bit for bit instead.
    Raises OSError, or ValueError for a tensor that cannot be held.
    """
    records: list[TensorRecord] = []
    refused: dict[str, str] = {}
    with BlobFile(path, _room(tensors, encoder, tier), flushes=flushes) as file:
        for name, tensor in tensors.items():
            record, chunks = _encoded(name, tensor, encoder, (codecs or {}).get(name), refused, increment)
            for index, chunk in enumerate(chunks):
                file.add(_key(len(records), index), chunk)
            records.append(record)
        file.finish(_metadata(records, tier))
    return refused


def _metadata(records: Sequence[TensorRecord], tier: str) -> dict[str, str]:
    listed = json.dumps([record.model_dump() for record in records])
    return {"format": FORMATS[tier], "tensors": listed, SEAL: _seal(listed)}


def _room(tensors: Mapping[str, torch.Tensor], encoder: Encoder, tier: str) -> int:
    """Bytes that the header of a file of these tensors takes, whatever codecs they are in."""
    longest = max(CODECS[tier], key=len)
    records = [
        TensorRecord(
            name=name,
            codec=longest,
            dtype=dtype_name(tensor.dtype),
            shape=list(tensor.shape),
            chunk=encoder.chunk(tensor),
            checksum=_seal(""),
        )
        for name, tensor in tensors.items()
    ]
    keys = [_key(position, index) for position, record in enumerate(records) for index in range(record.num_chunks)]
    return room(_metadata(records, tier), keys)


def read_shard(
    path: Path, limit: int, tier: str = "exact", shown: Where | None = None, *, sealed: bool = False
) -> Iterator[Link]:
    """Yield the tensors in the order written, not decoded; they can be decoded until the next one is asked for. `shown` is
    what errors call the file. With `sealed` it has to prove its list of tensors itself, as no manifest does.

    Everything declared is checked before the first one; more than `limit` raw bytes in all are damage.
    Raises CheckpointError with one sentence, StorageError where the file cannot be read; so does what is yielded.
    """
    shown = shown or path
    try:
        with safe_open(path, framework="numpy") as container:
            records = _records(shown, container.metadata(), FORMATS[tier], sealed)
            sizes = {key: _blob_size(shown, container, key) for key in list(container.keys())}
            _check_declared(shown, records, sizes, limit, CODECS[tier])
            for position, record in enumerate(records):
                yield Link(record, partial(_blob, shown, container, position), shown)
    except SafetensorError as error:
        raise damaged(shown, f"it is not a safetensors container ({error})") from None
    except OSError as error:
        raise storage_error("read", shown, error) from error


def _blob(path: Where, container: safe_open, tensor: int, chunk: int) -> Bytes:
    try:
        blob: Bytes = container.get_tensor(_key(tensor, chunk))
    except SafetensorError as error:
        raise damaged(path, f"it is not a safetensors container ({error})") from None
    return blob


def file_checksum(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes: 32 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()


def _key(tensor: int, chunk: int) -> str:
    return f"{tensor}.{chunk}"


def _encoded(
    name: str,
    tensor: torch.Tensor,
    encoder: Encoder,
    codec: str | None,
    refused: dict[str, str],
    increment: Increment | None,
) -> tuple[TensorRecord, list[bytes]]:
    if codec is None:
        return encoder.encode(name, tensor)
    before = increment.before.get(name) if increment is not None else None
    if increment is not None and before is not None and before.codec == codec:
        if (found := encoder.encode_delta(name, tensor, before)) is not None:
            increment.after[name] = found[2]
            return found[:2]
    kept = encoder.coded(tensor, codec) if increment is not None and increment.keeps(name) else None
    try:
        encoded = encoder.encode_lossy(name, tensor, codec, kept)
    except ValueError as error:
        refused[name] = str(error)
        return encoder.encode(name, tensor)
    if increment is not None and kept is not None:
        increment.after[name] = kept
    return encoded


def _seal(listed: str) -> str:
    return blake2b(listed.encode(), digest_size=16).hexdigest()


def _records(path: Where, metadata: dict[str, str] | None, wanted: str, sealed: bool) -> list[TensorRecord]:
    version = (metadata or {}).get("format", "none")
    if version != wanted:
        raise CheckpointError(
            f"{path} is in format {version[:40]!r}, but this version reads {wanted!r} there; "
            "use the version of Quantarion that wrote it"
        )
    listed, seal = (metadata or {}).get("tensors", ""), (metadata or {}).get(SEAL)
    if (seal is not None or sealed) and seal != _seal(listed):
        raise damaged(path, "its list of tensors does not match its checksum")
    try:
        return _RECORDS.validate_json(listed, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the list"
        raise damaged(path, f"its list of tensors is wrong at {place} ({first['msg']})") from None


def _blob_size(path: Where, container: safe_open, key: str) -> int:
    blob = container.get_slice(key)
    shape = blob.get_shape()
    if blob.get_dtype() != "U8" or len(shape) != 1:
        raise damaged(path, f"blob {key[:40]!r} is not a row of bytes")
    return int(shape[0])


def _check_declared(
    path: Where, records: list[TensorRecord], sizes: dict[str, int], limit: int, codecs: Sequence[str]
) -> None:
    claimed = raw_bytes = 0
    names: set[str] = set()
    for position, record in enumerate(records):
        if record.name in names:
            raise damaged(path, f"it holds tensor {record.name!r} twice")
        names.add(record.name)
        present: list[int] = []
        while (size := sizes.get(_key(position, len(present)))) is not None:
            present.append(size)
        if (trouble := flaw(record, present, codecs)) is not None:
            raise damaged(path, trouble)
        claimed += len(present)
        raw_bytes += record.raw_bytes
    if claimed != len(sizes):
        raise damaged(path, f"it holds {len(sizes) - claimed} blobs that belong to no tensor")
    if raw_bytes > limit:
        raise damaged(path, f"it declares {raw_bytes} bytes of tensors, but only {limit} can be there")


def os_error(error: SafetensorError) -> OSError:
    """The OSError that the container library reports as text."""
    found = re.search(r"os error (\d+)", str(error))
    code = int(found.group(1)) if found else errno.EIO
    return OSError(code, os.strerror(code))
