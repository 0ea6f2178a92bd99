"""Horovod elastic on gloo: survivors go back to the state they last committed in memory, every 10 steps.

Horovod blacklists a host on its first failure, so each rank is given a host name of its own that means this machine.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.system import System

PROGRAM = "benchmarks.peers.horovod_elastic"
COMMIT_EVERY = 10
NAMES = ("localhost", "127.0.0.1", "127.1", "127.0.1")
"""All resolve to 127.0.0.1, the only kind of address that Horovod starts workers on without ssh."""


def systems(world: int, python: str | None) -> list[System]:
    """Horovod elastic in the environment of `python` (default: this one)."""
    interpreter = python or sys.executable

    def command(folder: Path) -> list[str]:
        hosts = folder / "hosts.sh"
        hosts.write_text("#!/bin/sh\n" + "".join(f"echo {name}:1\n" for name in NAMES[:world]))
        hosts.chmod(0o755)
        horovodrun = [str(Path(interpreter).with_name("horovodrun")), "--gloo", "-np", str(world), "--min-np", "2"]
        elastic = ["--max-np", str(world), "--host-discovery-script", str(hosts), "--gloo-timeout-seconds", "3"]
        again = ["--blacklist-cooldown-range", "1", "2"]
        return [*horovodrun, *elastic, *again, interpreter, "-m", PROGRAM, str(folder)]

    return [
        System(
            key="horovod",
            label="Horovod elastic",
            settings=f"0.28.1, gloo time-out 3 s, black-list cool-down 1 to 2 s, in-memory commit every {COMMIT_EVERY}",
            module="horovod.torch",
            install="sh benchmarks/horovod_build.sh VENV, then --horovod-python VENV/bin/python",
            command=command,
            python=interpreter,
        )
    ]


def main(folder: Path) -> None:
    """One worker: train until killed, going back to the last commit when the ring changes."""
    import horovod.torch as hvd
    import torch

    from benchmarks.model import build_dataset, build_model, build_optimizer, share, train_loss
    from benchmarks.steplog import StepLog

    torch.set_num_threads(1)
    hvd.init()
    dataset, log = build_dataset(), StepLog(folder)
    model = build_model()
    optimizer = hvd.DistributedOptimizer(build_optimizer(model), named_parameters=model.named_parameters())

    @hvd.elastic.run
    def train(state: hvd.elastic.TorchState) -> None:
        while True:
            begun = time.time()
            optimizer.zero_grad()
            train_loss(model, share(dataset, state.step + 1, hvd.rank(), hvd.size())).backward()
            optimizer.step()
            state.step += 1
            log.commit(begun=begun, rank=hvd.rank(), world=hvd.size(), step=state.step)
            if state.step % COMMIT_EVERY == 0:
                state.commit()

    train(hvd.elastic.TorchState(model=model, optimizer=optimizer, step=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
