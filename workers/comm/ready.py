"""A bucket of DDP's on its way to the exchanging thread and back, in the order of a device's streams.

DDP fills a bucket on the current stream of the thread that calls the hook, and goes on with it on its streams as the future
tells them. The exchanging thread has a stream of its own on each device, which is its current one there. It takes a bucket
only when it is computed, and gives it back when its own stream has nothing more to do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.futures import Future


@dataclass(frozen=True)
class Ready:
    """A bucket whose gradients are ready.

    Attributes:
        gradient: float32, float16 or bfloat16 [n], summed in place.
        parameters: whose gradients lie there, one behind the other.
        reduced: gets `gradient`, or the error.
        computed: on a device, what must have happened there before `gradient` may be read.
    """

    index: int
    last: bool
    gradient: Tensor
    parameters: tuple[Tensor, ...]
    reduced: Future[Tensor | Exception]
    computed: torch.cuda.Event | None

    def is_computed(self, *, wait: bool) -> bool:
        """Whether `gradient` may be read; `wait` until it may."""
        if self.computed is None or self.computed.query():
            return True
        if wait:
            self.computed.synchronize()
        return wait

    def mean_of(self, world: int) -> Tensor:
        """float32 [n]: this rank's part of the mean of `world` ranks; `gradient` itself where that is float32."""
        _own_stream(self.gradient.device)
        values = self.gradient if self.gradient.dtype == torch.float32 else self.gradient.float()
        return values.div_(world)

    def put_back(self, values: Tensor) -> None:
        """Into `gradient`; they may lie on the CPU."""
        if values is not self.gradient:
            self.gradient.copy_(values, non_blocking=True)

    def give(self) -> None:
        """Let DDP have `gradient`."""
        if self.gradient.is_cuda:
            torch.cuda.current_stream(self.gradient.device).synchronize()
        self.reduced.set_result(self.gradient)


def ready(index: int, last: bool, gradient: Tensor, parameters: tuple[Tensor, ...]) -> Ready:
    """Called where DDP calls the hook, on the stream that fills the bucket."""
    if not gradient.is_cuda:
        return Ready(index, last, gradient, parameters, Future(), None)
    computed = torch.cuda.current_stream(gradient.device).record_event()
    return Ready(index, last, gradient, parameters, Future(devices=[gradient.device]), computed)


def on_cpu(values: Tensor) -> Tensor:
    """`values`, float32 [n], in memory of the CPU from which the device copies without waiting; itself if it is there."""
    if not values.is_cuda:
        return values
    found = torch.empty(values.shape, pin_memory=True)
    found.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return found


def _own_stream(device: torch.device) -> None:
    """Make the calling thread's current stream on a CUDA device one that nobody else computes on."""
    if device.type == "cuda" and torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        torch.cuda.set_stream(torch.cuda.Stream(device))
