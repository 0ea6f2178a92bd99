"""A copy of a model with some of its modules replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn


def replaced(model: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A deep copy of `model` in which each module that `make` answers for is what it gives; the root may be one.

    `make` sees a module before those inside it, and once; None leaves it in place, to be looked into. What was shared
    stays shared.
    """
    done: dict[nn.Module, nn.Module] = {}

    def inside(module: nn.Module) -> nn.Module:
        if module not in done:
            made = make(module)
            done[module] = module if made is None else made
            if made is None:
                for name, child in module._modules.items():
                    if child is not None:
                        module._modules[name] = inside(child)
        return done[module]

    return inside(copy.deepcopy(model))
