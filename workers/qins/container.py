"""One file of tensors in codecs of the v2 container (QN-17): what a checkpoint's shard is, by itself.

Every tensor's content has a checksum, and so has what the file says of them; the container beneath refuses bytes that
belong to nothing. What a codec cannot hold is kept bit for bit, and which tensors those are is told.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from workers.checkpoint.codec import Decoder, Encoder, Link
from workers.checkpoint.contents import Content
from workers.checkpoint.draft import exists_already, reveal, sync
from workers.checkpoint.errors import CheckpointError, storage_error
from workers.checkpoint.lossy import FLOATS, WEIGHTS
from workers.checkpoint.places import regular_size
from workers.checkpoint.reader import memory_bytes
from workers.checkpoint.shard import read_shard, write_shard

SUFFIX = ".qins"
EXACT = "exact"
CODECS = (EXACT, *WEIGHTS)
"""By their names on the command line."""

_TIER = "qins"


def write_container(path: Path, tensors: Mapping[str, Tensor], codec: str) -> dict[str, str]:
    """Write a new file: floating-point tensors in `codec`, of `CODECS`, others bit for bit.

    Returns by name why tensors were not taken by it. Raises CheckpointError where the file is there already or a tensor
    cannot be held at all, StorageError where the disk refuses; neither leaves anything.
    """
    if codec not in CODECS:
        raise ValueError(f"codec {codec!r} is unknown; write one of {', '.join(CODECS)}")
    lossy = {name: WEIGHTS[codec] for name, each in tensors.items() if each.dtype in FLOATS} if codec != EXACT else {}
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if os.path.lexists(path):
            raise exists_already(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        refused = write_shard(hidden, tensors, Encoder(), _TIER, lossy, flushes=True)
        sync(hidden, os.O_RDWR)
        reveal(hidden, path)
        return refused
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from None
    except OSError as error:
        raise storage_error("write", path, error) from error
    finally:
        with suppress(OSError):
            hidden.unlink()


def read_container(path: Path, *, limit: int | None = None) -> dict[str, Tensor]:
    """The tensors in the order written. `limit` bounds their bytes; the default is this machine's memory.

    Raises CheckpointError with one sentence.
    """
    decoder = Decoder()
    return {link.record.name: decoder.decode_chain([link]) for link in _links(path, limit)}


def inspect(path: Path) -> list[Content]:
    """What the file holds, not decoded. Raises CheckpointError with one sentence."""
    found = []
    for record, blob, _ in _links(path, None):
        stored = sum(blob(index).nbytes for index in range(record.num_chunks))
        found.append(Content(record.name, record.dtype, tuple(record.shape), record.codec, stored, record.raw_bytes))
    return found


def _links(path: Path, limit: int | None) -> Iterator[Link]:
    regular_size(path)
    return read_shard(path, memory_bytes() if limit is None else limit, _TIER, sealed=True)
