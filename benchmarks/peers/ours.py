"""Quantarion: `quantarion train` on one embedded host, with a script as any user writes it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.system import ROOT, System

NAME = "bench"
INSTALL = "pip install -e ."
ENDLESS = 1_000_000


def systems(world: int) -> list[System]:
    """For benchmarks/recovery.py: one host of `world` ranks with a preloaded idle worker."""

    def command(folder: Path) -> list[str]:
        return train_command(folder, "train", "mlp", world, spares=1, checkpoint_every=50)

    return [
        System(
            key="ours",
            label="**Quantarion**",
            settings="default, one preloaded idle worker, checkpoint every 50",
            module="orchestrator.cli",
            install=INSTALL,
            command=command,
        )
    ]


def gated(model: str, world: int, *, reproducible: bool = False) -> System:
    """For benchmarks/overhead.py: trains in blocks that a `Gate` opens, without evaluation and checkpoints.

    Reproducible, each rank has one micro-batch, as else.
    """
    return System(
        key=f"ours-{model}-{world}",
        label="Quantarion",
        settings=f"{model}, {world} ranks",
        module="orchestrator.cli",
        install=INSTALL,
        command=lambda folder: train_command(
            folder, "train_gated", model, world, spares=0, checkpoint_every=0, reproducible=reproducible
        ),
    )


def train_command(
    folder: Path,
    function: str,
    model: str,
    world: int,
    *,
    spares: int = 1,
    checkpoint_every: int = 50,
    reproducible: bool = False,
) -> list[str]:
    """Write script and JobSpec into `folder`; the command that trains them."""
    from benchmarks.model import GLOBAL_BATCH

    script = folder / "script.py"
    script.write_text(
        f"import sys\n\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"from benchmarks.peers.ours import {function}\n\n{function}({str(folder)!r}, {model!r})\n"
    )
    spec = {
        "name": NAME,
        "storage": str(folder / "runs"),
        "hosts": {"min": 1, "max": 1},
        "ranks_per_host": world,
        "spares_per_host": spares,
        "limits": {"exits_allowed": ENDLESS},
        "global_batch": GLOBAL_BATCH,
        "micro_batch": GLOBAL_BATCH // world if reproducible else GLOBAL_BATCH,
        "reproducible": reproducible,
        "task": {"script": str(script)},
        "phases": {"fp32_epochs": ENDLESS, "qat_epochs": 0},
        "checkpoint": {"every": checkpoint_every, "at_end": False},
    }
    job = folder / "job.yaml"
    job.write_text(json.dumps(spec, indent=1))
    return [sys.executable, "-m", "orchestrator", "train", str(job)]


def _job(model_name: str) -> tuple[Any, Any]:
    from benchmarks.model import build_dataset, build_model, build_optimizer
    from workers.elastic import Job

    model = build_model(model_name)
    return model, Job(model, build_optimizer(model), build_dataset())


def train(folder: str, model_name: str) -> None:
    """One rank: train until killed, and log every commit."""
    from benchmarks.model import train_loss
    from benchmarks.steplog import StepLog

    model, job = _job(model_name)
    log = StepLog(Path(folder))
    begun: float | None = None
    for batch in job.batches():
        begun = begun or time.time()
        before = job.committed
        job.step(train_loss(model, batch))
        if job.committed > before:
            log.commit(begun=begun, rank=job.rank, world=job.world, step=job.committed)
        begun = time.time()


def train_with_digests(folder: str, model_name: str) -> None:
    """One rank for benchmarks/kills.py: like `train`, and every 50 steps the digest of the whole state."""
    from benchmarks.model import train_loss
    from benchmarks.steplog import StepLog

    model, job = _job(model_name)
    log = StepLog(Path(folder))
    digests = os.open(Path(folder) / "digests.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    begun: float | None = None
    for batch in job.batches():
        begun = begun or time.time()
        before = job.committed
        job.step(train_loss(model, batch))
        if job.committed > before:
            log.commit(begun=begun, rank=job.rank, world=job.world, step=job.committed)
            if job.committed % 50 == 0:
                entry = {"state": str(job.state_id), "rank": job.rank, "digest": job.digest}
                os.write(digests, (json.dumps(entry) + "\n").encode())
        begun = time.time()


def train_gated(folder: str, model_name: str) -> None:
    """One rank: train block by block."""
    from benchmarks.gate import Gate
    from benchmarks.model import train_loss

    model, job = _job(model_name)
    gate: Gate | None = None
    for batch in job.batches():
        if gate is None:
            gate = Gate(Path(folder), job.rank)
            gate.wait()
        job.step(train_loss(model, batch))
        gate.committed()
        if not gate.wait():
            return
