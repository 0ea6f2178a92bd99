"""A script of torchrun that says what it has sent to other hosts: a model of half a million parameters, 60 steps."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import workers.comm

dist.init_process_group("gloo")
model = DistributedDataParallel(nn.Sequential(nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 500)))
state = workers.comm.CommState(policy="fixed", codec="none")
model.register_comm_hook(state, workers.comm.hook)
for _ in range(60):
    model(torch.randn(4, 500)).square().mean().backward()
print("sent", state.bytes_sent, flush=True)
dist.destroy_process_group()
