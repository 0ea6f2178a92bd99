"""What every codec does: n numbers of float32 become a payload whose length everybody knows beforehand.

A codec keeps the first of CC-2's three axes only: what is left behind is in `memory`, how a payload travels is the route's.
Equal payloads decode to equal bits on every machine: a decoder does single IEEE operations on each element, in a fixed
order, and no sums (CC-4).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

ALIGNMENT = 4
"""Payloads are multiples of so many bytes, so those laid one behind another can be read as words."""

CHUNK = 1 << 18
"""Elements that a codec works on at once, a multiple of every block: its scratch stays in the processor's cache."""


class CodecError(ValueError):
    """A codec, or a parameter of one, that does not exist or cannot work: one sentence."""


class Codec(ABC):
    """Encodes 1-dimensional finite float32 tensors on CPU. May be used by several threads at once.

    `granularity`: where a tensor is cut into shards, a multiple of so many elements wastes no bytes.
    `sums_in`: the type in which gloo's ring adds up payloads as they are; None where they have to be decoded first.
    """

    name: ClassVar[str]
    granularity: int = 1
    sums_in: ClassVar[torch.dtype | None] = None

    @property
    def parameters(self) -> Mapping[str, float]:
        """What `make_codec` makes an equal codec of."""
        return {}

    def nbytes(self, n: int) -> int:
        """Bytes of the payload of n elements, whatever they are."""
        return -(-self._size(n) // ALIGNMENT) * ALIGNMENT if n else 0

    def encode(self, x: Tensor, *, key: str = "", out: Tensor | None = None) -> Tensor:
        """The payload, uint8 [nbytes(n)], of `x`, float32 [n], finite, contiguous or not.

        Args:
            key: what a codec with a memory keeps it by (`threshold`); the others do not look at it.
            out: where to put it; begins at a multiple of `ALIGNMENT` bytes.
        """
        if x.dtype != torch.float32 or x.dim() != 1:
            raise TypeError(f"{self.name} encodes float32 [n], not {x.dtype} {list(x.shape)}")
        length = self.nbytes(x.numel())
        if out is None:
            out = torch.empty(length, dtype=torch.uint8)
        self._check(out, length)
        if out.storage_offset() % ALIGNMENT:
            raise ValueError(f"a payload has to begin at a multiple of {ALIGNMENT} bytes, not at {out.storage_offset()}")
        if length:
            out[-ALIGNMENT:] = 0
            self._encode(x.detach().contiguous(), out, key)
        return out

    def decode(self, payload: Tensor, n: int, *, out: Tensor | None = None) -> Tensor:
        """What `payload`, uint8 [nbytes(n)], stands for: float32 [n].

        Args:
            out: where to put it: contiguous float32 [n].
        """
        self._check(payload, self.nbytes(n))
        if out is None:
            out = torch.empty(n)
        if out.dtype != torch.float32 or out.shape != (n,) or not out.is_contiguous():
            raise TypeError(f"{self.name} decodes into contiguous float32 [{n}], not {out.dtype} {list(out.shape)}")
        if n:
            self._decode(payload.clone() if payload.storage_offset() % ALIGNMENT else payload, out)
        return out

    def decode_all(self, payloads: Tensor, n: int) -> Tensor:
        """What `payloads`, uint8 [m, nbytes(n)], stand for, one in a row: float32 [m, n], the bits that `decode` gives."""
        length = self.nbytes(n)
        if payloads.dtype != torch.uint8 or payloads.dim() != 2 or payloads.shape[1] != length:
            raise ValueError(
                f"these payloads of {self.name} have to be uint8 [m, {length}], not {payloads.dtype} {list(payloads.shape)}"
            )
        out = torch.empty(payloads.shape[0], n)
        if out.numel():
            aligned = payloads.is_contiguous() and payloads.storage_offset() % ALIGNMENT == 0
            self._decode_all(payloads if aligned else payloads.clone(memory_format=torch.contiguous_format), out)
        return out

    def _check(self, payload: Tensor, length: int) -> None:
        if payload.dtype != torch.uint8 or payload.shape != (length,) or not payload.is_contiguous():
            raise ValueError(
                f"this payload of {self.name} has to be contiguous uint8 [{length}], not {payload.dtype} "
                f"{list(payload.shape)}"
            )

    @abstractmethod
    def _size(self, n: int) -> int:
        """Bytes before they are rounded up, n > 0."""

    @abstractmethod
    def _encode(self, x: Tensor, payload: Tensor, key: str) -> None:
        """Fill `payload`, which is zero where it was rounded up; n > 0."""

    @abstractmethod
    def _decode(self, payload: Tensor, out: Tensor) -> None:
        """Fill `out`; n > 0."""

    def _decode_all(self, payloads: Tensor, out: Tensor) -> None:
        """Fill `out`, [m, n], m and n > 0."""
        for payload, row in zip(payloads.unbind(), out.unbind(), strict=True):
            self._decode(payload, row)


def chunks(n: int) -> Iterator[slice]:
    """0 to n in pieces of `CHUNK`, the last one shorter."""
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


class _Scratch(threading.local):
    """Each thread has its own, for ever: getting fresh memory from the system can take longer than to fill it."""

    def __init__(self) -> None:
        self.floats = torch.empty(CHUNK)
        self.codes = torch.empty(CHUNK, dtype=torch.int8)


_scratch = _Scratch()


def float_scratch(n: int) -> Tensor:
    """float32 [n], n <= CHUNK; this thread's next call returns the same memory."""
    return _scratch.floats[:n]


def code_scratch(n: int) -> Tensor:
    """int8 [n], n <= CHUNK; this thread's next call returns the same memory."""
    return _scratch.codes[:n]


def largest_magnitude(x: Tensor) -> float:
    """Of the elements of `x`, n > 0."""
    return max(float(x.amax()), -float(x.amin()))
