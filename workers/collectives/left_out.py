"""What becomes of what a codec leaves out of a sum between hosts (CC-10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from workers.compression.bucketed import Encoded
from workers.compression.codec import Codec
from workers.compression.finite import NonFiniteError, is_finite
from workers.compression.gradients import GradientCompression
from workers.errors import TaskError

OVERFLOW = (
    "the sum of the ranks' gradients overflows float32, although each of them is finite: lower the learning rate, or write "
    "clip_norm: 1.0"
)


class LeftOut(Protocol):
    """Of one vector, float32 [n], on its way. Tensors are float32, and `start` is where in the vector they begin."""

    is_thin: bool
    """It is P or Q, which may go from everybody to everybody."""

    bucket: str
    """Of codecs that remember what they have sent: by which name."""

    def compensate_shard(self, start: int, shard: Tensor) -> None:
        """Add to the host's sum of a shard what this rank owes to it, in place."""

    def begin(self, start: int, values: Tensor, codec: Codec) -> None:
        """`values`, of the sum that this rank has, are about to be encoded; may be changed in place."""

    def of_held(self, held: Sequence[Encoded], codec: Codec) -> None:
        """All that this rank had has gone to the owners of the pieces."""

    def compensate_sum(self, start: int, total: Tensor) -> None:
        """Add to the sum of a piece what its owner, this rank, owes, in place. Raises TaskError where it overflows."""

    def of_sum(self, start: int, exact: Tensor, decoded: Tensor) -> None:
        """The sum of a piece came out as `decoded`."""

    def known(self) -> None:
        """All of the above is done."""

    def nothing(self) -> None:
        """The vector is summed as it is; nothing of the above is called."""

    def encoded_in(self, elements: int, seconds: float) -> None: ...

    def decoded_in(self, elements: int, seconds: float) -> None: ...


class Owed:
    """It is owed to the bucket that the vector is."""

    is_thin = False

    def __init__(self, compression: GradientCompression, bucket: int) -> None:
        self._compression, self._memory, self._index = compression, compression.memory, bucket
        self.bucket = str(bucket)

    def compensate_shard(self, start: int, shard: Tensor) -> None:
        if self._compression.alters(self._index):
            self._memory.compensate_shard(self._index, start, shard)

    def begin(self, start: int, values: Tensor, codec: Codec) -> None:
        self._memory.accelerate(self._index, start, values, codec)

    def of_held(self, held: Sequence[Encoded], codec: Codec) -> None:
        self._memory.settle_held(self._index, held, codec)

    def compensate_sum(self, start: int, total: Tensor) -> None:
        try:
            self._memory.compensate_sum(self._index, start, total)
        except NonFiniteError:
            raise TaskError(OVERFLOW) from None

    def of_sum(self, start: int, exact: Tensor, decoded: Tensor) -> None:
        self._memory.settle_sum(self._index, start, exact, decoded)

    def known(self) -> None:
        self._compression.encoded(self._index)

    def nothing(self) -> None:
        self._memory.settle_all(self._index)
        self.known()

    def encoded_in(self, elements: int, seconds: float) -> None:
        self._compression.encoded_in(self._index, elements, seconds)

    def decoded_in(self, elements: int, seconds: float) -> None:
        self._compression.decoded_in(self._index, elements, seconds)


class Collected:
    """It is put into a vector: of P or Q, of which the bucket's residual is made.

    Args:
        into: float32 [n], zeros; None where nothing is ever encoded.
        known: called once all of it is there.
    """

    bucket, is_thin = "", True

    def __init__(self, into: Tensor | None = None, known: Callable[[], None] = lambda: None) -> None:
        self._into, self._known = into, known

    def compensate_shard(self, start: int, shard: Tensor) -> None:
        return

    def begin(self, start: int, values: Tensor, codec: Codec) -> None:
        check_overflow(values)

    def of_held(self, held: Sequence[Encoded], codec: Codec) -> None:
        for part in held:
            self._add(part.start, part.compensated, part.decoded)

    def compensate_sum(self, start: int, total: Tensor) -> None:
        check_overflow(total)

    def of_sum(self, start: int, exact: Tensor, decoded: Tensor) -> None:
        self._add(start, exact, decoded)

    def known(self) -> None:
        self._known()

    def nothing(self) -> None:
        self._known()

    def encoded_in(self, elements: int, seconds: float) -> None:
        return

    def decoded_in(self, elements: int, seconds: float) -> None:
        return

    def _add(self, start: int, exact: Tensor, decoded: Tensor) -> None:
        assert self._into is not None
        self._into[start : start + exact.numel()].add_(exact).sub_(decoded)


UNTOUCHED = Collected()
"""Nothing is encoded, and nobody asks when."""


def check_overflow(values: Tensor) -> None:
    """Raises TaskError where a sum, float32, holds NaN or Inf."""
    if not is_finite(values):
        raise TaskError(OVERFLOW)
