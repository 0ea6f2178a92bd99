"""Surrogate gradients: a spike that is exactly 0 or 1, with a slope for the backward pass.

After Neftci, Mostafa, Zenke, "Surrogate Gradient Learning in Spiking Neural Networks", 2019. The gradient of a spike
s = [u >= theta] is g h(x) to u and -g h(x) to theta, with x = u - theta; h peaks at 1 for every fixed kind. All of it is
made of differentiable operations, so that it can be differentiated again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

STEEPEST = 50.0
"""Steeper surrogates are so narrow that hardly a membrane is inside: refused unless forced."""


class Surrogate(nn.Module):
    """The backward slope of a spike: subclasses give h, and gradients to parameters of their own if they have any."""

    def values(self) -> tuple[Tensor, ...]:
        """The parameters as the formulas use them, inside their bounds."""
        return ()

    def slope(self, x: Tensor, *values: Tensor) -> Tensor:
        """h(x), of the shape of x, with x = u - theta and `values` as from `values()`."""
        raise NotImplementedError

    def pull_back(self, gradient: Tensor, x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        """The gradient to each of `values`, given the `gradient` to the spikes; both tensors of the shape of x."""
        return ()

    def forward(self, u: Tensor, theta: Tensor) -> Tensor:
        """Spikes of the membranes `u`, in their dtype, exactly 1 where u >= theta and else 0; `theta` broadcasts to u."""
        spikes: Tensor = _Spike.apply(self, u, theta, *self.values())
        return spikes


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, surrogate: Surrogate, u: Tensor, theta: Tensor, *values: Tensor) -> Tensor:
        ctx.surrogate = surrogate
        ctx.save_for_backward(u, theta, *values)
        return (u >= theta).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, theta, *values = ctx.saved_tensors
        x = u - theta
        to_u = gradients[0] * ctx.surrogate.slope(x, *values)
        to_theta = -to_u.sum_to_size(theta.shape) if ctx.needs_input_grad[2] else None
        to_values = (
            ctx.surrogate.pull_back(gradients[0], x, *values) if any(ctx.needs_input_grad[3:]) else [None] * len(values)
        )
        return None, to_u, to_theta, *to_values


class FastSigmoid(Surrogate):
    """h(x) = 1 / (1 + k |x|)^2 (Zenke, Ganguli, "SuperSpike", 2018); `k` of 25 to 40 is usual."""

    def __init__(self, k: float = 25.0, *, force: bool = False) -> None:
        super().__init__()
        self.k = checked_slope(k, force)

    def slope(self, x: Tensor, *values: Tensor) -> Tensor:
        return (x.abs() * self.k + 1).pow(-2)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class ArcTangent(Surrogate):
    """h(x) = 1 / (1 + (pi k x / 2)^2) (Fang et al., "Incorporating Learnable Membrane Time Constant", 2021)."""

    def __init__(self, k: float = 25.0, *, force: bool = False) -> None:
        super().__init__()
        self.k = checked_slope(k, force)

    def slope(self, x: Tensor, *values: Tensor) -> Tensor:
        return ((x * (math.pi * self.k / 2)).square() + 1).reciprocal()

    def extra_repr(self) -> str:
        return f"k={self.k}"


class Rectangular(Surrogate):
    """h(x) = 1 where |x| < w / 2, else 0; `w` of 0.1 to 0.5 is usual (Wu et al., "STBP", 2018)."""

    def __init__(self, w: float = 0.5, *, force: bool = False) -> None:
        super().__init__()
        if not w > 0:
            raise ValueError(f"the width of a rectangular surrogate must be above 0, not {w}")
        self.w = 1 / checked_slope(1 / w, force)

    def slope(self, x: Tensor, *values: Tensor) -> Tensor:
        return (x.abs() < self.w / 2).to(x.dtype)

    def extra_repr(self) -> str:
        return f"w={self.w}"


class Triangular(Surrogate):
    """h(x) = max(0, 1 - k |x|) (Esser et al., "Convolutional networks for fast, energy-efficient computing", 2016)."""

    def __init__(self, k: float = 50.0, *, force: bool = False) -> None:
        super().__init__()
        self.k = checked_slope(k, force)

    def slope(self, x: Tensor, *values: Tensor) -> Tensor:
        return (1 - x.abs() * self.k).clamp_min(0)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class Learnable(Surrogate):
    """h(x) = S'(x) of S(x) = a sigmoid(k (x + o)), with learnable k in 1..50, o in -0.5..0.5, and a; at first a = 4 / k.

    The gradients to k, o and a are those of S.
    """

    K_BOUNDS = (1.0, STEEPEST)
    O_BOUNDS = (-0.5, 0.5)

    def __init__(self, k: float = 25.0, o: float = 0.0, a: float | None = None) -> None:
        super().__init__()
        if not self.K_BOUNDS[0] <= k <= self.K_BOUNDS[1] or not self.O_BOUNDS[0] <= o <= self.O_BOUNDS[1]:
            raise ValueError(f"a learnable surrogate starts with k in 1..50 and o in -0.5..0.5, not k = {k}, o = {o}")
        self.k = nn.Parameter(torch.tensor(float(k)))
        self.o = nn.Parameter(torch.tensor(float(o)))
        self.a = nn.Parameter(torch.tensor(4.0 / k if a is None else float(a)))

    def values(self) -> tuple[Tensor, ...]:
        """k, o and a."""
        return bounded(self.k, *self.K_BOUNDS), bounded(self.o, *self.O_BOUNDS), self.a

    def slope(self, x: Tensor, *values: Tensor) -> Tensor:
        k, o, a = values
        s = torch.sigmoid(k * (x + o))
        return (a * k) * (s * (1 - s))

    def pull_back(self, gradient: Tensor, x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        k, o, a = values
        s = torch.sigmoid(k * (x + o))
        curve = gradient * (s * (1 - s))
        to_k, to_o, to_a = a * (curve * (x + o)).sum(), (a * k) * curve.sum(), (gradient * s).sum()
        return to_k, to_o, to_a

    def regularizer(self) -> Tensor:
        """1 / (|k| + 1e-6), to be added to the loss with weight 0.01: it pulls k upwards."""
        return 1 / (self.values()[0].abs() + 1e-6)


KINDS: dict[str, type[Surrogate]] = {
    "fast_sigmoid": FastSigmoid,
    "atan": ArcTangent,
    "rectangular": Rectangular,
    "triangular": Triangular,
    "learnable": Learnable,
}


def make_surrogate(kind: str, **settings: Any) -> Surrogate:
    """The surrogate `kind` with its `settings` (`k`, `w`, `force`, ...).

    Raises:
        ValueError: there is no such kind, or a slope above 50 is not forced.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no surrogate gradient {kind!r}; write one of {', '.join(KINDS)}")
    return KINDS[kind](**settings)


def checked_slope(k: float, force: bool) -> float:
    """`k`, unless it is not positive or above 50 without `force`: then ValueError."""
    if not k > 0:
        raise ValueError(f"the slope of a surrogate must be above 0, not {k:g}")
    if k > STEEPEST and not force:
        raise ValueError(f"a surrogate with slope {k:g} passes hardly any gradient: use at most 50, or force=True")
    return k


def surrogate_regularizer(model: nn.Module) -> Tensor:
    """The sum of `regularizer()` over the learnable surrogates in `model`; 0 without any (QS-10, weight 0.01)."""
    terms = [module.regularizer() for module in model.modules() if isinstance(module, Learnable)]
    return torch.stack(terms).sum() if terms else torch.zeros(())


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(value <= low, value >= high)
        return torch.minimum(torch.maximum(value, low), high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        at_low, at_high = ctx.saved_tensors
        outwards = (at_low & (gradients[0] > 0)) | (at_high & (gradients[0] < 0))
        return gradients[0].masked_fill(outwards, 0), None, None


def bounded(value: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """`value` clamped to `low`..`high`. At a bound only the gradient that would leave it is stopped.

    An ordinary clamp passes no gradient outside, so a parameter that a step has carried there could never return.
    """
    limits = (torch.as_tensor(limit, dtype=value.dtype, device=value.device).detach() for limit in (low, high))
    result: Tensor = _Bounded.apply(value, *limits)
    return result
