"""Plain DistributedDataParallel on gloo, as the torch tutorials write it: the other side of benchmarks/overhead.py."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

from benchmarks.gate import Gate
from benchmarks.system import System

PROGRAM = "benchmarks.peers.ddp"


def system(model: str, world: int) -> System:
    """DDP on `world` ranks of this machine, in blocks that a `Gate` opens."""
    return System(
        key=f"ddp-{model}-{world}",
        label="DDP",
        settings=f"{model}, {world} ranks",
        module="torch",
        install="pip install torch",
        command=lambda folder: [sys.executable, "-m", PROGRAM, str(folder), model, str(world)],
    )


def launch(folder: Path, model: str, world: int) -> None:
    """Start the ranks and wait for them."""
    ranks = [
        subprocess.Popen([sys.executable, "-m", PROGRAM, str(folder), model, str(world), str(rank)])
        for rank in range(world)
    ]
    for rank in ranks:
        rank.wait()


def train(folder: Path, name: str, world: int, rank: int) -> None:
    """One rank: train block by block."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler

    from benchmarks.model import GLOBAL_BATCH, build_dataset, build_model, build_optimizer, train_loss

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    dataset = build_dataset()
    sampler: DistributedSampler[torch.Tensor] = DistributedSampler(dataset, world, rank)
    loader = DataLoader(dataset, batch_size=GLOBAL_BATCH // world, sampler=sampler)
    model = build_model(name)
    optimizer = build_optimizer(model)
    parallel = DistributedDataParallel(model)
    gate = Gate(folder, rank)
    if not gate.wait():
        return
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            train_loss(parallel, batch).backward()
            optimizer.step()
            gate.committed()
            if not gate.wait():
                return


if __name__ == "__main__":
    if len(sys.argv) == 5:
        train(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        launch(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
