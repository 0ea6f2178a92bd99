"""Codecs by name."""

from __future__ import annotations

import inspect

from workers.compression.blocks import Int4Codec, Int8Codec, SignCodec
from workers.compression.casts import BF16Codec, FP16Codec, NoneCodec
from workers.compression.codec import Codec, CodecError
from workers.compression.sparse import ThresholdCodec, TopKCodec

CODECS: dict[str, type[Codec]] = {
    each.name: each
    for each in (NoneCodec, BF16Codec, FP16Codec, Int8Codec, Int4Codec, SignCodec, TopKCodec, ThresholdCodec)
}


def make_codec(name: str, **parameters: float) -> Codec:
    """A codec by its name in CC's table: `make_codec("int8")`, `make_codec("topk", density=0.01)`.

    Raises:
        CodecError: there is no such codec or parameter, one is missing, or its value cannot work.
    """
    if name == "powersgd":
        raise CodecError(
            "powersgd has no payload of its own but two all-reduces; make a workers.compression.powersgd.PowerSGD"
        )
    if name not in CODECS:
        raise CodecError(f"there is no codec {name!r}; choose from {', '.join(CODECS)} and powersgd")
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
