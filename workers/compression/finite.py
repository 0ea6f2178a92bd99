"""Nothing that is not finite is encoded: one NaN would spread over its block, and stay in the residual for ever (CC-15)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class NonFiniteError(ArithmeticError):
    """A gradient holds NaN or Inf, so the step has to be discarded. `name` is its parameter."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"the gradient of {name} holds {what}; the step is discarded")
        self.name = name


def is_finite(tensor: Tensor) -> bool:
    """True where no element is NaN or Inf.

    A sum with NaN or Inf in it is never finite, and costs a quarter of a look at every element; that look is needed
    only when the sum is not finite, as finite numbers may overflow too.
    """
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def refuse_non_finite(name: str, tensor: Tensor) -> None:
    """Raise NonFiniteError, which names the parameter `name`, where `tensor` holds NaN or Inf."""
    if not is_finite(tensor):
        raise NonFiniteError(name, "NaN" if bool(tensor.isnan().any()) else "Inf")
