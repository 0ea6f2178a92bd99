"""Codecs by name."""

from __future__ import annotations

import inspect

from workers.compression.blocks import Int4Codec, Int8Codec, SignCodec
from workers.compression.casts import BF16Codec, BF16RingCodec, FP16Codec, NoneCodec
from workers.compression.choice import FACTOR_CODECS, Choice
from workers.compression.codec import Codec, CodecError
from workers.compression.sparse import ThresholdCodec, TopKCodec

CODECS: dict[str, type[Codec]] = {
    each.name: each
    for each in (NoneCodec, BF16Codec, BF16RingCodec, FP16Codec, Int8Codec, Int4Codec, SignCodec, TopKCodec, ThresholdCodec)
}

FACTOR_BLOCK = 64
"""Elements of P and Q that have a scale in common: small enough that few belong to different parameters."""


def make_codec(name: str, **parameters: float) -> Codec:
    """A codec by its name in CC's table: `make_codec("int8")`, `make_codec("topk", density=0.01)`.

    Raises:
        CodecError: there is no such codec or parameter, one is missing, or its value cannot work.
    """
    if name in FACTOR_CODECS:
        raise CodecError(
            f"{name} has no payload of its own but two all-reduces; make a workers.compression.powersgd.PowerSGD"
        )
    if name not in CODECS:
        raise CodecError(f"there is no codec {name!r}; choose from {', '.join([*CODECS, *FACTOR_CODECS])}")
    known = inspect.signature(CODECS[name]).parameters
    for parameter, value in parameters.items():
        if parameter not in known:
            choice = f"it has {', '.join(known)}" if known else "it has none"
            raise CodecError(f"{name} has no parameter {parameter!r}; {choice}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CodecError(f"{parameter} of {name} is a number, and not {value!r}")
    for parameter, detail in known.items():
        if detail.default is inspect.Parameter.empty and parameter not in parameters:
            raise CodecError(f"{name} needs a {parameter}; write {parameter}: 0.01")
    return CODECS[name](**parameters)


def codec_of(choice: Choice) -> Codec:
    """What travels between hosts is encoded by; with low rank, P and Q. Raises CodecError."""
    if not choice.is_low_rank:
        return make_codec(choice.codec, **choice.parameters)
    blocks = {"block": FACTOR_BLOCK} if FACTOR_CODECS[choice.codec] == "int8" else {}
    return make_codec(FACTOR_CODECS[choice.codec], **blocks)
