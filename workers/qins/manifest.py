"""`manifest.json` of a model folder: which architecture, which tensors, and the SHA-256 that proves them (QN-12)."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workers.checkpoint.errors import CheckpointError, damaged, storage_error
from workers.checkpoint.places import MANIFEST, regular_size

TENSORS = "model.safetensors"
FORMAT = "quantarion.model/1"
MAX_BYTES = 16 << 20

Size = Annotated[int, Field(ge=0, lt=2**48)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Architecture(_Strict):
    """A name in the registry (workers/qins/architectures.py) and the arguments to build it with."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
    arguments: dict[str, int | float | bool | str]


class TensorEntry(_Strict):
    """dtype as `float32`; `same_as` is the earlier tensor whose memory this one shares, and which alone is stored."""

    dtype: str
    shape: Annotated[list[Size], Field(max_length=8)]
    same_as: str | None = None


class ModelManifest(_Strict):
    """`bytes` and `sha256` are those of model.safetensors; `tensors` is the whole state dict, in its order."""

    format: str = FORMAT
    architecture: Architecture
    bytes: Size
    sha256: Digest
    tensors: dict[str, TensorEntry]


def file_sha256(path: Path) -> str:
    """64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        digest = sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def to_json(manifest: ModelManifest) -> str:
    """The text of `manifest.json`, with a SHA-256 over all its other fields."""
    fields = manifest.model_dump()
    return json.dumps({**fields, "checksum": _checksum(fields)}, indent=1) + "\n"


def read_model_manifest(folder: Path) -> ModelManifest:
    """The checked manifest in `folder`. Raises CheckpointError with one sentence."""
    path = folder / MANIFEST
    if not folder.is_dir() or not path.exists():
        raise CheckpointError(f"{folder} is no model folder; give one that holds {MANIFEST} and {TENSORS}")
    if regular_size(path) > MAX_BYTES:
        raise damaged(path, f"it is larger than {MAX_BYTES} bytes")
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise storage_error("read", path, error) from error
    except (ValueError, RecursionError):
        raise damaged(path, "it is not JSON") from None
    if not isinstance(fields, dict):
        raise damaged(path, "it is not a JSON object")
    return _checked(path, fields)


def _checked(path: Path, fields: dict[str, Any]) -> ModelManifest:
    claimed, version = fields.pop("checksum", None), fields.get("format")
    if version != FORMAT:
        raise CheckpointError(
            f"{path} is in format {str(version)[:40]!r}, but this version reads {FORMAT!r}; "
            "use the version of Quantarion that wrote it"
        )
    if claimed != _checksum(fields):
        raise damaged(path, "its fields do not match its checksum")
    try:
        return ModelManifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise damaged(path, f"field {place!r} is wrong ({first['msg']})") from None


def _checksum(fields: dict[str, Any]) -> str:
    return sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
