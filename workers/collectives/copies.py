"""Gradients on their way from CUDA devices into pinned staging: started in backward, there before they are exchanged."""

from __future__ import annotations

import torch
from torch import Tensor


class Copies:
    """Of one step, by bucket. A gradient on the CPU is copied at once."""

    def __init__(self) -> None:
        self._underway: dict[int, list[torch.cuda.Event]] = {}

    def start(self, bucket: int, staged: Tensor, gradient: Tensor) -> None:
        """Copy `gradient` into `staged`, pinned, of the same shape, in the order of the calling thread's current stream."""
        staged.copy_(gradient, non_blocking=True)
        if gradient.is_cuda:
            event = torch.cuda.current_stream(gradient.device).record_event()
            self._underway.setdefault(bucket, []).append(event)

    def landed(self, bucket: int) -> bool:
        """Whether all that was started for the bucket is there."""
        return all(event.query() for event in self._underway.get(bucket, ()))

    def wait(self, bucket: int) -> None:
        """Return when it is."""
        for event in self._underway.pop(bucket, ()):
            event.synchronize()

    def forget(self) -> None:
        """Another step begins, or this one is given up: what is underway lands in memory that nobody reads."""
        self._underway.clear()
