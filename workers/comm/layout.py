"""What DDP's buckets hold, by names that outlive a layout of buckets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Size, Tensor, nn

from workers.collectives.buckets import BucketPlan, Slot

Layout = tuple[tuple[Tensor, ...], ...]
"""The parameters of each bucket, in the order of their gradients there."""


def plan_of(buckets: Sequence[Sequence[tuple[str, Size]]]) -> BucketPlan:
    """The plan of buckets whose parameters, name and shape, lie one behind the other."""
    slots, sizes = [], []
    for index, bucket in enumerate(buckets):
        start = 0
        for name, shape in bucket:
            slots.append(Slot(name, index, start, shape.numel(), shape))
            start += shape.numel()
        sizes.append(start)
    return BucketPlan(tuple(slots), tuple(sizes), tail=0)


def same(bucket: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether they hold the same parameters in the same order."""
    return len(bucket) == len(other) and all(a is b for a, b in zip(bucket, other, strict=True))


class Names:
    """Of parameters: those that `model` has for them, or their places in DDP's first layout, which is made of the model
    alone: its last bucket begins with the model's first parameter.

    DDP orders its buckets anew after the first iteration, as gradients came.
    """

    def __init__(self, model: nn.Module | None) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        named: Iterable[tuple[str, Tensor]] = () if model is None else model.named_parameters()
        self._by_id = {id(parameter): (name, parameter) for name, parameter in named}  # an id lives as long as its object
        self._given = model is not None

    def plan(self, layout: Layout) -> BucketPlan:
        """Of a layout; the first one that is given is DDP's first. Raises ValueError where it is of another model."""
        if not self._by_id:
            ordered = [parameter for bucket in reversed(layout) for parameter in bucket]
            self._by_id = {id(parameter): (str(place), parameter) for place, parameter in enumerate(ordered)}
        return plan_of([[(self._name(parameter), parameter.shape) for parameter in bucket] for bucket in layout])

    def _name(self, parameter: Tensor) -> str:
        known = self._by_id.get(id(parameter))
        if known is None:
            raise ValueError(
                f"the gradient of a parameter of shape {list(parameter.shape)} came that is not of this CommState's model: "
                + ("give CommState the model that DDP wraps" if self._given else "make one CommState for each DDP model")
            )
        return known[0]
