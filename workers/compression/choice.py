"""What is in force for a bucket: a codec and its parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

PARAMETERS = {"topk": "density", "threshold": "density", "powersgd": "rank", "powersgd-int8": "rank"}
"""What `Choice.value` is, for the codecs that have one."""

FACTOR_CODECS = {"powersgd": "none", "powersgd-int8": "int8"}
"""Codecs of low rank, and how P and Q travel."""


@dataclass(frozen=True, order=True)
class Choice:
    """`value` is the density of topk and threshold, the rank of powersgd and powersgd-int8; the others have none."""

    codec: str
    value: float | None = None

    def __str__(self) -> str:
        return self.codec if self.value is None else f"{self.codec} {self.value:g}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of `str(choice)`. Raises CodecError where it cannot work."""
        codec, _, value = text.partition(" ")
        try:
            choice = cls(codec, float(value) if value else None)
        except ValueError:
            from workers.compression.codec import CodecError

            raise CodecError(f"{value!r} in {text!r} is no number; write {codec} 0.01") from None
        choice.check()
        return choice

    @property
    def is_low_rank(self) -> bool:
        return self.codec in FACTOR_CODECS

    @property
    def rank(self) -> int:
        """0 where it is not of low rank."""
        return int(self.value or 0) if self.is_low_rank else 0

    @property
    def parameters(self) -> Mapping[str, float]:
        """For `make_codec` and `PowerSGD`."""
        return {} if self.value is None else {PARAMETERS.get(self.codec, "value"): self.value}

    def check(self) -> None:
        """Raise CodecError where there is no such codec, or it cannot work with this value."""
        from workers.compression.powersgd import PowerSGD  # these load torch, which who only reads a JobSpec has no use for
        from workers.compression.registry import make_codec

        if self.is_low_rank:
            rank = self.value
            PowerSGD({}, int(rank) if rank is not None and rank == int(rank) else rank)  # type: ignore[arg-type]
        else:
            make_codec(self.codec, **self.parameters)


Plan = tuple[Choice, ...]
"""One for each bucket."""

MAX_RANK = 16
"""The highest rank of PowerSGD that an adaptive plan has."""

NONE = Choice("none")


def plan_hash(plan: Plan) -> int:
    """64 bits, to be compared between ranks (CC-20)."""
    return int.from_bytes(blake2b("\n".join(map(str, plan)).encode(), digest_size=8).digest(), "big")
