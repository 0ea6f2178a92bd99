"""Reading a checkpoint back, every checksum verified; damage is one sentence, never half a state (CK-8, CK-10)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from workers import plain
from workers.checkpoint.codec import Decoder, Link, dtype_name
from workers.checkpoint.errors import CheckpointError, WrongModel, damaged, storage_error
from workers.checkpoint.manifest import (
    QINS,
    TIERS,
    Manifest,
    ShardEntry,
    manifest_checksum,
    read_manifest,
    signature,
)
from workers.checkpoint.places import MANIFEST, Where, at_hand, is_folder, regular_size
from workers.checkpoint.shard import file_checksum, read_shard
from workers.state import Captured

LONGEST_CHAIN = 16
"""Checkpoints that a reader follows, each a difference to the next."""

Chain = list[tuple[Where, Manifest]]
"""A checkpoint, the one that it is a difference to, and so on to one that is whole; `meta` of the first only."""


def load(path: Where, *, limit: int | None = None) -> Captured:
    """The state saved at `path`, in any process, whatever ranks and hosts wrote it; of the exact tier bit for bit.

    `limit` bounds its raw bytes; the default is this machine's memory. Raises CheckpointError with one sentence that
    names the file and what is wrong.
    """
    chain = _readable(path, limit)
    manifest = chain[0][1]
    tensors = dict(_tensors(chain))
    if signature(tensors) != manifest.signature:
        raise damaged(path / MANIFEST, "names, shapes and dtypes of the tensors differ from its signature")
    return Captured(tensors, _meta(path, manifest))


def verify(path: Where, *, limit: int | None = None) -> Manifest:
    """Read all of a checkpoint as `load` does, holding one tensor at a time. Raises as `load`."""
    chain = _readable(path, limit)
    manifest = chain[0][1]
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in _tensors(chain)}
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


def chain_of(path: Where, manifest: Manifest) -> Chain:
    """The checkpoint at `path`, and those that it is a difference to. Raises CheckpointError where one is missing, another
    than it was, or where a shard is missing, not a plain file, or of another size; reads no content."""
    chain = [(path, manifest)]
    while (base := chain[-1][1].base) is not None:
        below = path.parent / base.folder
        if not is_folder(below):
            raise CheckpointError(f"{chain[-1][0]} holds only the difference to {base.folder}, which is not beside it")
        if manifest_checksum(below) != base.checksum:
            raise CheckpointError(
                f"{chain[-1][0]} holds only the difference to another {base.folder} than the one that is beside it"
            )
        manifest = read_manifest(below)
        if manifest.tier != QINS:
            raise damaged(
                below / MANIFEST, f"it is of tier {manifest.tier!r}, and {chain[-1][0].name} is a difference to it"
            )
        chain.append((below, manifest.model_copy(update={"meta": None})))
        if len(chain) > LONGEST_CHAIN:
            raise damaged(path / MANIFEST, f"it is a difference to more than {LONGEST_CHAIN} others")
    for folder, each in chain:
        check_shards(folder, each)
    return chain


def check_shards(path: Where, manifest: Manifest) -> None:
    """Raise CheckpointError where a shard is missing, not a plain file, or of another size; reads no content."""
    for entry in manifest.shards:
        if (size := regular_size(path / entry.name)) != entry.bytes:
            raise damaged(path / entry.name, f"it has {size} bytes instead of {entry.bytes}")


def _readable(path: Where, limit: int | None) -> Chain:
    if not is_folder(path):
        raise CheckpointError(f"there is no checkpoint at {path}; give the folder that holds {MANIFEST}")
    manifest = read_manifest(path)
    if manifest.tier not in TIERS:
        raise CheckpointError(f"{path} is of tier {manifest.tier!r}, but this version reads {', '.join(TIERS)} only")
    allowed = memory_bytes() if limit is None else limit
    chain = chain_of(path, manifest)
    for folder, each in chain:
        if each.raw_bytes > allowed:
            raise CheckpointError(
                f"{folder} unfolds to {each.raw_bytes} bytes, more than the {allowed} allowed here; "
                "load it where there is more memory"
            )
    return chain


def _tensors(chain: Chain) -> Iterator[tuple[str, torch.Tensor]]:
    """One after the other, of what `_readable` has found there; each file is checked as a whole before it is used."""
    decoder, (path, _) = Decoder(), chain[0]
    below = [_links(folder, manifest) for folder, manifest in chain[1:]]
    for link in _links(*chain[0]):
        bases = [next(links, None) for links in below]
        present = [base for base in bases if base is not None and base.record.name == link.record.name]
        if len(present) < len(bases):
            raise damaged(path / MANIFEST, f"what it is a difference to does not hold tensor {link.record.name!r} there")
        yield link.record.name, decoder.decode_chain([link, *present])


def _links(path: Where, manifest: Manifest) -> Iterator[Link]:
    left = manifest.raw_bytes
    for entry in manifest.shards:
        shard, wanted = path / entry.name, iter(entry.tensors)
        with at_hand(shard) as file:
            _check_content(file, entry, manifest.tier, left, shard)
            for link in read_shard(file, left, manifest.tier, shard):
                if link.record.name != next(wanted, None):
                    raise damaged(shard, f"it holds tensor {link.record.name!r}, which {MANIFEST} does not list there")
                left -= link.record.raw_bytes
                yield link
        if (missing := next(wanted, None)) is not None:
            raise damaged(shard, f"it lacks tensor {missing!r}, which {MANIFEST} lists")


def _check_content(file: Path, entry: ShardEntry, tier: str, limit: int, shown: Where) -> None:
    try:
        found = file_checksum(file)
    except OSError as error:
        raise storage_error("read", shown, error) from error
    if found != entry.checksum:
        where = _damage(file, tier, limit, shown)
        raise damaged(shown, f"its bytes do not match the checksum in {MANIFEST}{where}")


def _damage(file: Path, tier: str, limit: int, shown: Where) -> str:
    """Where it is: the first chunk that tells by itself (QN-23); nothing where none does, as of files without checksums of
    chunks, or where it is between them."""
    decoder = Decoder()
    try:
        for link in read_shard(file, limit, tier, shown):
            decoder.check(link)
    except CheckpointError as error:
        return f": {str(error).removeprefix(f'{shown} is damaged: ')}"
    return ""


def _meta(path: Where, manifest: Manifest) -> dict[str, Any]:
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


def memory_bytes() -> int:
    """Of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
