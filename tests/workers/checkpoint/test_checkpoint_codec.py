"""CK-1: the exact tier gives back every bit."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from workers.checkpoint.codec import CODEC, DTYPES, Decoder, Encoder, flaw
from workers.checkpoint.planes import join_planes, split_planes


def bits(tensor: torch.Tensor) -> bytes:
    return b"" if tensor.numel() == 0 else tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def round_trip(tensor: torch.Tensor, chunk_bytes: int = 1 << 20) -> torch.Tensor:
    record, blobs = Encoder(chunk_bytes=chunk_bytes).encode("t", tensor)
    assert flaw(record, [len(blob) for blob in blobs]) is None
    return Decoder().decode(record, [np.frombuffer(blob, np.uint8) for blob in blobs])


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any dtype and shape, any bit pattern (a bool is 0 or 1)."""
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:
        raw = bytearray(byte & 1 for byte in raw)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(shape)


@settings(max_examples=150, deadline=None)
@given(tensors(), st.integers(1, 64))
def test_ck1_any_tensor_comes_back_bit_for_bit(tensor: torch.Tensor, chunk_bytes: int) -> None:
    """CK-1, with chunks down to a single element."""
    back = round_trip(tensor, chunk_bytes)
    assert (back.dtype, back.shape, bits(back)) == (tensor.dtype, tensor.shape, bits(tensor))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.integers(0, 40), st.randoms(use_true_random=False))
def test_ck1_planes_are_a_permutation(itemsize: int, count: int, random: object) -> None:
    """CK-1: plane i holds byte i of every element."""
    raw = np.frombuffer(random.randbytes(itemsize * count), np.uint8)  # type: ignore[attr-defined]
    planes, back = np.empty_like(raw), np.empty_like(raw)
    split_planes(raw, itemsize, planes)
    join_planes(planes, itemsize, back)
    assert planes.tobytes() == b"".join(raw[byte::itemsize].tobytes() for byte in range(itemsize))
    assert back.tobytes() == raw.tobytes()


@pytest.mark.parametrize(
    "bit_patterns",
    [
        torch.tensor([0x7FC00001, 0x7F800001, -1, -(2**31), 1, 0x7F800000], dtype=torch.int32).view(torch.float32),
        torch.tensor([0x7FF0000000000001, -1, -(2**63), 1], dtype=torch.int64).view(torch.float64),
        torch.tensor([0x7FC1, 0x7F81, -1, -(2**15), 1], dtype=torch.int16).view(torch.bfloat16),
        torch.tensor([0x7E01, 0x7C01, -1, -(2**15), 1], dtype=torch.int16).view(torch.float16),
    ],
    ids=["float32", "float64", "bfloat16", "float16"],
)
def test_ck1_nan_payloads_and_negative_zero_survive(bit_patterns: torch.Tensor) -> None:
    """CK-1: quiet and signalling NaN payloads, -0.0, the smallest subnormal."""
    assert bits(round_trip(bit_patterns)) == bits(bit_patterns)


def test_ck1_views_are_saved_as_what_they_show() -> None:
    """CK-1: transposed, strided and gradient-carrying tensors."""
    base = torch.arange(24.0, requires_grad=True).reshape(4, 6)
    for view in (base.t(), base[:, ::2], base[1:3]):
        back = round_trip(view)
        assert torch.equal(back, view) and back.is_contiguous()


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "storage"),
    ],
)
def test_ck1_what_it_cannot_hold_is_refused_in_a_sentence(tensor: torch.Tensor, word: str) -> None:
    with pytest.raises(ValueError, match=f"'the name'.*{word}") as refusal:
        Encoder().encode("the name", tensor)
    assert "\n" not in str(refusal.value)


def test_ck10_declared_sizes_are_judged_without_the_bytes() -> None:
    """CK-10: more than the stored bytes can unfold to, chunks missing, unknown dtype or codec."""
    record, [blob] = Encoder(chunk_bytes=64 << 20).encode("t", torch.zeros(100))
    assert flaw(record, [len(blob)]) is None
    assert "chunks" in str(flaw(record, []))
    assert "unfold" in str(flaw(record.model_copy(update={"shape": [2**24]}), [len(blob)]))
    assert "chunks" in str(flaw(record.model_copy(update={"shape": [2**62, 2**62]}), [len(blob)]))
    assert "dtype" in str(flaw(record.model_copy(update={"dtype": "complex64"}), [len(blob)]))
    assert CODEC in str(flaw(record.model_copy(update={"codec": "pickle/1"}), [len(blob)]))
    assert "chunks of more" in str(flaw(record.model_copy(update={"chunk": 2**28}), [len(blob)]))
