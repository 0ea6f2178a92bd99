"""What the hosts train: a step takes as long as on an accelerator, and longer on a host that a file names."""

from __future__ import annotations

import time

from benchmarks.model import build_dataset, build_optimizer
from benchmarks.storm.program import build_model
from workers.elastic import Job

PACE_SECONDS = 0.2
"""Of a host's share of a step, as if an accelerator computed it."""

SLOWER = "{host}.slower"
"""In the job's folder: how many times as long this host takes."""


def train() -> None:
    """Until the job is stopped."""
    from torch.nn.functional import cross_entropy

    model = build_model()
    job = Job(model, build_optimizer(model), build_dataset())
    mine = job.folder / SLOWER.format(host=getattr(job._rank, "host", ""))
    for images, labels in job.batches():
        begun = time.monotonic()
        loss = cross_entropy(model(images), labels)
        times = float(mine.read_text() or 1) if mine.exists() else 1.0
        time.sleep(max(0.0, begun + PACE_SECONDS * times - time.monotonic()))
        job.step(loss)


if __name__ == "__main__":
    train()
