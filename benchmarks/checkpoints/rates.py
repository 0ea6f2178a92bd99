"""How fast the codecs are beside a copy of memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from workers.checkpoint.lossy import INT4, INT8, LOG7, LOG8, LOG8U, LOSSY, V1

BEST_OF = 5


@dataclass(frozen=True)
class CodecRate:
    """Of one codec on one thread, without zstd, in shares of the rate of a warm copy of the same float32 numbers."""

    codec: str
    encode: float
    decode: float


def codec_rates(elements: int) -> Iterator[CodecRate]:
    """Of each codec of the qins tier."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    normal = 0.02 * torch.randn(elements, generator=torch.Generator().manual_seed(0))
    target = torch.empty_like(normal)
    for codec in (INT8, INT4, V1, LOG7, LOG8, LOG8U):
        values = normal.square() if codec == LOG8U else normal
        copy = _best(lambda: target.copy_(normal))
        pack, unpack = LOSSY[codec].pack, LOSSY[codec].unpack
        raw = np.frombuffer(b"".join(pack("t", values, elements)), np.uint8)
        encode = _best(partial(_used_up, partial(pack, "t", values, elements)))
        decode = _best(partial(unpack, raw, elements))
        yield CodecRate(codec, copy / encode, copy / decode)
    torch.set_num_threads(threads)


def _used_up(action: Callable[[], Iterator[object]]) -> None:
    for _ in action():
        pass


def _best(action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(BEST_OF):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
