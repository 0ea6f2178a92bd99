"""The gradient of an inner step, summed over the ranks of a host in the memory that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from workers.collectives.buckets import BucketPlan, Row
from workers.collectives.shared import HostExchange


class HostGradient:
    """Of `parameters`, in the order of the plan."""

    def __init__(self, plan: BucketPlan, parameters: Sequence[nn.Parameter]) -> None:
        self._row, self._parameters = Row(plan), parameters
        self._gradients = [bucket[:size] for bucket, size in zip(self._row.buckets, plan.gradient_sizes, strict=True)]

    @torch.no_grad()
    def sum(self, host: HostExchange, stop: Callable[[], bool]) -> None:
        """Put the sum over the host in the place of each gradient; None stays where no rank has one.

        Raises:
            Abandoned, ExchangeError: from the exchange.
        """
        has = torch.tensor([float(parameter.grad is not None) for parameter in self._parameters])
        for parameter, view in zip(self._parameters, self._row.views, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad)
        pending = [host.all_reduce(values) for values in (*self._gradients, has) if len(values)]
        for each in pending:
            each.wait(stop)
        for parameter, view, ranks in zip(self._parameters, self._row.views, has.tolist(), strict=True):
            parameter.grad = view.to(parameter.device, parameter.dtype) if ranks else None
