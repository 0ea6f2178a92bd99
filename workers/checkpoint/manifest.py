"""`manifest.json`: what a checkpoint is, which files hold it, and the checksums that prove it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from workers.checkpoint.codec import Checksum, dtype_name
from workers.checkpoint.errors import CheckpointError, damaged
from workers.checkpoint.places import MANIFEST, Where, read_bytes, regular_size
from workers.identity import Generation

SCHEMA_VERSION: Literal[1] = 1
MAX_MANIFEST_BYTES = 64 << 20

_FOLDER = re.compile(r"step-(\d{1,18})-gen-(\d{1,18})\.(\d{1,18})(?:-round-(\d{1,18}))?(?:-([a-z]{1,20}))?", re.ASCII)
_SHARD = re.compile(r"shard-\d{5}(-[0-9a-f]{8})?\.qins", re.ASCII)

Count = Annotated[int, Field(ge=0, lt=2**63)]


EXACT, QINS = "exact", "qins"
"""The tiers: every bit is kept; or weights and moments are kept in the codecs of workers/checkpoint/lossy.py."""

TIERS = (EXACT, QINS)


class Label(NamedTuple):
    """What the name of a checkpoint's folder says. `rounds` were committed since that step."""

    step: int
    generation: Generation
    rounds: int = 0
    tier: str = EXACT

    @property
    def folder(self) -> str:
        """`step-<n>-gen-<incarnation>.<counter>`, then `-round-<r>` where it is not 0, and `-qins` in that tier."""
        rounds = f"-round-{self.rounds}" if self.rounds else ""
        tier = f"-{self.tier}" if self.tier != EXACT else ""
        return f"step-{self.step}-gen-{self.generation}{rounds}{tier}"

    @property
    def age(self) -> tuple[int, Generation, int, bool]:
        """The newest has the largest; of two of one state, the exact one."""
        return self.step, self.generation, self.rounds, self.tier == EXACT


def _plain_shard_name(name: str) -> str:
    if not _SHARD.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is not a shard's name such as 'shard-00000.qins'")
    return name


class ShardEntry(BaseModel):
    """One shard file: its size in bytes, the BLAKE2b-128 of its bytes, the tensors in it in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, AfterValidator(_plain_shard_name)]
    bytes: Count
    checksum: Checksum
    tensors: list[str]


def _plain_folder(name: str) -> str:
    label = parse_folder(name)
    if label is None or label.tier != QINS:
        raise ValueError(f"{name[:80]!r} is not the folder of a checkpoint of the qins tier")
    return name


class Base(BaseModel):
    """The checkpoint that another holds the difference to: the folder beside it, the BLAKE2b-128 of its manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Annotated[str, AfterValidator(_plain_folder)]
    checksum: Checksum


class Manifest(BaseModel):
    """Schema version 1. `created` in Unix seconds; `lineage` as 16 hex digits; `meta` as `workers.plain` writes it.

    `rounds` is left out where it is 0, as `refused` where it is empty and `base` where there is none: so what needs none of
    them is what it was before them.

    `refused` has the reason by name for tensors that the codec of their field cannot hold; they are kept bit for bit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    job: str
    step: Count
    generation: tuple[Count, Count]
    rounds: Count = 0
    lineage: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    tier: Annotated[str, Field(pattern=r"^[a-z]{1,20}$")]
    world: Annotated[int, Field(ge=1, lt=2**31)]
    created: float
    raw_bytes: Count
    signature: Checksum
    shards: list[ShardEntry]
    refused: dict[str, str] = {}
    base: Base | None = None
    meta: Any

    @property
    def label(self) -> Label:
        """What the checkpoint's folder is called by."""
        return Label(self.step, Generation(*self.generation), self.rounds, self.tier)

    @property
    def lineage_number(self) -> int:
        """The lineage as `StateId` holds it."""
        return int(self.lineage, 16)


def parse_folder(name: str) -> Label | None:
    """What a folder's name stands for, or None where it is no checkpoint's."""
    found = _FOLDER.fullmatch(name)
    if found is None:
        return None
    step, incarnation, counter, rounds = (int(group or 0) for group in found.groups()[:4])
    label = Label(step, Generation(incarnation, counter), rounds, found.group(5) or EXACT)
    return label if label.folder == name else None


def signature(tensors: Mapping[str, torch.Tensor]) -> str:
    """BLAKE2b-128 of all names, dtypes and shapes, in name order: equal for equal models."""
    rows = [[name, dtype_name(tensors[name].dtype), list(tensors[name].shape)] for name in sorted(tensors)]
    return blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of `manifest.json`, with a checksum over all its other fields.

    Raises CheckpointError where it would be larger than a reader accepts.
    """
    fields = manifest.model_dump(exclude={name for name in ("refused", "rounds", "base") if not getattr(manifest, name)})
    text = json.dumps({**fields, "checksum": _checksum(fields)}).encode()
    if len(text) > MAX_MANIFEST_BYTES:
        raise CheckpointError(
            f"the plain values of this state need {len(text)} bytes, more than the {MAX_MANIFEST_BYTES} a manifest "
            "may have; keep long histories in a tensor or in a file of their own"
        )
    return text


def read_manifest(folder: Where) -> Manifest:
    """The checked manifest of the checkpoint at `folder`. Raises CheckpointError with one sentence."""
    path = folder / MANIFEST
    fields, is_whole = _fields(path)
    version = fields.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {str(version)[:20]}, but this version of Quantarion reads {SCHEMA_VERSION}; "
            "use the version that wrote it"
        )
    if not is_whole:
        raise damaged(path, "its fields do not match its checksum")
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise damaged(path, f"field {place!r} is wrong ({first['msg']})") from None
    _check_consistent(path, manifest)
    return manifest


def manifest_checksum(folder: Where) -> str:
    """BLAKE2b-128 of the bytes of the manifest in `folder`: 32 hex digits. Raises CheckpointError."""
    path = folder / MANIFEST
    if regular_size(path) > MAX_MANIFEST_BYTES:
        raise damaged(path, f"it is larger than {MAX_MANIFEST_BYTES} bytes")
    return blake2b(read_bytes(path), digest_size=16).hexdigest()


def _fields(path: Where) -> tuple[dict[str, Any], bool]:
    """All fields but the checksum, and whether that matches them."""
    if regular_size(path) > MAX_MANIFEST_BYTES:
        raise damaged(path, f"it is larger than {MAX_MANIFEST_BYTES} bytes")
    content = read_bytes(path)
    try:
        fields = json.loads(content)
        if not isinstance(fields, dict):
            raise damaged(path, "it is not a JSON object")
        claimed = fields.pop("checksum", None)
        return fields, claimed == _checksum(fields)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is not JSON ({type(error).__name__})") from None


def _checksum(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _check_consistent(path: Where, manifest: Manifest) -> None:
    label = parse_folder(path.parent.name)
    if label is not None and label[:3] != manifest.label[:3]:
        raise damaged(path, f"it belongs to {manifest.label.folder}, not to {path.parent.name}")
    if manifest.base is not None and manifest.tier != QINS:
        raise damaged(path, f"it is of tier {manifest.tier!r}, which holds no differences")
    if (twice := _first_repeated(entry.name for entry in manifest.shards)) is not None:
        raise damaged(path, f"it lists {twice!r} twice")
    if (twice := _first_repeated(name for entry in manifest.shards for name in entry.tensors)) is not None:
        raise damaged(path, f"it lists tensor {twice!r} twice")


def _first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
