"""What a storm trains: a small network whose steps take as long as on an accelerator, and digests of its state.

A rank computes on the CPU what the step asks for, some milliseconds, and then waits, for each of its samples as long as an
accelerator would have computed: so eight ranks have room on two cores, and fewer ranks take longer for a batch.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import torch
from torch import nn

from benchmarks.model import SEED, build_dataset, build_optimizer, train_loss
from workers.elastic import Job

PACE_SECONDS = 0.12 / 32
"""Of a sample: 120 ms for the share of one of eight ranks."""

DIGEST_EVERY = 10
"""Steps."""

WIDTHS = (784, 256, 128, 10)


def build_model() -> nn.Sequential:
    """235,146 parameters, the same on every rank."""
    torch.manual_seed(SEED)
    first, second, third, last = WIDTHS
    return nn.Sequential(nn.Linear(first, second), nn.ReLU(), nn.Linear(second, third), nn.ReLU(), nn.Linear(third, last))


class DigestLog:
    """`digests/<pid>.jsonl`: the digest of every tenth state, with its id (EP-18)."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._last: object = None
        path = job.folder / "digests" / f"{os.getpid()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self) -> None:
        """At the first micro-batch of a step nothing has touched the state yet."""
        state = self._job.state_id
        if state.step % DIGEST_EVERY or state == self._last:
            return
        self._last = state
        line: dict[str, Any] = {
            "state": [state.step, state.round, *state.generation, state.lineage],
            "digest": self._job.digest,
            "pid": os.getpid(),
        }
        os.write(self._file, (json.dumps(line) + "\n").encode())


def train() -> None:
    """Until the job is stopped."""
    model = build_model()
    job = Job(model, build_optimizer(model), build_dataset())
    log = DigestLog(job)
    for batch in job.batches():
        log.note()
        loss = train_loss(model, batch)
        time.sleep(PACE_SECONDS * len(batch[0]))
        job.step(loss)


if __name__ == "__main__":
    train()
