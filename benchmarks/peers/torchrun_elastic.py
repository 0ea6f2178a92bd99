"""torchrun elastic: DDP on gloo; every worker is restarted from the last checkpoint when one dies.

The tuned form forks its workers from an agent that has already imported torch, instead of starting new interpreters.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.model import build_dataset, build_model, build_optimizer, share, train_loss
from benchmarks.steplog import StepLog
from benchmarks.system import System

PROGRAM = "benchmarks.peers.torchrun_elastic"
RESTARTS = 1_000


def systems(world: int) -> list[System]:
    """Default settings with a checkpoint every 50 and 10 steps, and tuned with one every 10."""

    def default(every: int) -> System:
        def command(folder: Path) -> list[str]:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={world}"]
            rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--max-restarts={RESTARTS}"]
            return [*launcher, *rendezvous, "-m", PROGRAM, str(folder), str(every)]

        return System(
            key=f"torchrun-{every}",
            label="torchrun elastic",
            settings=f"default, checkpoint every {every}",
            module="torch",
            install="pip install torch",
            command=command,
            environment=_SURVIVE_RESTART,
        )

    tuned = System(
        key="torchrun-tuned",
        label="torchrun elastic",
        settings="tuned: workers forked with torch imported, monitored every 10 ms, checkpoint every 10",
        module="torch",
        install="pip install torch",
        command=lambda folder: [sys.executable, "-m", PROGRAM, str(folder), "10", str(world)],
        environment=_SURVIVE_RESTART,
    )
    return [default(50), default(10), tuned]


_SURVIVE_RESTART = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it torchrun on gloo cannot restart: the new workers meet the old ones' keys (pytorch issue 135712)."""


def train(folder: Path, every: int) -> None:
    """One worker: resume from the last checkpoint, then train until killed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    dataset, log, checkpoint = build_dataset(), StepLog(folder), folder / "checkpoint.pt"
    model = build_model()
    optimizer = build_optimizer(model)
    step = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    parallel = DistributedDataParallel(model)
    while True:
        begun = time.time()
        step += 1
        optimizer.zero_grad()
        train_loss(parallel, share(dataset, step, rank, world)).backward()
        optimizer.step()
        log.commit(begun=begun, rank=rank, world=world, step=step)
        if rank == 0 and step % every == 0:
            partial = checkpoint.with_suffix(".partial")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
            os.replace(partial, checkpoint)


def launch_tuned(folder: Path, every: int, world: int) -> None:
    """Run the elastic agent in this process and fork its workers."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="bench",
        max_restarts=RESTARTS,
        monitor_interval=0.01,
        start_method="fork",
    )
    elastic_launch(config, train)(folder, every)


if __name__ == "__main__":
    if "RANK" in os.environ:
        train(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        launch_tuned(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
