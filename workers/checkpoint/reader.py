"""Reading a checkpoint back, every checksum verified; damage is one sentence, never half a state (CK-8, CK-10)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from workers import plain
from workers.checkpoint.codec import dtype_name
from workers.checkpoint.errors import CheckpointError, WrongModel, damaged, storage_error
from workers.checkpoint.manifest import MANIFEST, TIERS, Manifest, ShardEntry, read_manifest, regular_size, signature
from workers.checkpoint.shard import file_checksum, read_shard
from workers.state import Captured


def load(path: Path, *, limit: int | None = None) -> Captured:
    """The state saved at `path`, in any process, whatever ranks and hosts wrote it; of the exact tier bit for bit.

    `limit` bounds its raw bytes; the default is this machine's memory. Raises CheckpointError with one sentence that
    names the file and what is wrong.
    """
    manifest = _readable(path, limit)
    tensors = dict(_tensors(path, manifest))
    if signature(tensors) != manifest.signature:
        raise damaged(path / MANIFEST, "names, shapes and dtypes of the tensors differ from its signature")
    return Captured(tensors, _meta(path, manifest))


def verify(path: Path, *, limit: int | None = None) -> Manifest:
    """Read all of a checkpoint as `load` does, holding one tensor at a time. Raises as `load`."""
    manifest = _readable(path, limit)
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in _tensors(path, manifest)}
    if signature(shapes) != manifest.signature:
        raise damaged(path / MANIFEST, "names, shapes and dtypes of the tensors differ from its signature")
    _meta(path, manifest)
    return manifest


def check_fits(
    state: Captured,
    expected: Mapping[str, tuple[Sequence[int], torch.dtype | str]],
    optional: tuple[str, ...] = (),
) -> None:
    """Raise WrongModel, naming the first tensor missing, extra, or not as `expected` {name: (shape, dtype)} has it.

    Names that begin with one of `optional` may be there without being expected.
    """
    for name, (shape, dtype) in expected.items():
        wanted = _described(shape, dtype)
        tensor = state.tensors.get(name)
        if tensor is None:
            raise WrongModel(f"the checkpoint is of another model: it has no tensor {name!r} ({wanted})")
        if (found := _described(tensor.shape, tensor.dtype)) != wanted:
            raise WrongModel(f"the checkpoint is of another model: its tensor {name!r} is {found}, the model's is {wanted}")
    for name in state.tensors:
        if name not in expected and not name.startswith(optional):
            raise WrongModel(f"the checkpoint is of another model: the model has no tensor {name!r}")


def check_present(path: Path, manifest: Manifest) -> None:
    """Raise CheckpointError where a shard is missing, not a plain file, or of another size; reads no content."""
    for entry in manifest.shards:
        if (size := regular_size(path / entry.name)) != entry.bytes:
            raise damaged(path / entry.name, f"it has {size} bytes instead of {entry.bytes}")


def _readable(path: Path, limit: int | None) -> Manifest:
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint at {path}; give the folder that holds {MANIFEST}")
    manifest = read_manifest(path)
    if manifest.tier not in TIERS:
        raise CheckpointError(f"{path} is of tier {manifest.tier!r}, but this version reads {', '.join(TIERS)} only")
    allowed = _memory_bytes() if limit is None else limit
    if manifest.raw_bytes > allowed:
        raise CheckpointError(
            f"{path} unfolds to {manifest.raw_bytes} bytes, more than the {allowed} allowed here; "
            "load it where there is more memory"
        )
    check_present(path, manifest)
    return manifest


def _tensors(path: Path, manifest: Manifest) -> Iterator[tuple[str, torch.Tensor]]:
    left = manifest.raw_bytes
    for entry in manifest.shards:
        _check_content(path / entry.name, entry)
        wanted = iter(entry.tensors)
        for name, tensor in read_shard(path / entry.name, left, manifest.tier):
            if name != next(wanted, None):
                raise damaged(path / entry.name, f"it holds tensor {name!r}, which {MANIFEST} does not list there")
            left -= tensor.nbytes
            yield name, tensor
        if (missing := next(wanted, None)) is not None:
            raise damaged(path / entry.name, f"it lacks tensor {missing!r}, which {MANIFEST} lists")


def _check_content(path: Path, entry: ShardEntry) -> None:
    try:
        found = file_checksum(path)
    except OSError as error:
        raise storage_error("read", path, error) from error
    if found != entry.checksum:
        raise damaged(path, f"its bytes do not match the checksum in {MANIFEST}")


def _meta(path: Path, manifest: Manifest) -> dict[str, Any]:
    try:
        meta = plain.loads(json.dumps(manifest.meta))
    except (ValueError, TypeError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise damaged(path / MANIFEST, "its plain values are not in their notation")
    return meta


def _described(shape: Sequence[int], dtype: torch.dtype | str) -> str:
    name = dtype if isinstance(dtype, str) else dtype_name(dtype)
    return f"{name} {list(shape)}"


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
