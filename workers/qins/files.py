"""Model folders: tensors in safetensors, everything else in a JSON manifest; nothing in them is run (QN-12)."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from workers.checkpoint.codec import dtype_name
from workers.checkpoint.draft import sync
from workers.checkpoint.errors import CheckpointError, damaged, storage_error
from workers.checkpoint.places import MANIFEST, regular_size
from workers.qins.architectures import build
from workers.qins.codec import check_code
from workers.qins.linear import BUFFERS, CachePolicy, ProjectiveLinear, QINSLinear
from workers.qins.manifest import (
    TENSORS,
    Architecture,
    ModelManifest,
    TensorEntry,
    file_sha256,
    read_model_manifest,
    to_json,
)
from workers.qins.tokenizer import ByteTokenizer

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "U8": "uint8", "I8": "int8"}
_DTYPES |= {"I16": "int16", "I32": "int32", "I64": "int64", "BOOL": "bool"}


def save_model(model: nn.Module, folder: Path, architecture: Architecture) -> ModelManifest:
    """Write `model` to a new folder: beside it, synced, then shown by one rename.

    Raises:
        CheckpointError: the folder is there already, the model computes on codes, or is not of `architecture`;
            StorageError: the disk refuses. Nothing is left behind.
    """
    if any(isinstance(module, ProjectiveLinear) for module in model.modules()):
        raise CheckpointError("a model that computes on QINS codes is not saved; convert it with QINS_CODEC_AT_REST=1")
    if folder.exists():
        raise CheckpointError(f"{folder} is there already; choose another folder or move it away")
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    table = _table(state)
    _check_table(folder, architecture, table)
    hidden = folder.with_name(f".tmp-{folder.name}-{secrets.token_hex(4)}")
    try:
        hidden.mkdir(parents=True)
        path = hidden / TENSORS
        stored = {name: tensor.cpu().contiguous() for name, tensor in state.items() if table[name].same_as is None}
        path.touch(exist_ok=False)
        mode = path.stat().st_mode
        with _container_errors(path):
            save_file(stored, path)
        path.chmod(stat.S_IMODE(mode))  # the container library makes files private to the user
        size, digest = path.stat().st_size, file_sha256(path)
        manifest = ModelManifest(architecture=architecture, bytes=size, sha256=digest, tensors=table)
        (hidden / MANIFEST).write_text(to_json(manifest))
        for each in (path, hidden / MANIFEST, hidden):
            sync(each)
        os.rename(hidden, folder)
        sync(folder.parent)
        return manifest
    except OSError as error:
        raise storage_error("write", folder, error) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


class QINSModelLoader:
    """Reads model folders. `cache` is that of the QINS layers."""

    def __init__(self, cache: CachePolicy = "lru") -> None:
        self._cache = cache

    def load(self, path: Path | str) -> tuple[nn.Module, ByteTokenizer]:
        """The model in evaluation mode, and its tokenizer.

        Raises:
            CheckpointError: with one sentence: no model folder, another version, a bad checksum, tensors that are missing,
                extra, of another shape or dtype, or no QINS code. No weight is set before all of this is checked.
        """
        folder = Path(path)
        manifest = read_model_manifest(folder)
        tensors = _read_tensors(folder, manifest)
        _check_table(folder, manifest.architecture, manifest.tensors)
        model = _skeleton(manifest.architecture, manifest.tensors, self._cache)
        _check_codes(folder, tensors)
        model.load_state_dict(tensors)
        return model.eval(), ByteTokenizer()


def model_bytes(manifest: ModelManifest) -> tuple[int, int]:
    """Bytes of the file of tensors, and of the same numbers as float32: a code counts as one number."""
    stored = {name: entry for name, entry in manifest.tensors.items() if entry.same_as is None}
    codes = {f"{layer}.{buffer}" for layer in encoded_layers(manifest.tensors) for buffer in BUFFERS[1:]}
    numbers = (_elements(entry) for name, entry in stored.items() if name not in codes)
    return manifest.bytes, 4 * sum(numbers)


def encoded_layers(table: Mapping[str, TensorEntry]) -> list[str]:
    """Names of the layers whose weight is a QINS code: those that have all its four buffers."""
    layers = [name.removesuffix(".stored") for name in table if name.endswith(".stored")]
    return [layer for layer in layers if all(f"{layer}.{buffer}" in table for buffer in BUFFERS)]


def _table(state: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    table: dict[str, TensorEntry] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        twin = first.setdefault(place, name)
        same_as = None if twin == name else twin
        table[name] = TensorEntry(dtype=dtype_name(tensor.dtype), shape=list(tensor.shape), same_as=same_as)
    return table


def _skeleton(architecture: Architecture, table: Mapping[str, TensorEntry], cache: CachePolicy = "none") -> nn.Module:
    """The model of `architecture` with an empty QINS layer where `table` has codes."""
    model = build(architecture, largest=max(map(_elements, table.values()), default=0))
    for name in encoded_layers(table):
        layer = _submodule(model, name)
        if isinstance(layer, nn.Linear):
            new = QINSLinear(layer.in_features, layer.out_features, layer.bias is not None, cache=cache)
            model.set_submodule(name, new.eval())
    return model


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _check_table(folder: Path, architecture: Architecture, table: Mapping[str, TensorEntry]) -> None:
    """Raise CheckpointError where `table` is not the state dict of that model; allocates nothing."""
    with torch.device("meta"):
        model = _skeleton(architecture, table)
    wanted = {name: (dtype_name(each.dtype), list(each.shape)) for name, each in model.state_dict().items()}
    for name, (dtype, shape) in wanted.items():
        entry = table.get(name)
        if entry is None:
            raise CheckpointError(f"{folder} is of another model: it has no tensor {name!r} ({dtype} {shape})")
        if (entry.dtype, entry.shape) != (dtype, shape):
            found = f"{entry.dtype} {entry.shape}"
            raise CheckpointError(f"{folder} is of another model: its tensor {name!r} is {found}, not {dtype} {shape}")
    if extra := [name for name in table if name not in wanted]:
        raise CheckpointError(f"{folder} is of another model: that has no tensor {extra[0]!r}")


def _read_tensors(folder: Path, manifest: ModelManifest) -> dict[str, Tensor]:
    """The whole state dict, its bytes and its table proved first."""
    path = folder / TENSORS
    if (size := regular_size(path)) != manifest.bytes:
        raise damaged(path, f"it has {size} bytes instead of {manifest.bytes}")
    try:
        if file_sha256(path) != manifest.sha256:
            raise damaged(path, f"its bytes do not match the SHA-256 in {MANIFEST}")
        with safe_open(path, framework="pt") as container:
            _check_container(path, container, manifest)
            stored = {name: container.get_tensor(name) for name in list(container.keys())}
    except SafetensorError as error:
        raise damaged(path, f"it is not a safetensors container ({error})") from None
    except OSError as error:
        raise storage_error("read", path, error) from error
    return {name: stored[entry.same_as or name] for name, entry in manifest.tensors.items()}


def _check_container(path: Path, container: safe_open, manifest: ModelManifest) -> None:
    """Raise CheckpointError where the headers in the file are not those of the manifest; reads no content."""
    listed = {name: entry for name, entry in manifest.tensors.items() if entry.same_as is None}
    names = set(container.keys())
    for name, entry in manifest.tensors.items():
        twin = listed.get(entry.same_as or name)
        if twin is None or (twin.dtype, twin.shape) != (entry.dtype, entry.shape):
            raise damaged(path.parent / MANIFEST, f"tensor {name!r} is said to be {entry.same_as!r}, which it cannot be")
    for name, entry in listed.items():
        if name not in names:
            raise damaged(path, f"it lacks tensor {name!r}, which {MANIFEST} lists")
        header = container.get_slice(name)
        found = (_DTYPES.get(header.get_dtype(), "unknown"), list(header.get_shape()))
        if found != (entry.dtype, entry.shape):
            raise damaged(path, f"its tensor {name!r} is {found[0]} {found[1]}, not {entry.dtype} {entry.shape}")
    if extra := sorted(names - set(listed)):
        raise damaged(path, f"it holds tensor {extra[0]!r}, which {MANIFEST} does not list")


def _check_codes(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    for name in tensors:
        layer = name.removesuffix(".stored")
        if layer != name:
            try:
                check_code(*(tensors[f"{layer}.{buffer}"] for buffer in BUFFERS))
            except ValueError as error:
                raise damaged(folder / TENSORS, f"layer {layer!r}: {error}") from None


def _elements(entry: TensorEntry) -> int:
    return torch.Size(entry.shape).numel()


@contextmanager
def _container_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None
