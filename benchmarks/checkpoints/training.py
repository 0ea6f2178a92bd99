"""What is saved: a transformer that trains."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import AdamW

from workers.models.transformer import ByteTransformer, next_token_loss
from workers.state import ReplicatedState


class Training:
    """A transformer of about 38 million parameters, and AdamW."""

    def __init__(self, width: int, depth: int) -> None:
        torch.manual_seed(0)
        self.model = ByteTransformer(context=64, width=width, depth=depth, heads=8)
        self.optimizer = AdamW(self.model.parameters(), lr=3e-4)
        self.state = ReplicatedState(self.model, self.optimizer)
        self._draws = torch.Generator().manual_seed(1)
        self.steps = 0

    def go_on(self, steps: int) -> None:
        """On words that are drawn; what is learned does not matter here."""
        for _ in range(steps):
            words = torch.randint(97, 123, (8, 65), generator=self._draws)
            self.optimizer.zero_grad()
            next_token_loss(self.model(words[:, :-1]), words[:, 1:]).backward()
            self.optimizer.step()
            self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """As users of torch save it."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def flat(self) -> dict[str, torch.Tensor]:
        """The same tensors in one dictionary."""
        moments = enumerate(self.optimizer.state.values())
        entries = {f"optimizer.{index}.{key}": each for index, of in moments for key, each in of.items()}
        return {**{f"model.{name}": each for name, each in self.model.state_dict().items()}, **entries}

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.flat().values())
