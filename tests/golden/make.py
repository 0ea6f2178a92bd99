"""Writes a set of files that every later version has to read: `python tests/golden/make.py tests/golden/NUMBER`.

A new set is made when what is written changes; a set that is there is never made again. Beside each file or folder lies
what was read from it then, as safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from workers.checkpoint import load, save
from workers.checkpoint.chain import Chain
from workers.models.transformer import ByteTransformer
from workers.qins.architectures import byte_transformer
from workers.qins.convert import convert_model_to_projective
from workers.qins.files import QINSModelLoader, save_model
from workers.state import Captured


def state(step: int) -> Captured:
    """One of everything, that moves a little from step to step."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(20, 17, generator=generator) * (1 + 1e-3 * step)
    tensors = {
        "parameter.weight": weight,
        "parameter.half": torch.randn(9, 4, generator=generator).bfloat16(),
        "parameter.special": torch.tensor([1.0, float("nan"), float("-inf"), -0.0, 0.0, 1e-40]),
        "buffer.count": torch.tensor(step),
        "buffer.mask": torch.tensor([True, False]),
        "buffer.none": torch.empty(0, 3),
        "buffer.double": torch.randn(3, dtype=torch.float64, generator=generator),
        "optimizer.weight|exp_avg": weight * 1e-3,
        "optimizer.weight|exp_avg_sq": weight.square() * 1e-6,
    }
    meta = {"groups": [{"lr": 0.1, "betas": (0.9, 0.999)}], "position": {0: step}, "best": float("inf")}
    return Captured(tensors, meta)


def main(root: Path) -> None:
    """All of a set."""
    arguments: dict[str, Any] = {"job": "golden", "generation": (2, 3), "lineage": 2**64 - 2, "world": 4}
    arguments["fence"] = lambda: True
    kinds: dict[str, dict[str, Any]] = {"exact": {}, "shards": {"shard_bytes": 900}, "round": {"rounds": 36}}
    kinds |= {f"qins-{codec}": {"tier": "qins", "weights": codec} for codec in ("int8", "v1", "log7", "log8")}
    paths = [save(state(10), root / kind, step=10, **arguments, **more).path for kind, more in kinds.items()]
    chain = Chain()
    for step in (10, 20, 30):
        last = save(state(step), root / "chain", step=step, tier="qins", chain=chain, whole_every=8, **arguments)
    for path in (*paths, last.path):
        save_file(load(path).tensors, path.parent / "expected.safetensors")
    torch.manual_seed(6)
    folder, plain = root / "model" / "converted", ByteTransformer(context=8, width=16, depth=1, heads=2)
    architecture = byte_transformer(context=8, width=16, depth=1, heads=2)
    save_model(convert_model_to_projective(plain), folder, architecture)
    model, _ = QINSModelLoader("none").load(folder)
    tokens = torch.arange(8)[None]
    with torch.inference_mode():
        expected = {"tokens": tokens, "logits": model(tokens).contiguous()}
    save_file(expected, folder.parent / "expected.safetensors")
    try:
        from workers.qins.container import CODECS, read_container, write_container
    except ImportError:  # the first sets have none
        return
    tensors = state(10).tensors
    for codec in CODECS:
        write_container(root / "container" / f"{codec}.qins", tensors, codec)
        save_file(read_container(root / "container" / f"{codec}.qins"), root / "container" / f"{codec}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
