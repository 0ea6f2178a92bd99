"""What a step changes of the model's buffers, averaged over ranks like gradients (EP-4).

The forward pass writes into buffers such as running means. That is undone at the end of a step; what is committed is the
mean of the changes, weighted by samples, on top of what was there before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class BufferChanges:
    """Of `buffers`, of any dtype and device."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._buffers = buffers
        self._saved: list[Tensor] = []

    @property
    def elements(self) -> int:
        """Of all buffers."""
        return sum(buffer.numel() for buffer in self._buffers)

    @property
    def before(self) -> dict[int, Tensor]:
        """What was saved, by the id of the buffer."""
        return {id(buffer): saved for buffer, saved in zip(self._buffers, self._saved, strict=True)}

    def save(self) -> None:
        """Remember what there is now."""
        self._saved = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo what has changed since `save`."""
        for buffer, saved in zip(self._buffers, self._saved, strict=True):
            buffer.copy_(saved)

    def write(self, changes: Tensor, weight: float) -> None:
        """What has changed since `save`, times `weight`, into `changes`, float32 [elements]; zeros where that is 0."""
        position = 0
        for buffer, saved in zip(self._buffers, self._saved, strict=True):
            part = changes[position : position + buffer.numel()]
            if weight:
                changed = buffer != saved  # infinite ones that stayed as they were must not become NaN
                delta = torch.where(changed, buffer.double() - saved.double(), 0.0)
                part.copy_(delta.reshape(-1)).mul_(weight)
            else:
                part.zero_()
            position += buffer.numel()

    @torch.no_grad()
    def apply(self, changes: Tensor) -> None:
        """The sum of what all ranks have written, float32 [elements], on top of what was saved."""
        position = 0
        for buffer, saved in zip(self._buffers, self._saved, strict=True):
            delta = changes[position : position + buffer.numel()].view(buffer.shape).to(buffer.device)
            position += buffer.numel()
            if buffer.dtype.is_floating_point:
                buffer.copy_(saved + delta.to(buffer.dtype))
            elif buffer.dtype == torch.bool:
                buffer.copy_((saved.float() + delta).round())
            else:
                buffer.copy_(saved + delta.round().to(buffer.dtype))
