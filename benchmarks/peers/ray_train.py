"""Ray Train v2 with a FailureConfig: the whole worker group is restarted from the last reported checkpoint."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.system import System

PROGRAM = "benchmarks.peers.ray_train"


def systems(world: int) -> list[System]:
    """Default settings with a checkpoint every 50 and 10 steps, and tuned with one every 10."""

    def system(key: str, settings: str, every: int, environment: dict[str, str]) -> System:
        return System(
            key=key,
            label="Ray Train v2",
            settings=settings,
            module="ray.train.torch, pyarrow",
            install="pip install 'ray[train]' pyarrow",
            command=lambda folder: [sys.executable, "-m", PROGRAM, str(folder), str(every), str(world)],
            environment={"RAY_TRAIN_V2_ENABLED": "1", **environment},
        )

    tuned = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }
    return [
        system("ray-50", "FailureConfig, default, checkpoint every 50", 50, {}),
        system("ray-10", "FailureConfig, default, checkpoint every 10", 10, {}),
        system("ray-tuned", "FailureConfig, tuned: health check every 0.1 s, checkpoint every 10", 10, tuned),
    ]


def train(config: dict[str, Any]) -> None:
    """One worker: resume from the last reported checkpoint, then train until killed."""
    import ray.train
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from benchmarks.model import build_dataset, build_model, build_optimizer, share, train_loss
    from benchmarks.steplog import StepLog

    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    dataset, log = build_dataset(), StepLog(Path(config["folder"]))
    model = build_model()
    optimizer = build_optimizer(model)
    step = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as place:
            saved = torch.load(Path(place) / "state.pt")
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
        if step % config["every"] == 0:
            if rank:
                ray.train.report({"step": step})
                continue
            with tempfile.TemporaryDirectory() as place:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, Path(place) / "state.pt")
                ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(place))


def launch(folder: Path, every: int, world: int) -> None:
    """Start Ray in this process and train with unlimited retries."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(num_cpus=world + 1, include_dashboard=False, _temp_dir=str(folder / "ray"))
    TorchTrainer(
        train,
        train_loop_config={"folder": str(folder), "every": every},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=world),
        run_config=RunConfig(
            name="bench",
            storage_path=str(folder / "storage"),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()


if __name__ == "__main__":
    launch(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
