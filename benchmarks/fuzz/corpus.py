"""What is sound: checkpoints of each kind, files of tensors, a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.checkpoint import save
from workers.checkpoint.chain import Chain
from workers.models.transformer import ByteTransformer
from workers.qins.architectures import byte_transformer
from workers.qins.container import CODECS, SUFFIX, write_container
from workers.qins.convert import convert_model_to_projective
from workers.qins.files import save_model
from workers.state import Captured


def make_corpus(root: Path) -> list[Path]:
    """Folders of sound ones: in each lie checkpoints, of which the last is read, or a file of tensors; or it is a model
    folder."""
    torch.manual_seed(0)
    tensors = {
        "parameter.weight": torch.randn(40, 33),
        "parameter.half": torch.randn(5, 4).bfloat16(),
        "parameter.nan": torch.tensor([1.0, float("nan"), -0.0, float("inf")]),
        "buffer.count": torch.tensor(12),
        "buffer.none": torch.empty(0, 3),
        "optimizer.weight|exp_avg": torch.randn(40, 33) * 1e-3,
        "optimizer.weight|exp_avg_sq": torch.rand(40, 33) * 1e-6,
    }
    meta = {"groups": [{"lr": 0.1, "betas": (0.9, 0.999)}], "history": [[1, "evaluate", {"loss": 1.5, "count": 3}]]}
    arguments: dict[str, Any] = {"job": "fuzz", "generation": (1, 2), "lineage": 3, "world": 4, "fence": lambda: True}
    kinds: dict[str, dict[str, Any]] = {"exact": {}, "shards": {"shard_bytes": 3000}}
    kinds |= {f"qins-{codec}": {"tier": "qins", "weights": codec} for codec in ("int8", "v1", "log7", "log8")}
    for name, more in kinds.items():
        save(Captured(tensors, meta), root / name, step=1, **arguments, **more)
    chain = Chain()
    for step in range(1, 5):
        moved = {name: t * (1 + 1e-3 * step) if t.is_floating_point() else t for name, t in tensors.items()}
        save(Captured(moved, meta), root / "chain", step=step, tier="qins", chain=chain, whole_every=8, **arguments)
    model: nn.Module = ByteTransformer(context=8, width=16, depth=1, heads=2)
    architecture = byte_transformer(context=8, width=16, depth=1, heads=2)
    save_model(convert_model_to_projective(model), root / "model", architecture)
    for codec in CODECS:
        write_container(root / f"container-{codec}" / f"tensors{SUFFIX}", tensors, codec)
    return [path for path in sorted(root.iterdir()) if path.is_dir()]


def checkpoints_in(folder: Path) -> list[Path]:
    """Oldest first; none in a model folder."""
    return sorted(path for path in folder.iterdir() if path.name.startswith("step-"))


def shards(folder: Path) -> list[Path]:
    """All files of tensors."""
    return sorted(folder.rglob("*.qins"))
