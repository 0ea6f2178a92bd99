"""What lies in a checkpoint, for somebody who looks: each tensor's codec and bytes, read from its files alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from workers.checkpoint.errors import CheckpointError
from workers.checkpoint.manifest import TIERS, Manifest, read_manifest
from workers.checkpoint.places import MANIFEST, Where, at_hand, is_folder
from workers.checkpoint.reader import check_shards
from workers.checkpoint.shard import read_shard


@dataclass(frozen=True)
class Content:
    """One tensor as it lies there: `stored` bytes in its file, `raw` in memory. `reason`: why its codec is no lossy one."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    codec: str
    stored: int
    raw: int
    reason: str = ""


def contents(path: Where) -> tuple[Manifest, Iterator[Content]]:
    """What the checkpoint at `path` says of itself, and its tensors in order; reads their bytes, but decodes none.

    Raises CheckpointError with one sentence, also while it goes on.
    """
    if not is_folder(path):
        raise CheckpointError(f"there is no checkpoint at {path}; give the folder that holds {MANIFEST}")
    manifest = read_manifest(path)
    if manifest.tier not in TIERS:
        raise CheckpointError(f"{path} is of tier {manifest.tier!r}, but this version reads {', '.join(TIERS)} only")
    check_shards(path, manifest)
    return manifest, _contents(path, manifest)


def _contents(path: Where, manifest: Manifest) -> Iterator[Content]:
    for entry in manifest.shards:
        shard = path / entry.name
        with at_hand(shard) as file:
            for record, blob, _ in read_shard(file, manifest.raw_bytes, manifest.tier, shard):
                stored = sum(blob(index).nbytes for index in range(record.num_chunks))
                reason = manifest.refused.get(record.name, "")
                shape = tuple(record.shape)
                yield Content(record.name, record.dtype, shape, record.codec, stored, record.raw_bytes, reason)
