"""Checkpoints for others, and weights from others (CK-11): safetensors both ways, torch.distributed.checkpoint one way.

A checkpoint of torch.distributed.checkpoint is read by unpickling its index, which can run any code; so none is read here.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from workers.checkpoint.codec import DTYPES, dtype_name
from workers.checkpoint.draft import exists_already, reveal, sync
from workers.checkpoint.errors import CheckpointError, damaged, storage_error
from workers.checkpoint.manifest import EXACT
from workers.checkpoint.places import Root, Where
from workers.checkpoint.reader import load
from workers.checkpoint.shard import os_error
from workers.checkpoint.writer import Published, save
from workers.state import Captured

SUFFIX = ".safetensors"
_MODEL = ("parameter.", "buffer.")


def state_dict(path: Where, everything: bool = False) -> dict[str, torch.Tensor]:
    """The parameters and buffers of the checkpoint at `path`, by the names that its model has for them; with `everything`
    all tensors, by the names of the checkpoint: `parameter.…`, `buffer.…`, `optimizer.…|…`, `kept.…`.

    Raises CheckpointError with one sentence.
    """
    tensors = load(path).tensors
    if everything:
        return tensors
    return {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(_MODEL)}


def to_safetensors(path: Where, target: Path, everything: bool = False) -> int:
    """Write `state_dict` to a new file in safetensors, whole or not at all; its bytes.

    Raises CheckpointError, of `target` too where it exists; StorageError where it cannot be written.
    """
    return write_safetensors(state_dict(path, everything), target)


def write_safetensors(tensors: Mapping[str, torch.Tensor], target: Path) -> int:
    """Write them to a new file, whole or not at all; its bytes. Raises as `to_safetensors`."""
    dense = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def write(hidden: Path) -> None:
        hidden.touch(exist_ok=False)
        mode = hidden.stat().st_mode
        try:
            save_file(dense, hidden, metadata={"format": "pt"})
        except SafetensorError as error:
            raise os_error(error) from None
        hidden.chmod(stat.S_IMODE(mode))  # the library makes files private to the user

    _publish(target, write)
    return target.stat().st_size


def to_distributed(path: Where, target: Path, everything: bool = False) -> int:
    """Write `state_dict` to a new folder that `torch.distributed.checkpoint.load` reads, whole or not at all; its bytes.

    Raises CheckpointError, of `target` too where it exists; StorageError where it cannot be written.
    """
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    tensors = state_dict(path, everything)

    def write(hidden: Path) -> None:
        hidden.mkdir()
        try:
            dcp.save(tensors, checkpoint_id=hidden, no_dist=True)
        except CheckpointException as error:
            causes = [wrapped[0] for wrapped in error.failures.values()]
            refusal = next((cause for cause in causes if isinstance(cause, OSError)), None)
            raise refusal or CheckpointError(f"torch.distributed.checkpoint could not save {path}: {causes}") from None

    _publish(target, write)
    return sum(file.stat().st_size for file in target.iterdir())


def from_safetensors(source: Path, root: Root, job: str, tier: str = EXACT, weights: str = "int8") -> Published[Root]:
    """A checkpoint below `root` of the tensors in a safetensors file, or in all those of a folder, as models are published:
    floating-point ones as parameters, others as buffers. It has no optimizer's state, so no job resumes from it.

    Raises CheckpointError with one sentence.
    """
    tensors = weights_of(source).items()
    named = {f"{_MODEL[not tensor.is_floating_point()]}{name}": tensor for name, tensor in tensors}
    return save(
        Captured(named, {"imported": source.name}),
        root,
        job=job,
        step=0,
        generation=(0, 0),
        lineage=0,
        world=1,
        fence=lambda: True,
        tier=tier,
        weights=weights,
    )


def weights_of(source: Path) -> dict[str, torch.Tensor]:
    """The tensors in a safetensors file, or in all those of a folder. Raises CheckpointError with one sentence."""
    tensors: dict[str, torch.Tensor] = {}
    for file in _files(source):
        for name, tensor in _read(file).items():
            if name in tensors:
                raise damaged(file, f"it holds tensor {name!r}, which another file of {source} holds, too")
            if dtype_name(tensor.dtype) not in DTYPES:
                raise CheckpointError(
                    f"{file}: tensor {name!r} has dtype {dtype_name(tensor.dtype)}, which no checkpoint holds"
                )
            tensors[name] = tensor
    return tensors


def _files(source: Path) -> list[Path]:
    found = sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() else [source]
    if not found or not all(file.is_file() for file in found):
        raise CheckpointError(
            f"there are no weights at {source}; give a file that ends in {SUFFIX}, or a folder with such files"
        )
    return found


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise damaged(file, f"it is no safetensors file ({error})") from None
    except OSError as error:
        raise storage_error("read", file, error) from error


def _publish(target: Path, write: Callable[[Path], None]) -> None:
    """Write beside `target`, sync, rename; what fails leaves nothing."""
    hidden = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        if os.path.lexists(target):
            raise exists_already(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        write(hidden)
        for path in (hidden, *(hidden.iterdir() if hidden.is_dir() else ())):
            sync(path)
        if hidden.is_dir():
            hidden.rename(target)
            sync(target.parent)
        else:
            reveal(hidden, target)
    except OSError as error:
        raise storage_error("write", target, error) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        with suppress(OSError):
            hidden.unlink()
