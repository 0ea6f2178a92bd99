"""float32 tensors by parameter name that change only with a step that commits (CC-11)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""What is kept for each parameter, flat; a parameter of which nothing is kept may be absent, and counts as zeros."""


class Ledger:
    """For each parameter a flat float32 tensor of its number of elements, zero until something is committed.

    Changes of a step are pending: `commit` makes all of them real, `discard` forgets them. A change may be of a part of a
    parameter, since the shards of a bucket end anywhere.

    Args:
        sizes: elements of each parameter, by name.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self._committed: dict[str, Tensor] = {}
        self._pending: dict[tuple[str, int], Tensor] = {}
        self._spare: dict[tuple[str, int], Tensor] = {}

    def get(self, name: str, start: int, count: int) -> Tensor | None:
        """What was committed for elements `start` on of parameter `name`, float32 [count]; None for zeros."""
        self._check(name, start, count)
        kept = self._committed.get(name)
        return None if kept is None else kept[start : start + count]

    def draft(self, name: str, start: int, count: int) -> Tensor:
        """float32 [count], to be filled: what elements `start` on of `name` become with the commit of this step."""
        self._check(name, start, count)
        tensor = self._spare.pop((name, start), None)
        if tensor is None or tensor.numel() != count:
            tensor = torch.empty(count)
        self._pending[name, start] = tensor
        return tensor

    def clear(self, name: str, start: int, count: int) -> None:
        """Elements `start` on of `name` become zeros with the commit of this step."""
        if count and self.get(name, start, count) is not None:
            self.draft(name, start, count).zero_()

    def pending(self, name: str, start: int) -> Tensor:
        """The draft of this step that begins at element `start` of `name`."""
        return self._pending[name, start]

    def drafts(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """All of this step of `name`, with their first elements."""
        return ((start, tensor) for (each, start), tensor in self._pending.items() if each == name)

    def commit(self, scale: float = 1.0) -> None:
        """Make the pending changes real; what is not changed is multiplied by `scale`."""
        if scale != 1.0:
            for name, tensor in self._committed.items():
                if len(self._pending.get((name, 0), ())) != len(tensor):
                    tensor.mul_(scale)
        for (name, start), tensor in self._pending.items():
            whole = tensor.numel() == self.sizes[name]
            kept = self._committed.get(name)
            if whole:
                self._committed[name] = tensor
            else:
                if kept is None:
                    kept = self._committed[name] = torch.zeros(self.sizes[name])
                kept[start : start + tensor.numel()] = tensor
            spare = kept if whole else tensor
            if spare is not None:
                self._spare[name, start] = spare
        self._pending.clear()

    def discard(self) -> None:
        """Forget the pending changes."""
        self._pending.clear()

    def add(self, state: State) -> None:
        """Add `state`, tensors of any shape, to what is committed.

        Raises:
            ValueError: it is of another model.
        """
        for name, tensor in self._checked(state):
            kept = self._committed.get(name)
            self._committed[name] = tensor.clone() if kept is None else kept.add_(tensor)

    def norm(self) -> float:
        """The L2 norm of all that is committed."""
        return math.sqrt(sum(float(torch.dot(tensor, tensor)) for tensor in self._committed.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of what is committed; no word of buckets or ranks in it."""
        return {name: tensor.clone() for name, tensor in self._committed.items()}

    def load_state_dict(self, state: State) -> None:
        """Put `state` in the place of all that is committed, and forget what is pending.

        Raises:
            ValueError: it is of another model; nothing has changed.
        """
        loaded = {name: tensor.clone() for name, tensor in self._checked(state)}
        self._committed, self._spare = loaded, {}
        self.discard()

    def _checked(self, state: State) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in state.items():
            if name not in self.sizes:
                raise ValueError(f"the state has a residual of {name}, and the model no such parameter")
            if tensor.numel() != self.sizes[name] or tensor.dtype != torch.float32:
                raise ValueError(
                    f"the residual of {name} in the state is {tensor.dtype} of {tensor.numel()} elements, and not float32 "
                    f"of {self.sizes[name]}"
                )
        return ((name, tensor.detach().reshape(-1)) for name, tensor in state.items())

    def _check(self, name: str, start: int, count: int) -> None:
        if not 0 <= start <= start + count <= self.sizes[name]:
            raise IndexError(f"{name} has {self.sizes[name]} elements, not {start} to {start + count}")
