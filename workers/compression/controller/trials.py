"""A codec tried on a gradient beside the exchange: what it would keep, and what it takes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.collectives.buckets import Slot
from workers.compression.choice import Choice
from workers.compression.codec import Codec
from workers.compression.powersgd import PowerSGD
from workers.compression.registry import codec_of


class Trial(NamedTuple):
    """Seconds to encode and to decode; `energy` is |g|² of the gradient, and `gain` |decoded|²/|g|²."""

    encode: float
    decode: float
    energy: float
    gain: float


class Trials:
    """Of one rank. With nothing owed; what a low rank has learned of the gradients is kept from one trial to the next.

    Args:
        slots: where the parameters lie in the gradients.
        seed: of PowerSGD's first Q.
    """

    def __init__(self, slots: Sequence[Slot], seed: int = 0) -> None:
        self._slots, self._seed = tuple(slots), seed
        self._shapes = {slot.name: slot.shape for slot in slots}
        self._codecs: dict[int, PowerSGD] = {}

    def try_on(self, bucket: int, gradient: Tensor, choice: Choice, *, alike: bool = False) -> Trial | None:
        """`choice` on a bucket's gradient, float32 [n]; None where that is zero or not finite.

        Args:
            alike: machines are, as of `product`.
        """
        energy = float(torch.dot(gradient, gradient))
        if not 0.0 < energy < float("inf"):
            return None
        if choice.is_low_rank:
            encode, decode, decoded = self._low_rank(bucket, gradient, choice, alike)
        else:
            encode, decode, decoded = _coded(choice, gradient)
        return Trial(encode, decode, energy, float(torch.dot(decoded, decoded)) / energy)

    def _low_rank(self, bucket: int, gradient: Tensor, choice: Choice, alike: bool) -> tuple[float, float, Tensor]:
        factors = codec_of(choice)
        codec = self._codecs.setdefault(choice.rank, PowerSGD(self._shapes, choice.rank, self._seed))
        decoded = torch.empty_like(gradient)
        views, room = self._views(bucket, gradient), self._views(bucket, decoded)
        if not codec.state_dict().keys() & views.keys():
            _turn(codec, views, room)  # in use, Q comes from the step before
        begun = time.perf_counter()
        iteration = codec.start(views, alike=alike)
        p = _through(factors, iteration.p)
        left_p = iteration.p.sub_(p)
        q = iteration.middle(p)
        sent = _through(factors, q)
        iteration.rest(left_p, q.sub_(sent), room)
        between = time.perf_counter()
        iteration.finish(sent, room)
        ended = time.perf_counter()
        codec.commit()
        return between - begun, ended - between, decoded

    def _views(self, bucket: int, flat: Tensor) -> dict[str, Tensor]:
        slots = (slot for slot in self._slots if slot.bucket == bucket)
        return {slot.name: flat[slot.start : slot.start + slot.numel].view(slot.shape) for slot in slots}


def _coded(choice: Choice, gradient: Tensor) -> tuple[float, float, Tensor]:
    codec = codec_of(choice)
    begun = time.perf_counter()
    payload = codec.encode(gradient)
    between = time.perf_counter()
    decoded = codec.decode(payload, len(gradient))
    return between - begun, time.perf_counter() - between, decoded


def _turn(codec: PowerSGD, views: Mapping[str, Tensor], room: Mapping[str, Tensor]) -> None:
    """A step of this rank alone, for the sake of its Q."""
    iteration = codec.start(views, alike=True)
    iteration.finish(iteration.middle(iteration.p), room)
    codec.commit()


def _through(codec: Codec, values: Tensor) -> Tensor:
    """What comes out at the other end."""
    return codec.decode(codec.encode(values), len(values))
