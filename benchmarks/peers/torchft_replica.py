"""torchft: four replica groups of one process, the gradient as one flat `manager.allreduce`, healed from a peer.

A supervisor holds the lighthouse and starts a dead replica again at once.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from benchmarks.system import System

PROGRAM = "benchmarks.peers.torchft_replica"


@dataclass(frozen=True)
class Settings:
    """What torchft lets its user choose; times in seconds."""

    lighthouse: dict[str, int]
    operation_timeout: float
    manager_timeout: float
    heartbeat: float


SETTINGS = {
    "default": Settings({}, operation_timeout=60.0, manager_timeout=60.0, heartbeat=0.1),
    "tuned": Settings(
        {"heartbeat_timeout_ms": 500, "join_timeout_ms": 200, "quorum_tick_ms": 20},
        operation_timeout=5.0,
        manager_timeout=10.0,
        heartbeat=0.05,
    ),
}


def systems(world: int) -> list[System]:
    """torchft with its default time-outs, and tuned for fast recovery."""

    def system(name: str, settings: str) -> System:
        return System(
            key=f"torchft-{name}",
            label="torchft",
            settings=settings,
            module="torchft",
            install="pip install torchft==0.2.0",
            command=lambda folder: [sys.executable, "-m", PROGRAM, "supervise", str(folder), name, str(world)],
        )

    return [
        system("default", "flat all-reduce, default time-outs"),
        system("tuned", "flat all-reduce, tuned: lighthouse 500/200/20 ms, manager 10 s, group 5 s, heartbeat 50 ms"),
    ]


def supervise(folder: Path, name: str, world: int) -> None:
    """Hold the lighthouse and keep `world` replicas alive until killed."""
    from torchft.coordination import LighthouseServer

    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=2, **SETTINGS[name].lighthouse)
    address = f"http://127.0.0.1:{lighthouse.address().rsplit(':', 1)[1]}"

    def start(index: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", PROGRAM, "replica", str(folder), name, str(world), str(index), address]
        )

    replicas = [start(index) for index in range(world)]
    while True:
        time.sleep(0.01)
        for index, replica in enumerate(replicas):
            if replica.poll() is not None:
                replicas[index] = start(index)


def train(folder: Path, name: str, world: int, index: int, lighthouse: str) -> None:
    """One replica: heal from a peer, then train until killed."""
    import torch
    import torch.distributed as dist
    from torchft import Manager, ProcessGroupGloo

    from benchmarks.model import build_dataset, build_model, build_optimizer, share, train_loss
    from benchmarks.steplog import StepLog

    torch.set_num_threads(1)
    settings = SETTINGS[name]
    dataset, log = build_dataset(), StepLog(folder)
    model = build_model()
    optimizer = build_optimizer(model)

    def save() -> dict[str, object]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def load(state: dict[str, dict[str, object]]) -> None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=settings.operation_timeout)),
        load_state_dict=load,
        state_dict=save,
        min_replica_size=2,
        timeout=timedelta(seconds=settings.manager_timeout),
        heartbeat_interval=timedelta(seconds=settings.heartbeat),
        replica_id=f"replica_{index}",
        store_addr="127.0.0.1",
        store_port=store.port,
        rank=0,
        world_size=1,
        lighthouse_addr=lighthouse,
        hostname="127.0.0.1",
    )
    parameters = list(model.parameters())
    while True:
        begun = time.time()
        manager.start_quorum()
        optimizer.zero_grad()
        train_loss(model, share(dataset, manager.current_step(), index, world)).backward()
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters if parameter.grad is not None])
        manager.allreduce(flat).wait()
        offset = 0
        for parameter in parameters:
            parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        if manager.should_commit():
            optimizer.step()
            log.commit(begun=begun, rank=index, world=manager.num_participants(), step=manager.current_step())


if __name__ == "__main__":
    if sys.argv[1] == "supervise":
        supervise(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        train(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
