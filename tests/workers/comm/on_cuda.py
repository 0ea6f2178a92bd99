"""What ranks with CUDA devices do. With fewer devices than ranks some share one, and then NCCL is not used."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.workers.comm.ranks import hooked
from tests.workers.comm.scenarios import Outcome, train

ELEMENTS = 1 << 22
CYCLES = 20_000_000
"""For so many the device does nothing before a gradient: milliseconds, in which the CPU is far ahead."""


def own_device() -> torch.device:
    device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def train_each(all_options: list[dict[str, Any] | None], mode: str) -> list[Outcome]:
    device = own_device()
    return [train(options, 20, mode, device, device_ids=[device], bucket_cap_mb=0.01) for options in all_options]


class _Late(torch.autograd.Function):
    """Its backward makes the device wait, and not the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        torch.cuda._sleep(CYCLES)
        return gradients[0]


class _Flat(nn.Module):
    """Four parameters whose gradients are `step + 1 + rank`, each of them late."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.zeros(ELEMENTS)) for _ in range(4)])

    def forward(self, gradient: Tensor) -> Tensor:
        return torch.stack([(_Late.apply(part) * gradient).sum() for part in self.parts]).sum()


class Streams(NamedTuple):
    wrong: int
    elements: int
    on_device: bool


def gradients_are_late(codec: str) -> Streams:
    """How many elements of the gradients were not the mean of all ranks when the step read them, without waiting."""
    device, world = own_device(), dist.get_world_size()
    side = torch.cuda.Stream(device)
    options = {"policy": "fixed", "codec": codec}
    with torch.cuda.stream(side):
        model = _Flat().to(device)
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        with hooked(model, options, device_ids=[device], bucket_cap_mb=8) as (wrapped, state):
            for step in range(6):
                wrapped.zero_grad()
                wrapped(torch.full((ELEMENTS,), float(step + 1 + dist.get_rank()), device=device)).backward()
                mean = step + 1 + (world - 1) / 2
                for part in model.parts:
                    assert part.grad is not None
                    wrong += ((part.grad - mean).abs() > 0.01 * mean).sum()
            on_device = state._neighbours.on_device is not None
    side.synchronize()
    return Streams(int(wrong), 6 * 4 * ELEMENTS, on_device)


def train_alone(codec: str) -> list[float]:
    """Losses of a rank by itself, with the hook and without."""
    device = own_device()
    options = {"policy": "fixed", "codec": codec}
    return [train(each, 20, "", device, device_ids=[device]).loss for each in (options, None)]
