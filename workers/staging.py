"""Memory into which states are copied that are to be saved (CK-3): that of the last one, once it lies on disk.

A copy into pages that are there already takes a fraction of the time of one into new ones, and training waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch


class Staging:
    """Lends memory by the name of a tensor. Holds as much as one state, from the first copy on; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lent: dict[str, torch.Tensor] = {}
        self._free: dict[str, torch.Tensor] = {}

    def copy(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of `tensor` on the CPU, contiguous."""
        with self._lock:
            there = self._free.pop(name, None)
            if there is None or (there.shape, there.dtype) != (tensor.shape, tensor.dtype):
                there = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._lent[name] = there
        return there.copy_(tensor.detach())

    def take_back(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Nobody uses them any more. Those that were not lent, or not by the last copy of that name, are left alone."""
        with self._lock:
            for name, tensor in tensors.items():
                if self._lent.get(name) is tensor:
                    self._free[name] = self._lent.pop(name)
