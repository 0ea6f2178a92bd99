"""One state, written by several ranks together (CK-4)."""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from benchmarks.checkpoints.store import sync
from workers.checkpoint.joint import Joint
from workers.checkpoint.shares import divide
from workers.checkpoint.writer import hand_in, save
from workers.state import Captured

WRITERS = (1, 2, 4)
TENSORS, ELEMENTS = 96, 1 << 20
"""403 MB: a third of them weights, a third first and a third second moments."""

Seconds = dict[tuple[str, int], float]
"""Until it is visible and on the disk, by tier and number of writers."""


def state() -> Captured:
    """The same in every process."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for index in range(TENSORS // 3):
        values = 0.02 * torch.randn(ELEMENTS, generator=generator)
        tensors[f"parameter.{index}"] = values
        tensors[f"optimizer.{index}|exp_avg"] = 1e-3 * values.flip(0)
        tensors[f"optimizer.{index}|exp_avg_sq"] = values.square() * 1e-3
    return Captured(tensors, {})


def measure(folder: Path, tiers: Sequence[str], rounds: int) -> Seconds:
    """The medians; every number of writers in turns."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for index in range(rounds):
        for tier in tiers:
            for writers in WRITERS:
                root = folder / f"{tier}-{writers}-{index}"
                found[tier, writers].append(_one(root, tier, writers))
                shutil.rmtree(root)
                print(f"round {index}: {tier}, {writers} writers", flush=True)
    return {key: statistics.median(each) for key, each in found.items()}


def _one(root: Path, tier: str, writers: int) -> float:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(writers + 1)
    ranks = [context.Process(target=_write, args=(root, tier, writer, writers, barrier)) for writer in range(writers)]
    for rank in ranks:
        rank.start()
    barrier.wait()
    started = time.perf_counter()
    barrier.wait()
    sync(root)
    seconds = time.perf_counter() - started
    for rank in ranks:
        rank.join()
    if not (root / "step-1-gen-1.1" / "manifest.json").exists() and not list(root.glob("step-1-gen-1.1-*/manifest.json")):
        raise SystemExit(f"{writers} writers have published nothing")
    return seconds


def _write(root: Path, tier: str, writer: int, writers: int, barrier: Barrier) -> None:
    torch.set_num_threads(1)
    captured = state()
    shares = divide({name: tensor.nbytes for name, tensor in captured.tensors.items()}, writers)
    part = Joint(writer, shares, lambda: True)
    barrier.wait()
    if writer:
        hand_in(captured, root, part, step=1, generation=(1, 1), tier=tier)
    else:
        save(
            captured,
            root,
            job="benchmark",
            step=1,
            generation=(1, 1),
            lineage=1,
            world=writers,
            fence=lambda: True,
            tier=tier,
            joint=part if writers > 1 else None,
        )
    barrier.wait()
