"""A script for the tests with all that makes a model awkward to replicate; each rank writes down its digest at the end."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from workers.elastic import Job

SAMPLES, FEATURES, HIDDEN = 512, 16, 32
PACE_SECONDS = 0.005

torch.manual_seed(23)


class Points(Dataset[tuple[Tensor, Tensor]]):
    """Read one by one, in DataLoader workers."""

    def __init__(self) -> None:
        self.features = torch.randn(SAMPLES, FEATURES)
        self.labels = (self.features @ torch.randn(FEATURES, FEATURES)).argmax(dim=1)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.features[index], self.labels[index]


class Awkward(nn.Module):
    """Tied weights, a parameter that no loss depends on, BatchNorm, Dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(FEATURES, HIDDEN, bias=False)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.drop = nn.Dropout(0.1)
        self.middle = nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, FEATURES)
        self.again = nn.Linear(HIDDEN, HIDDEN)
        self.again.weight = self.middle.weight
        self.unused = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.norm(self.into(x))))
        return self.out(torch.relu(self.again(torch.relu(self.middle(x)))))


model = Awkward()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=20)
job = Job(model, optimizer, Points(), scheduler=scheduler, scaler=scaler, num_workers=2, clip_norm=5.0)

for inputs, targets in job.batches():
    time.sleep(PACE_SECONDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(model(inputs), targets)
    job.step(loss)

digests = job.folder / "digests"
digests.mkdir(exist_ok=True)
(digests / str(job.rank)).write_text(job.digest)
RESULT = {"unused_moved": "unused" in {n for n, p in model.named_parameters() if p in optimizer.state}}
