"""What can be made a model of: a model folder, or a job of the recipe `bytes` and its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from workers.checkpoint.catalog import newest_valid
from workers.checkpoint.errors import CheckpointError, damaged, storage_error
from workers.checkpoint.manifest import parse_folder
from workers.checkpoint.places import MANIFEST, Where, checkpoints_of
from workers.checkpoint.reader import load
from workers.qins.architectures import build, byte_transformer
from workers.qins.files import QINSModelLoader
from workers.qins.manifest import TENSORS, Architecture, read_model_manifest

RECIPE = "bytes"


def open_model(path: Path) -> tuple[nn.Module, Architecture]:
    """The model at `path`, in evaluation mode, and how it is built; of a job's folder, that of its newest checkpoint.

    Raises CheckpointError with one sentence.
    """
    if (path / TENSORS).exists():
        return QINSModelLoader().load(path)[0], read_model_manifest(path).architecture
    if (path / MANIFEST).exists() or parse_folder(path.name) is not None:
        return from_checkpoint(path, path.absolute().parent.parent)
    if (newest := newest_valid(checkpoints_of(path))) is not None:
        return from_checkpoint(newest.path, path)
    raise CheckpointError(
        f"{path} holds no model; give a model folder, a job's folder, or one of its checkpoints: "
        "runs/my-job/checkpoints/step-100-gen-1.1"
    )


def from_checkpoint(path: Where, folder: Path) -> tuple[nn.Module, Architecture]:
    """The float weights of the byte transformer that the job with that `folder` has saved at `path`, whatever its phase.

    Its sizes stand in the job's `job.json`. Observers and the optimizer's tensors are left behind.

    Raises:
        CheckpointError: the checkpoint is damaged, or its job is not of the recipe `bytes`.
    """
    task = _task(path, folder)
    if task.get("recipe") != RECIPE:
        raise CheckpointError(
            f"{path} is of a job with task.recipe {task.get('recipe')!r}; only {RECIPE!r} makes a chat model"
        )
    state = load(path).tensors
    parameters = {
        name.removeprefix("parameter."): tensor for name, tensor in state.items() if name.startswith("parameter.")
    }
    architecture = _architecture(path, task.get("text"))
    model = build(architecture, largest=max((tensor.numel() for tensor in parameters.values()), default=0))
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise CheckpointError(f"{path} is of another model: it has no tensor {name!r} of shape {list(tensor.shape)}")
    model.load_state_dict({name: parameters[name] for name in wanted})
    return model, architecture


def _task(path: Where, folder: Path) -> Mapping[str, Any]:
    """`task` in the `job.json` of the job that saved the checkpoint at `path`."""
    job = folder / "job.json"
    try:
        task = json.loads(job.read_bytes())["task"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{job} is missing, which tells what {path} is a checkpoint of; keep it in its job's folder"
        ) from None
    except OSError as error:
        raise storage_error("read", job, error) from error
    except (ValueError, KeyError, TypeError):
        raise damaged(job, "it has no task") from None
    if not isinstance(task, dict):
        raise damaged(job, "its task is no object")
    return task


def _architecture(path: Where, text: Any) -> Architecture:
    """The sizes in `task.text`."""
    sizes: dict[str, Any] = (
        {key: text.get(key) for key in ("context", "width", "depth", "heads")} if isinstance(text, dict) else {}
    )
    if not sizes or not all(type(size) is int for size in sizes.values()):
        raise CheckpointError(f"the job of {path} does not say context, width, depth and heads in task.text")
    return byte_transformer(**sizes)
