"""A converted model as a file: safetensors, with the bits, shapes and scale conventions of its parts in the header."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from workers.checkpoint.shard import os_error
from workers.qat.convert import describe
from workers.qat.errors import QuantizationError

FORMAT = "quantarion.integer/1"
"""The one key of the header's metadata: safetensors writes several in any order, and equal models are to be equal bytes."""


def save_converted(model: nn.Module, path: Path) -> None:
    """Write a converted model to `path`, whole or not at all. Raises OSError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_model(model, str(aside), {FORMAT: _parts(model)})
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except SafetensorError as error:
        raise os_error(error) from None
    finally:
        aside.unlink(missing_ok=True)


def load_converted(model: nn.Module, path: Path) -> nn.Module:
    """Fill `model`, from `blank` or `convert`, with what `save_converted` wrote; returns it.

    Raises:
        QuantizationError: no such file, another format, or a model of other parts; `model` is unchanged.
    """
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise QuantizationError(f"{path} cannot be read as a converted model: {error}") from error
    if FORMAT not in header:
        raise QuantizationError(f"{path} is no converted model of the format {FORMAT}: write it with save_converted")
    if header[FORMAT] != _parts(model) or not _fits(model, shapes):
        raise QuantizationError(
            f"{path} is a converted model of other layers or bits: build the model as it was when saved"
        )
    load_model(model, str(path))
    return model


def _parts(model: nn.Module) -> str:
    return json.dumps(describe(model), sort_keys=True)


def _fits(model: nn.Module, shapes: dict[str, list[int]]) -> bool:
    """Whether the tensors of a file, by name, are those of `model`; what is shared stands in a file once."""
    ours = model.state_dict()
    if any(name not in ours or list(ours[name].shape) != shape for name, shape in shapes.items()):
        return False
    met = {ours[name].data_ptr() for name in shapes}
    return all(tensor.data_ptr() in met for tensor in ours.values() if tensor.numel())
