"""Publishing a state: written beside, synced, then made visible by one rename (CK-5)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import torch

from workers import plain
from workers.checkpoint.chain import Chain
from workers.checkpoint.codec import Encoder
from workers.checkpoint.draft import Draft, draft
from workers.checkpoint.errors import CheckpointError, StaleWriter, StorageError, storage_error
from workers.checkpoint.joint import HandedIn, Joint, JointDraft
from workers.checkpoint.lossy import codecs_of
from workers.checkpoint.manifest import (
    EXACT,
    QINS,
    TIERS,
    Base,
    Label,
    Manifest,
    ShardEntry,
    manifest_bytes,
    manifest_checksum,
    read_manifest,
    signature,
)
from workers.checkpoint.places import MANIFEST, Root, Where, is_folder, regular_size, sweep_stale
from workers.checkpoint.remote import Remote
from workers.checkpoint.shard import Increment, file_checksum, write_shard
from workers.identity import Generation
from workers.state import Captured

SHARD_BYTES = 2 << 30
"""Raw bytes after which a new shard begins."""

SPOOLED_BYTES = 64 << 20
"""The same for a store, as each lies in a temporary file on its way there; so that most go up in one request."""


@dataclass(frozen=True)
class Published(Generic[Root]):
    """A visible checkpoint. `bytes` where it lies, `raw_bytes` in memory; `new` is False where it was there already, `base`
    the folder of the checkpoint that it holds the difference to."""

    path: Root
    bytes: int
    raw_bytes: int
    seconds: float
    new: bool = True
    tier: str = EXACT
    base: str | None = None


def save(
    state: Captured,
    root: Root,
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
    shard_bytes: int | None = None,
    threads: int = 0,
    joint: Joint | None = None,
) -> Published[Root]:
    """Publish `state` below `root` as its `Label` says; `fence` is asked right before it becomes visible.

    Where that checkpoint exists already, it stays and nothing is written. `rounds` were committed since the step; `weights`
    names their codec in the qins tier, of `lossy.WEIGHTS`. There, of `whole_every` checkpoints with the same `chain` all
    but the first hold only the difference to the one before. `threads` is zstd's, beside the caller's. With a `joint` this
    rank leads, and of tensors that others write the shape and dtype are enough.

    Raises StorageError where the folder, disk or store refuses, StaleWriter where `fence` says False, CheckpointError for a
    state that cannot be held; none leaves anything visible, nor files of this call where the storage still answers.
    """
    if tier not in TIERS:
        raise ValueError(f"tier {tier!r} is unknown; write one of {', '.join(TIERS)}")
    started = time.monotonic()
    name = Label(step, Generation(*generation), rounds, tier).folder
    target: Root = root / name
    new: Draft | None = None
    shard_bytes = shard_bytes or _shard_bytes(root)
    try:
        if not isinstance(root, Remote):
            root.mkdir(parents=True, exist_ok=True)
        sweep_stale(root)
        if is_folder(target):
            if isinstance(target, Remote) and not fence():
                raise StaleWriter(f"{target} is there, but its generation is over")
            return _already(target, started)
        meeting = joint.open(target) if joint is not None else None
        new = meeting or draft(target)
        names, increment = joint.names if joint is not None else list(state.tensors), None
        if tier == QINS and chain is not None and whole_every > 1:
            increment = chain.increment(root, names, whole_every)
        base = increment.base if increment is not None else None
        codecs = codecs_of(state.tensors, weights, base is None) if tier == QINS else {}
        refused: dict[str, str] = {}
        described = signature(state.tensors)
        if joint is not None and meeting is not None:
            joint.announce(meeting, described, base)
        mine = names if joint is None else joint.mine
        entries = _write_all(new, state, mine, shard_bytes, threads, tier, codecs, refused, increment)
        if joint is not None and meeting is not None:
            for share in joint.gather(meeting, target):
                entries += share.shards
                refused |= share.refused
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
            signature=described,
            shards=entries,
            refused=refused,
            base=base,
            meta=_plain_meta(state.meta),
        )
        text = manifest_bytes(manifest)
        size = len(text) + sum(entry.bytes for entry in entries)
        new.finish(text)
        if base is not None:
            _check_base(target, base)
        if not fence():
            raise StaleWriter(f"{target} was not published: its generation is over")
        if not new.show():
            return _already(target, started)
        if isinstance(target, Remote) and not fence():  # a request may have taken its time
            target.remove([MANIFEST])
            raise StaleWriter(f"{target} was taken back: its generation ended while it was published")
        if chain is not None and increment is not None:
            chain.extend(target, names, increment)
        seconds = time.monotonic() - started
        return Published(target, size, manifest.raw_bytes, seconds, tier=tier, base=base.folder if base else None)
    except OSError as error:
        raise storage_error("write", target, error) from error
    finally:
        if new is not None:
            new.close()


def hand_in(
    state: Captured,
    root: Where,
    joint: Joint,
    *,
    step: int,
    generation: tuple[int, int],
    rounds: int = 0,
    tier: str = EXACT,
    weights: str = "int8",
    chain: Chain | None = None,
    whole_every: int = 1,
    shard_bytes: int | None = None,
    threads: int = 0,
) -> HandedIn:
    """Write this rank's share of what another publishes by `save`, which has the same arguments.

    Raises StaleWriter where the generation is over, or the other has given up; else as that. Then who leads is told, where
    the storage still answers.
    """
    started = time.monotonic()
    target = root / Label(step, Generation(*generation), rounds, tier).folder
    meeting: JointDraft | None = None
    shard_bytes = shard_bytes or _shard_bytes(root)
    try:
        meeting = joint.open(target)
        plan = joint.plan(meeting, target, signature(state.tensors))
        increment = None
        if tier == QINS and chain is not None and whole_every > 1:
            increment = chain.follow(plan.base, root)
        codecs = codecs_of(state.tensors, weights, plan.base is None) if tier == QINS else {}
        refused: dict[str, str] = {}
        entries = _write_all(meeting, state, joint.mine, shard_bytes, threads, tier, codecs, refused, increment)
        joint.hand_in(meeting, entries, refused)
        if chain is not None and increment is not None:
            chain.hand_in(target, [entry.name for entry in entries], increment)
        return HandedIn(target, sum(entry.bytes for entry in entries), time.monotonic() - started)
    except (OSError, CheckpointError) as error:
        refusal = storage_error("write", target, error) if isinstance(error, OSError) else error
        if meeting is not None:
            if not isinstance(refusal, StaleWriter) and joint.is_over(meeting):
                raise StaleWriter(f"{target} was not published: the rank that leads has given it up") from error
            joint.decline(meeting, str(refusal))
        raise refusal from refusal.__cause__
    finally:
        if meeting is not None:
            meeting.close()


def _shard_bytes(root: Where) -> int:
    return SPOOLED_BYTES if isinstance(root, Remote) else SHARD_BYTES


def _write_all(
    new: Draft,
    state: Captured,
    names: Sequence[str],
    shard_bytes: int,
    threads: int,
    tier: str,
    codecs: dict[str, str],
    refused: dict[str, str],
    increment: Increment | None,
) -> list[ShardEntry]:
    return [
        _write(new, index, part, threads, tier, codecs, refused, increment)
        for index, part in enumerate(_parts({name: state.tensors[name] for name in names}, shard_bytes))
    ]


def _parts(tensors: Mapping[str, torch.Tensor], shard_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in order, cut where a part would grow beyond `shard_bytes`; at least one part."""
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > shard_bytes:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    yield part


def _write(
    new: Draft,
    index: int,
    tensors: dict[str, torch.Tensor],
    threads: int,
    tier: str,
    codecs: dict[str, str],
    refused: dict[str, str],
    increment: Increment | None,
) -> ShardEntry:
    path = new.folder / new.shard(index)
    try:
        refused |= write_shard(path, tensors, Encoder(threads), tier, codecs, increment, flushes=new.syncs)
    except ValueError as error:
        raise CheckpointError(f"this state cannot be saved: {error}") from None
    size, checksum = path.stat().st_size, file_checksum(path)
    new.keep(path)
    return ShardEntry(name=path.name, bytes=size, checksum=checksum, tensors=list(tensors))


def _check_base(target: Where, base: Base) -> None:
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


def _already(target: Root, started: float) -> Published[Root]:
    manifest = read_manifest(target)
    size = regular_size(target / MANIFEST) + sum(entry.bytes for entry in manifest.shards)
    base = manifest.base.folder if manifest.base is not None else None
    return Published(target, size, manifest.raw_bytes, time.monotonic() - started, False, manifest.tier, base)
