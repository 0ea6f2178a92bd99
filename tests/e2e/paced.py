"""A script for the tests: trains a little at an even pace for as long as it is let, and is the same on any ranks."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from workers.elastic import Job
from workers.randomness import SampleDropout

SAMPLES, FEATURES, CLASSES = 960, 16, 4
PACE_SECONDS = 0.02

torch.manual_seed(11)
features = torch.randn(SAMPLES, FEATURES)
labels = (features @ torch.randn(FEATURES, CLASSES)).argmax(dim=1)

model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), SampleDropout(0.1), nn.Linear(64, CLASSES))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=40, gamma=0.97)
job = Job(model, optimizer, TensorDataset(features, labels), scheduler=scheduler)

for inputs, targets in job.batches():
    time.sleep(PACE_SECONDS)
    job.step(cross_entropy(model(inputs), targets))
