"""What a rank owes for each of its buckets (CC-10 to CC-12).

Inside, residuals lie as the buckets do; what comes out and goes in is by parameter name, so it outlives buckets and
members.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.collectives.buckets import BucketPlan
from workers.compression.codec import Codec
from workers.compression.finite import NonFiniteError, is_finite
from workers.compression.memory import ErrorFeedback
from workers.compression.momentum import MomentumCorrection

SPARSE = frozenset({"topk", "threshold"})
"""Codecs that may go by momentum correction (CC-13)."""


class Encoded(NamedTuple):
    """Elements `start` on of a bucket, float32 [n]: what was to be sent of them, and what came out."""

    start: int
    compensated: Tensor
    decoded: Tensor

    @property
    def stop(self) -> int:
        return self.start + self.compensated.numel()


class BucketMemory:
    """Error feedback on both sides of the exchange: for what this rank sends, and for the sums of the pieces it owns.

    Both count what is still owed to the sum over all ranks. `begin_generation` moves the second one into the first, since
    pieces are cut anew; a rank adds all it owes to its own gradient, wherever in the bucket that is, and afterwards owes
    only what its own encoding left out.

    Args:
        plan: of the buckets; of the last one the tail is left out.
        follow_learning_rate: as in `ErrorFeedback`.
        momentum: of `MomentumCorrection`, by which codecs that send few entries go; 0 for none.
    """

    def __init__(self, plan: BucketPlan, *, follow_learning_rate: bool = False, momentum: float = 0.0) -> None:
        self._plan = plan
        sizes = {str(i): size for i, size in enumerate(plan.gradient_sizes)}
        self._sender = ErrorFeedback(sizes, follow_learning_rate=follow_learning_rate)
        self._owner = ErrorFeedback(sizes, follow_learning_rate=follow_learning_rate)
        self._momentum = MomentumCorrection(sizes, momentum) if momentum else None
        self._elsewhere = [False] * len(sizes)
        """Of each bucket: whether something is owed outside of the shard that the last step settled."""

    def begin_generation(self) -> None:
        """Shards and pieces may be others from now on."""
        self._sender.absorb(self._owner.state_dict())
        self._owner.load_state_dict({})
        if self._momentum is not None:
            self._sender.absorb(self._momentum.owed())
            self._momentum.load_state_dict({})
        self._elsewhere = [True] * len(self._elsewhere)

    def set_learning_rate(self, rate: float) -> None:
        self._sender.set_learning_rate(rate)
        self._owner.set_learning_rate(rate)

    def compensate(self, bucket: int, gradient: Tensor, *, apart: slice | None = None) -> None:
        """Add to `gradient`, float32 [n], the whole bucket, on any device, what is owed to it, in place.

        Args:
            apart: elements to which nothing is added: `compensate_shard` does that when the host has summed them. It is the
                shard that `settle_held` gets, so as a rule nothing is owed outside of it.

        Raises:
            NonFiniteError: the sum holds NaN or Inf; it names the parameter.
        """
        if apart is None:
            self._sender.add_to(str(bucket), gradient)
        elif self._elsewhere[bucket]:
            for start, stop in self._outside(bucket, apart):
                self._sender.add_to(str(bucket), gradient[start:stop], start=start)
        if not is_finite(gradient):
            raise self._named(bucket, gradient)

    def compensate_shard(self, bucket: int, start: int, shard: Tensor) -> None:
        """Add to `shard`, the host's sum of elements `start` on, what this rank owes to them, in place."""
        self._sender.add_to(str(bucket), shard, start=start)

    def accelerate(self, bucket: int, start: int, shard: Tensor, codec: Codec) -> None:
        """Make of `shard`, elements `start` on of what is to be encoded, the sum of a host or of a group, in place, what
        momentum correction sends, where the codec goes by it."""
        if self._momentum is not None and codec.name in SPARSE:
            self._momentum.compensate(str(bucket), shard, start=start, out=shard)

    def settle_held(self, bucket: int, held: Sequence[Encoded], codec: Codec) -> None:
        """All that this rank has encoded, in order: what did not come out is owed, once the step commits. Elsewhere in the
        bucket nothing is owed any more: all of that went into the sum of its host, or of its group."""
        if self._momentum is not None and codec.name in SPARSE:
            for part in held:
                self._momentum.settle(str(bucket), part.compensated, part.decoded, start=part.start)
            self.settle_all(bucket)
            return
        if self._elsewhere[bucket]:
            edges = [0, *(edge for part in held for edge in (part.start, part.stop)), self._sender.size(str(bucket))]
            for start, stop in zip(edges[::2], edges[1::2], strict=True):
                self._sender.clear(str(bucket), start, stop - start)
        for part in held:
            self._sender.settle(str(bucket), part.compensated, part.decoded, start=part.start)

    def draft(self, bucket: int) -> Tensor:
        """float32 [n], the whole bucket, to be filled: what is owed to it, once the step commits."""
        return self._sender.draft(str(bucket))

    def settle_all(self, bucket: int) -> None:
        """All of the bucket is sent exactly: nothing is owed to it any more, once the step commits."""
        self._sender.clear(str(bucket), 0, self._sender.size(str(bucket)))

    def compensate_sum(self, bucket: int, start: int, total: Tensor) -> None:
        """Add to `total`, the sum of a piece that begins at element `start`, what its owner owes, in place."""
        self._owner.compensate(str(bucket), total, start=start, out=total)

    def settle_sum(self, bucket: int, start: int, compensated: Tensor, decoded: Tensor) -> None:
        self._owner.settle(str(bucket), compensated, decoded, start=start)

    @property
    def is_linear(self) -> bool:
        """What is owed is what was left out, as it is without momentum correction."""
        return self._momentum is None

    def changes(self, bucket: int) -> Iterator[tuple[int, Tensor | None, Tensor]]:
        """As of `ErrorFeedback`, on both sides of the exchange."""
        yield from self._sender.changes(str(bucket))
        yield from self._owner.changes(str(bucket))

    def commit(self) -> None:
        """The step is committed. Every bucket was settled."""
        for memory in self._memories:
            memory.commit()
        self._elsewhere = [False] * len(self._elsewhere)

    def discard(self) -> None:
        for memory in self._memories:
            memory.discard()

    @property
    def norm(self) -> float:
        """L2 norm of all that is owed, as if nothing of it overlapped: lost if this rank is killed now."""
        return float(sum(memory.norm() ** 2 for memory in self._memories) ** 0.5)

    def state_dict(self) -> dict[str, Tensor]:
        """What is owed, float32 of each parameter's shape, by name; parameters to which nothing is owed may be absent."""
        owed: dict[str, Tensor] = {}
        sides = [self._sender.state_dict(), self._owner.state_dict()]
        if self._momentum is not None:
            sides.append(self._momentum.owed())
        for buckets in sides:
            for slot in self._plan.slots:
                whole = buckets.get(str(slot.bucket))
                if whole is not None:
                    part = whole[slot.start : slot.start + slot.numel].view(slot.shape)
                    owed[slot.name] = owed[slot.name] + part if slot.name in owed else part.clone()
        return owed

    def absorb(self, state: Mapping[str, Tensor]) -> None:
        """Owe this too: a leaver's `state_dict`. Raises ValueError where it is of another model; nothing has changed."""
        buckets = {str(i): torch.zeros(size) for i, size in enumerate(self._plan.gradient_sizes)}
        slots = {slot.name: slot for slot in self._plan.slots}
        for name, tensor in state.items():
            slot = slots.get(name)
            if slot is None or slot.shape != tensor.shape:
                raise ValueError(f"the residual of {name}, {list(tensor.shape)}, fits no parameter of the model")
            buckets[str(slot.bucket)][slot.start : slot.start + slot.numel] = tensor.reshape(-1)
        self._sender.absorb(buckets)
        self._elsewhere = [True] * len(self._elsewhere)

    def forget(self) -> None:
        """Owe nothing any more: the state was taken over from a peer (EP-6)."""
        for memory in self._memories:
            memory.load_state_dict({})

    @property
    def _memories(self) -> list[ErrorFeedback | MomentumCorrection]:
        own: list[ErrorFeedback | MomentumCorrection] = [self._sender, self._owner]
        return own if self._momentum is None else [*own, self._momentum]

    def _outside(self, bucket: int, shard: slice) -> tuple[tuple[int, int], ...]:
        """Starts and stops of the elements that are not in the shard."""
        return (0, shard.start), (shard.stop, self._sender.size(str(bucket)))

    def _named(self, bucket: int, gradient: Tensor) -> NonFiniteError:
        for slot in self._plan.slots:
            part = gradient[slot.start : slot.start + slot.numel]
            if slot.bucket == bucket and not bool(torch.isfinite(part).all()):
                return NonFiniteError(slot.name, "NaN" if bool(part.isnan().any()) else "Inf")
        return NonFiniteError(f"bucket {bucket}", "NaN or Inf")
