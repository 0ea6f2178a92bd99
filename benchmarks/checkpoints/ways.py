"""The ways of saving a training and reading it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse

from benchmarks.checkpoints.training import Training
from workers.checkpoint import load, save
from workers.checkpoint.chain import Chain
from workers.staging import Staging

CHAIN = 8


class Way(Protocol):
    """One way of saving. `save` calls `free` as soon as training could go on; `load` gives all tensors by name, or None
    where they are not those that were saved."""

    name: str
    ours: bool

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None: ...

    def load(self, training: Training, folder: Path) -> dict[str, torch.Tensor] | None: ...


class TorchSave:
    name, ours = "torch.save", False

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None:
        torch.save(training.state_dict(), folder / "state.pt")
        free()

    def load(self, training: Training, folder: Path) -> dict[str, torch.Tensor]:
        return _flattened(torch.load(folder / "state.pt", weights_only=True))


class Safetensors:
    name, ours = "safetensors", False

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None:
        save_file(training.flat(), folder / "state.safetensors")
        free()

    def load(self, training: Training, folder: Path) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in load_file(folder / "state.safetensors").items()}


class Distributed:
    """torch.distributed.checkpoint, of one process."""

    name, ours = "DCP save", False

    def __init__(self, kind: str = "") -> None:
        self.kind = kind
        self.name = {"": "DCP save", "async": "DCP async_save", "zstd": "DCP save, zstd"}[kind]

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None:
        state = training.flat()
        match self.kind:
            case "async":
                pending = dcp.async_save(state, checkpoint_id=folder, no_dist=True)
                free()
                if isinstance(pending, AsyncSaveResponse):
                    pending = pending.upload_completion
                pending.result()
            case "zstd":
                from torch.distributed.checkpoint._extension import ZStandard

                dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, _extensions=[ZStandard()]), no_dist=True)
                free()
            case _:
                dcp.save(state, checkpoint_id=folder, no_dist=True)
                free()

    def load(self, training: Training, folder: Path) -> dict[str, torch.Tensor]:
        found = {name: torch.empty_like(tensor) for name, tensor in training.flat().items()}
        dcp.load(found, checkpoint_id=folder, no_dist=True)
        return found


class BitsAndBytes:
    """Weights and moments in its dynamic 8-bit code, blocks of 256, by torch.save."""

    name, ours = "bitsandbytes 8-bit", False

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None:
        from bitsandbytes.functional import quantize_blockwise

        coded: dict[str, Any] = {}
        for name, tensor in training.flat().items():
            if tensor.numel() < 256:
                coded[name] = tensor
                continue
            codes, how = quantize_blockwise(tensor.detach(), blocksize=256)
            coded[name] = codes, how.absmax, how.code, tensor.shape
        torch.save(coded, folder / "state.pt")
        free()

    def load(self, training: Training, folder: Path) -> None:
        from bitsandbytes.functional import dequantize_blockwise

        for entry in torch.load(folder / "state.pt", weights_only=True).values():
            if isinstance(entry, tuple):
                codes, absmax, code, _ = entry
                dequantize_blockwise(codes, absmax=absmax, code=code, blocksize=256)


class Ours:
    """`ReplicatedState.capture` blocks; the rest is done beside training."""

    ours = True

    def __init__(self, tier: str, chained: bool = False) -> None:
        self.tier, self.chain = tier, Chain() if chained else None
        self.name = f"ours, {tier}" + (", difference" if chained else "")
        self._staging = Staging()

    def save(self, training: Training, folder: Path, free: Callable[[], None]) -> None:
        captured = training.state.capture(copy=self._staging.copy)
        free()
        root = folder.parent / "ours-chain" if self.chain is not None else folder
        save(
            captured,
            root,
            job="benchmark",
            step=training.steps,
            generation=(1, 1),
            lineage=1,
            world=1,
            fence=lambda: True,
            tier=self.tier,
            chain=self.chain,
            whole_every=CHAIN if self.chain is not None else 1,
        )
        self._staging.take_back(captured.tensors)
        if self.chain is not None:  # what is new, for whoever counts bytes
            folder.symlink_to(max(root.iterdir(), key=lambda each: each.stat().st_mtime_ns))

    def load(self, training: Training, folder: Path) -> dict[str, torch.Tensor] | None:
        path = folder.resolve() if folder.is_symlink() else next(each for each in folder.iterdir())
        tensors = load(path).tensors
        return {_ours_to_flat(training, name): tensor for name, tensor in tensors.items()} if self.tier == "exact" else None


def _ours_to_flat(training: Training, name: str) -> str:
    kind, _, rest = name.partition(".")
    if kind != "optimizer":
        return f"model.{rest}"
    owner, _, key = rest.partition("|")
    return f"optimizer.{list(training.state.parameters).index(owner)}.{key}"


def _flattened(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    entries = {
        f"optimizer.{index}.{key}": each for index, of in state["optimizer"]["state"].items() for key, each in of.items()
    }
    return {**{f"model.{name}": each for name, each in state["model"].items()}, **entries}
