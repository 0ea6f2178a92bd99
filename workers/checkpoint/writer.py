"""Publishing a state: written beside, synced, then made visible by one rename (CK-5)."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workers import plain
from workers.checkpoint.chain import Chain
from workers.checkpoint.codec import Encoder
from workers.checkpoint.errors import CheckpointError, StaleWriter, StorageError, storage_error
from workers.checkpoint.lossy import codecs_of
from workers.checkpoint.manifest import (
    EXACT,
    MANIFEST,
    QINS,
    TIERS,
    Base,
    Label,
    Manifest,
    ShardEntry,
    manifest_checksum,
    read_manifest,
    shard_name,
    signature,
    write_manifest,
)
from workers.checkpoint.shard import Increment, file_checksum, write_shard
from workers.identity import Generation
from workers.state import Captured

HIDDEN = ".tmp-step-"
"""Prefix of folders that are being written or deleted; no reader looks at them."""

STALE_SECONDS = 3600.0
SHARD_BYTES = 2 << 30
"""Raw bytes after which a new shard begins, which bounds the compressed bytes held in memory."""


@dataclass(frozen=True)
class Published:
    """A visible checkpoint. `bytes` on disk, `raw_bytes` in memory; `new` is False where it was there already, `base` the
    folder of the checkpoint that it holds the difference to."""

    path: Path
    bytes: int
    raw_bytes: int
    seconds: float
    new: bool = True
    tier: str = EXACT
    base: str | None = None


def save(
    state: Captured,
    root: Path,
    *,
    job: str,
    step: int,
    generation: tuple[int, int],
    lineage: int,
    world: int,
    fence: Callable[[], bool],
    rounds: int = 0,
    tier: str = EXACT,
    weights: str = "int8",
    chain: Chain | None = None,
    whole_every: int = 1,
    shard_bytes: int = SHARD_BYTES,
    threads: int = 0,
) -> Published:
    """Publish `state` below `root` as its `Label` says; `fence` is asked right before the rename that makes it visible.

    Where that checkpoint exists already, it stays and nothing is written. `rounds` were committed since the step; `weights`
    names their codec in the qins tier, of `lossy.WEIGHTS`. There, of `whole_every` checkpoints with the same `chain` all
    but the first hold only the difference to the one before. `threads` is zstd's, beside the caller's.

    Raises StorageError where the folder or disk refuses, StaleWriter where `fence` says False, CheckpointError for a
    state that cannot be held; none leaves anything visible, nor a hidden folder of this call.
    """
    if tier not in TIERS:
        raise ValueError(f"tier {tier!r} is unknown; write one of {', '.join(TIERS)}")
    started = time.monotonic()
    name = Label(step, Generation(*generation), rounds, tier).folder
    target, hidden = root / name, root / f".tmp-{name}-{secrets.token_hex(4)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        sweep_stale(root)
        if target.exists():
            return _already(target, started)
        hidden.mkdir()
        names, increment = list(state.tensors), None
        if tier == QINS and chain is not None and whole_every > 1:
            increment = chain.increment(root, names, whole_every)
        base = increment.base if increment is not None else None
        codecs = codecs_of(state.tensors, weights, base is None) if tier == QINS else {}
        refused: dict[str, str] = {}
        entries = [
            _write(hidden, index, part, threads, tier, codecs, refused, increment)
            for index, part in enumerate(_parts(state, shard_bytes))
        ]
        manifest = Manifest(
            job=job,
            step=step,
            generation=(generation[0], generation[1]),
            rounds=rounds,
            lineage=f"{lineage:016x}",
            tier=tier,
            world=world,
            created=time.time(),
            raw_bytes=sum(tensor.nbytes for tensor in state.tensors.values()),
            signature=signature(state.tensors),
            shards=entries,
            refused=refused,
            base=base,
            meta=_plain_meta(state.meta),
        )
        size = write_manifest(hidden, manifest) + sum(entry.bytes for entry in entries)
        _sync_folder(hidden)
        if base is not None:
            _check_base(target, base)
        if not fence():
            raise StaleWriter(f"{target} was not published: its generation is over")
        if not _show(hidden, target):
            return _already(target, started)
        _sync_folder(root)
        if chain is not None and increment is not None:
            chain.extend(target, names, increment)
        seconds = time.monotonic() - started
        return Published(target, size, manifest.raw_bytes, seconds, tier=tier, base=base.folder if base else None)
    except OSError as error:
        raise storage_error("write", target, error) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def sweep_stale(root: Path) -> None:
    """Remove hidden folders in which nothing was written for an hour: their writers are dead. Raises OSError."""
    with os.scandir(root) as entries:
        for entry in entries:
            is_hidden = entry.name.startswith(HIDDEN) and entry.is_dir(follow_symlinks=False)
            if is_hidden and time.time() - _last_written(Path(entry.path)) > STALE_SECONDS:
                shutil.rmtree(entry.path, ignore_errors=True)


def _parts(state: Captured, shard_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in order, cut where a part would grow beyond `shard_bytes`; at least one part."""
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in state.tensors.items():
        if part and size + tensor.nbytes > shard_bytes:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    yield part


def _write(
    folder: Path,
    index: int,
    tensors: dict[str, torch.Tensor],
    threads: int,
    tier: str,
    codecs: dict[str, str],
    refused: dict[str, str],
    increment: Increment | None,
) -> ShardEntry:
    path = folder / shard_name(index)
    try:
        refused |= write_shard(path, tensors, Encoder(threads), tier, codecs, increment)
    except ValueError as error:
        raise CheckpointError(f"this state cannot be saved: {error}") from None
    sync(path, os.O_RDWR)
    return ShardEntry(name=path.name, bytes=path.stat().st_size, checksum=file_checksum(path), tensors=list(tensors))


def _check_base(target: Path, base: Base) -> None:
    """Raise StorageError where it is not there any more: the next attempt is whole."""
    try:
        is_there = manifest_checksum(target.with_name(base.folder)) == base.checksum
    except CheckpointError:
        is_there = False
    if not is_there:
        raise StorageError(f"{target} was not published: {base.folder}, which it holds the difference to, has vanished")


def _plain_meta(meta: dict[str, Any]) -> Any:
    try:
        return json.loads(plain.dumps(meta))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"this state cannot be saved: {error}") from None


def _show(hidden: Path, target: Path) -> bool:
    """Rename; False where a checkpoint of that name appeared meanwhile."""
    try:
        hidden.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True


def _already(target: Path, started: float) -> Published:
    manifest = read_manifest(target)
    size = (target / MANIFEST).stat().st_size + sum(entry.bytes for entry in manifest.shards)
    base = manifest.base.folder if manifest.base is not None else None
    return Published(target, size, manifest.raw_bytes, time.monotonic() - started, False, manifest.tier, base)


def sync(path: Path, flags: int = os.O_RDONLY) -> None:
    """A file or folder onto the disk. Raises OSError."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _last_written(folder: Path) -> float:
    times = [0.0]
    for path in (folder, *folder.glob("*")):
        try:
            times.append(path.lstat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times)
