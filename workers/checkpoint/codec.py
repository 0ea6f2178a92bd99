"""How one tensor becomes bytes and back: payload, then zstd, in chunks of bounded size, with a checksum.

The payload is the byte planes of the tensor, which loses nothing, or that of a codec of the qins tier, or the difference to
one of those in an earlier checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Annotated, NamedTuple

import numpy as np
import torch
import zstandard
from pydantic import BaseModel, ConfigDict, Field

from workers.checkpoint import deltas
from workers.checkpoint.deltas import DELTAS, WHOLE, Coded
from workers.checkpoint.errors import damaged
from workers.checkpoint.grids import GRIDS
from workers.checkpoint.lossy import FLOATS, LOSSY, as_float32
from workers.checkpoint.places import Where
from workers.checkpoint.planes import Bytes, join_planes, split_planes

CODEC = "planes.zstd/1"
LEVEL = 3
CHUNK_BYTES = 4 << 20
"""Raw bytes of a chunk, as written."""

MAX_CHUNK_BYTES = 256 << 20
"""Raw bytes of a chunk that a reader accepts."""

MAX_RATIO = 1 << 15
"""No zstd frame expands further: its smallest block, 4 bytes, yields at most 128 KiB (RFC 8878)."""

_DTYPES = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


DTYPES = {dtype_name(dtype): dtype for dtype in _DTYPES}

Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""BLAKE2b-128 as 32 hex digits."""


class TensorRecord(BaseModel):
    """How one tensor lies in a shard. `chunk` is the number of elements of every chunk but the last.

    `checksum` is over the tensor's bytes in memory; in a lossy codec over its payloads, before zstd.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    codec: str
    dtype: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(max_length=64)]
    chunk: Annotated[int, Field(ge=1, le=MAX_CHUNK_BYTES)]
    checksum: Checksum

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].itemsize

    @property
    def raw_bytes(self) -> int:
        """Bytes of the tensor in memory."""
        return math.prod(self.shape) * self.itemsize

    @property
    def num_chunks(self) -> int:
        """How many blobs hold the tensor; none for an empty one."""
        return -(-math.prod(self.shape) // self.chunk)

    def chunk_bytes(self, index: int) -> int:
        """Bytes that chunk `index` unfolds to, at least."""
        elements = self.chunk_elements(index)
        if self.codec in WHOLE:
            return deltas.least_bytes(elements)
        return LOSSY[self.codec].size(elements) if self.codec in LOSSY else elements * self.itemsize

    def most_chunk_bytes(self, index: int) -> int:
        """The same at most."""
        elements = self.chunk_elements(index)
        if self.codec in WHOLE:
            return deltas.most_bytes(elements)
        return LOSSY[self.codec].most(elements) if self.codec in LOSSY else self.chunk_bytes(index)

    def chunk_elements(self, index: int) -> int:
        """Elements in chunk `index`."""
        return min(self.chunk, math.prod(self.shape) - index * self.chunk)


class Link(NamedTuple):
    """A tensor in the file of a checkpoint and, chunk by chunk, its zstd frames."""

    record: TensorRecord
    blob: Callable[[int], Bytes]
    file: Where


class Encoder:
    """Encodes tensors one after the other on one reused buffer; `threads` are zstd's, beside the caller's."""

    def __init__(self, threads: int = 0, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._zstd = zstandard.ZstdCompressor(level=LEVEL, threads=threads, write_checksum=True)
        self._chunk_bytes = chunk_bytes
        self._planes = np.empty(0, np.uint8)

    def encode_lossy(
        self, name: str, tensor: torch.Tensor, codec: str, kept: Coded | None = None
    ) -> tuple[TensorRecord, list[bytes]]:
        """The record of a float tensor in a codec of `LOSSY`, and one zstd frame per chunk; `kept`, of `coded`, gets what a
        difference to it will need.

        Raises ValueError, with the reason, where that codec cannot hold it.
        """
        values, chunk = as_float32(name, tensor), self.chunk(tensor)
        checksum, blobs = self._framed(LOSSY[codec].pack(name, values, chunk), kept)
        kind, shape = dtype_name(tensor.dtype), list(tensor.shape)
        return TensorRecord(name=name, codec=codec, dtype=kind, shape=shape, chunk=chunk, checksum=checksum), blobs

    def coded(self, tensor: torch.Tensor, codec: str) -> Coded | None:
        """An empty `Coded` for `encode_lossy`, or None where no differences are made to that codec."""
        if codec not in DELTAS:
            return None
        return Coded(codec, dtype_name(tensor.dtype), list(tensor.shape), self.chunk(tensor))

    def encode_delta(self, name: str, tensor: torch.Tensor, base: Coded) -> tuple[TensorRecord, list[bytes], Coded] | None:
        """The record of a float tensor as a difference to `base`, one zstd frame per chunk, and what a later difference
        needs. None where it is better written whole, or has to be."""
        like = self.coded(tensor, base.codec)
        if like is None or (like.dtype, like.shape, like.chunk) != (base.dtype, base.shape, base.chunk):
            return None
        try:
            values = as_float32(name, tensor)
        except ValueError:
            return None
        if not bool(torch.isfinite(values).all()) or (found := deltas.subtract(values, base)) is None:
            return None
        payloads, after = found
        checksum, blobs = self._framed(payloads)
        record = TensorRecord(
            name=name,
            codec=DELTAS[base.codec],
            dtype=base.dtype,
            shape=base.shape,
            chunk=base.chunk,
            checksum=checksum,
        )
        return record, blobs, after

    def _framed(self, payloads: Iterable[bytes], kept: Coded | None = None) -> tuple[str, list[bytes]]:
        """The digest of payloads, and a zstd frame of each."""
        digest, blobs = blake2b(digest_size=16), []
        for payload in payloads:
            digest.update(payload)
            blobs.append(self._zstd.compress(payload))
            if kept is not None:
                kept.add(np.frombuffer(payload, np.uint8))
        return digest.hexdigest(), blobs

    def chunk(self, tensor: torch.Tensor) -> int:
        """Elements of each chunk of such a tensor but the last."""
        return max(1, self._chunk_bytes // tensor.dtype.itemsize)

    def encode(self, name: str, tensor: torch.Tensor) -> tuple[TensorRecord, list[bytes]]:
        """The record of a dense tensor of any shape and a dtype of `DTYPES`, and one zstd frame per chunk.

        Raises ValueError, with a sentence, for any other tensor.
        """
        raw = _raw_bytes(name, tensor)
        itemsize, chunk = tensor.dtype.itemsize, self.chunk(tensor)
        blobs = [
            self._compress(raw[start : start + chunk * itemsize], itemsize)
            for start in range(0, raw.size, chunk * itemsize)
        ]
        record = TensorRecord(
            name=name,
            codec=CODEC,
            dtype=dtype_name(tensor.dtype),
            shape=list(tensor.shape),
            chunk=chunk,
            checksum=blake2b(raw.data, digest_size=16).hexdigest(),
        )
        return record, blobs

    def _compress(self, raw: Bytes, itemsize: int) -> bytes:
        if itemsize == 1:
            return self._zstd.compress(raw.data)
        if self._planes.size < raw.size:
            self._planes = np.empty(raw.size, np.uint8)
        planes = self._planes[: raw.size]
        split_planes(raw, itemsize, planes)
        return self._zstd.compress(planes.data)


def flaw(record: TensorRecord, blob_sizes: Sequence[int], codecs: Sequence[str] = (CODEC,)) -> str | None:
    """Why blobs of `blob_sizes` bytes cannot hold what `record` declares in one of `codecs`, or None. Allocates nothing."""
    if record.codec not in codecs:
        return f"tensor {record.name!r} is in codec {record.codec!r}, but here stand {', '.join(map(repr, codecs))}"
    if record.dtype not in DTYPES:
        return f"tensor {record.name!r} has the unknown dtype {record.dtype!r}"
    if record.codec != CODEC and DTYPES[record.dtype] not in FLOATS:
        return f"tensor {record.name!r} is {record.dtype}, which codec {record.codec!r} does not hold"
    if record.chunk * record.itemsize > MAX_CHUNK_BYTES:
        return f"tensor {record.name!r} declares chunks of more than {MAX_CHUNK_BYTES} bytes"
    if record.num_chunks != len(blob_sizes):
        return f"tensor {record.name!r} of shape {record.shape} needs {record.num_chunks} chunks, not {len(blob_sizes)}"
    for index, size in enumerate(blob_sizes):
        if record.chunk_bytes(index) > size * MAX_RATIO:
            return f"tensor {record.name!r} declares more than its {size} stored bytes can unfold to"
    return None


class Decoder:
    """Decodes tensors whose records passed `flaw`; holds at most one chunk beside the tensor."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def decode(self, record: TensorRecord, blobs: Iterable[Bytes]) -> torch.Tensor:
        """The tensor as it was written. Raises ValueError, with a sentence, where bytes are not what was written."""
        if record.codec in LOSSY:
            return self._decode_lossy(record, blobs)
        if record.codec in WHOLE:
            raise ValueError(f"tensor {record.name!r} is a difference, and what it is a difference to is not here")
        tensor = _empty(record)
        raw = _as_bytes(tensor)
        start = 0
        for index, blob in enumerate(blobs):
            size = record.chunk_bytes(index)
            join_planes(self._decompress(record, blob, index), record.itemsize, raw[start : start + size])
            start += size
        _check_digest(record, blake2b(raw.data, digest_size=16).hexdigest())
        return tensor

    def _decode_lossy(self, record: TensorRecord, blobs: Iterable[Bytes]) -> torch.Tensor:
        tensor, digest = _empty(record), blake2b(digest_size=16)
        for index, blob in enumerate(blobs):
            out = tensor.view(-1)[index * record.chunk :][: record.chunk]
            payload = self._decompress(record, blob, index)
            digest.update(payload.data)
            try:
                _put(out, LOSSY[record.codec].unpack(payload, len(out)))
            except ValueError as error:
                raise ValueError(f"tensor {record.name!r} cannot be decoded: {error}") from None
        _check_digest(record, digest.hexdigest())
        return tensor

    def decode_chain(self, links: Sequence[Link]) -> torch.Tensor:
        """The tensor of the first link, which is a difference to the next, and so on to one written whole; what follows
        that is not read. Holds one chunk of one link at a time. Raises CheckpointError, which names the file."""
        used = next((index for index, link in enumerate(links) if link.record.codec not in WHOLE), -1) + 1
        link, record = links[0], links[0].record
        try:
            if used == 1:
                return self.decode(record, map(link.blob, range(record.num_chunks)))
            if used == 0:
                raise ValueError(f"tensor {record.name!r} is a difference, and what it is a difference to is not here")
            *differences, whole = links[:used]
            for link in differences:
                _check_alike(link.record, whole.record)
            tensor, digests = _empty(record), [blake2b(digest_size=16) for _ in range(used)]
            for index in range(record.num_chunks):
                link, n = whole, record.chunk_elements(index)
                payload = self._decompress(link.record, link.blob(index), index)
                digests[-1].update(payload.data)
                grid, codes = GRIDS[link.record.codec].split(payload, n)
                for link, digest in zip(reversed(differences), reversed(digests[:-1]), strict=True):
                    payload = self._decompress(link.record, link.blob(index), index)
                    digest.update(payload.data)
                    codes, decode = deltas.add(payload, grid, codes)
                _put(tensor.view(-1)[index * record.chunk :][:n], decode())
            for link, digest in zip(links[:used], digests, strict=True):
                _check_digest(link.record, digest.hexdigest())
        except ValueError as error:
            raise damaged(link.file, str(error)) from None
        return tensor

    def check(self, link: Link) -> None:
        """Raise CheckpointError where a chunk is not what was written, as far as its own checksum tells."""
        try:
            for index in range(link.record.num_chunks):
                self._decompress(link.record, link.blob(index), index)
        except ValueError as error:
            raise damaged(link.file, str(error)) from None

    def _decompress(self, record: TensorRecord, blob: Bytes, index: int) -> Bytes:
        least, most = record.chunk_bytes(index), record.most_chunk_bytes(index)
        try:
            declared = zstandard.get_frame_parameters(blob.data).content_size
            if not least <= declared <= most:
                wanted = str(least) if least == most else f"{least} to {most}"
                raise ValueError(f"chunk {index} of tensor {record.name!r} declares {declared} bytes instead of {wanted}")
            raw = self._zstd.decompress(blob.data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(f"chunk {index} of tensor {record.name!r} does not decompress ({error})") from None
        return np.frombuffer(raw, np.uint8)


def _put(out: torch.Tensor, values: torch.Tensor) -> None:
    """float32 [n] into a tensor of any floating-point dtype; a finite number stays one."""
    largest = torch.finfo(out.dtype).max
    if largest < torch.finfo(torch.float32).max:
        values = torch.where(torch.isinf(values), values, values.clamp(-largest, largest))
    out.copy_(values)


def _check_alike(difference: TensorRecord, whole: TensorRecord) -> None:
    ours, theirs = ((each.name, each.dtype, each.shape, each.chunk) for each in (difference, whole))
    if ours != theirs or WHOLE[difference.codec] != whole.codec:
        raise ValueError(f"tensor {difference.name!r} is a difference to one of another shape, dtype or codec")


def _check_digest(record: TensorRecord, found: str) -> None:
    if found != record.checksum:
        raise ValueError(f"the bytes of tensor {record.name!r} do not match their checksum")


def _empty(record: TensorRecord) -> torch.Tensor:
    try:
        return torch.empty(record.shape, dtype=DTYPES[record.dtype])
    except (RuntimeError, MemoryError):
        raise ValueError(f"tensor {record.name!r} of shape {record.shape} cannot be allocated") from None


def _raw_bytes(name: str, tensor: torch.Tensor) -> Bytes:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise ValueError(f"tensor {name!r} is sparse, quantized or without storage; save a dense tensor instead")
    if dtype_name(tensor.dtype) not in DTYPES:
        raise ValueError(
            f"tensor {name!r} has dtype {dtype_name(tensor.dtype)}, which checkpoints do not hold; "
            f"save it as one of {', '.join(DTYPES)}"
        )
    return _as_bytes(tensor.detach().resolve_neg().cpu().contiguous())


def _as_bytes(tensor: torch.Tensor) -> Bytes:
    """The memory of a contiguous CPU tensor, not a copy."""
    if tensor.numel() == 0:
        return np.empty(0, np.uint8)
    raw: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
    return raw
