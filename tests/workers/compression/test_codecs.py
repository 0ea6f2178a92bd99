"""CC-15 and CC-16: every codec on its error bound, its bytes, its shapes and its determinism."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.compression.conftest import SPECS, codec, vectors
from workers.compression.blocks import BlockCodec
from workers.compression.codec import CHUNK, Codec, CodecError
from workers.compression.finite import NonFiniteError, is_finite, refuse_non_finite
from workers.compression.registry import CODECS, make_codec
from workers.compression.sparse import ThresholdCodec, TopKCodec, largest

NAMES = sorted(SPECS)
FLOAT32_MAX = torch.finfo(torch.float32).max
TINY = 2.0**-126


def block_maxima(x: Tensor, block: int) -> Tensor:
    """float64 [n]: the largest magnitude of the block that each element is in."""
    return torch.cat([part.abs().max().expand(len(part)) for part in x.double().split(block)])


def bound(which: Codec, x: Tensor) -> Tensor:
    """float64 [n]: what the docstrings say that |decoded − x| stays below."""
    magnitude = x.double().abs()
    if which.name == "none":
        return torch.zeros_like(magnitude)
    if which.name.startswith("bf16"):
        return magnitude * 2.0**-8 + TINY
    if which.name == "fp16":
        factor = 2.0 ** max(math.frexp(float(magnitude.max()))[1] - 15, -126)
        return magnitude * 2.0**-11 + factor * 2.0**-25 + TINY * 2.0**-23
    if isinstance(which, BlockCodec):
        maxima = block_maxima(x, which.block)
        if which.name == "sign":
            return magnitude + maxima * (1 + 2.0**-8) + TINY
        levels = {"int8": 127, "int4": 7}[which.name]
        scale = (maxima * (1 + 2.0**-7) / levels).clamp(min=TINY)
        return scale / 2 * (1 + 2.0**-20)
    raise AssertionError(which.name)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"topk", "threshold"}))
@settings(max_examples=60, deadline=None)
@given(vectors(largest=127.99))
@example(torch.full((300,), FLOAT32_MAX))
@example(torch.tensor([FLOAT32_MAX, -FLOAT32_MAX, 1.0, 2.0**-149]))
@example(torch.tensor([2.0**-149]))
def test_cc16_a_round_trip_stays_within_the_bound(name: str, x: Tensor) -> None:
    which = codec(name)
    decoded = which.decode(which.encode(x), len(x))
    assert decoded.dtype == torch.float32 and decoded.shape == x.shape
    assert bool(decoded.isfinite().all())
    if len(x):
        assert bool(((decoded.double() - x.double()).abs() <= bound(which, x)).all())


@pytest.mark.parametrize("name", ["topk", "threshold"])
@settings(max_examples=60, deadline=None)
@given(vectors(largest=127.99))
def test_cc16_sparse_codecs_send_the_largest_exactly_and_the_rest_as_zero(name: str, x: Tensor) -> None:
    which = codec(name)
    assert isinstance(which, (TopKCodec, ThresholdCodec))
    decoded = which.decode(which.encode(x), len(x))
    sent = decoded != 0
    assert torch.equal(decoded[sent], x[sent])
    k = which.count(len(x)) if len(x) else 0
    assert int(sent.sum()) == min(k, int((x != 0).sum()))
    if bool(sent.any()) and not bool(sent.all()):
        assert float(x[sent].abs().min()) >= float(x[~sent].abs().max())


@pytest.mark.parametrize("name", ["int8", "int4", "sign"])
@pytest.mark.parametrize("exponent", [-120, -60, -24, 0, 17, 60, 124])
def test_cc16_a_blocks_scale_neither_overflows_nor_vanishes_beside_blocks_of_other_sizes(name: str, exponent: int) -> None:
    """A float16 scale is zero or Inf for magnitudes beyond 2^-24 to 2^16 times the levels."""
    which = codec(name)
    gradient = torch.randn(1024, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    x = torch.cat((gradient * 2.0**exponent, gradient, gradient * 2.0**-30))
    decoded = which.decode(which.encode(x), len(x))
    for block, reference in zip(x.split(1024), decoded.split(1024), strict=True):
        relative = float((block.double() - reference.double()).norm() / block.double().norm())
        assert relative < {"int8": 0.01, "int4": 0.15, "sign": 0.7}[name]


def test_cc16_sign_keeps_the_signs_and_the_mean_magnitude_of_every_block() -> None:
    which = codec("sign")
    x = torch.randn(512 * 3 + 77, generator=torch.Generator().manual_seed(1))
    decoded = which.decode(which.encode(x), len(x))
    assert torch.equal(decoded.sign(), x.sign())
    for part, back in zip(x.split(512), decoded.split(512), strict=True):
        assert len(back.abs().unique()) == 1
        assert float(back[0].abs()) == pytest.approx(float(part.abs().mean()), rel=2.0**-8)


def test_cc16_fp16_saves_what_plain_float16_loses_at_both_ends() -> None:
    which = codec("fp16")
    for size in (1e-12, 1e12):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(2)) * size
        plain = x.half().float()
        assert not bool(plain.isfinite().all()) or not bool(plain.any())
        assert float((which.decode(which.encode(x), 1000) - x).norm() / x.norm()) < 1e-3


@pytest.mark.parametrize(
    ("name", "parameters", "n", "expected"),
    [
        ("none", {}, 1000, 4000),
        ("bf16", {}, 1001, 2004),
        ("fp16", {}, 1000, 2004),
        ("int8", {}, 256_000, 258_000),
        ("int8", {"block": 1024}, 1024, 1028),
        ("int8", {}, 1, 4),
        ("int4", {}, 64_000, 34_000),
        ("int4", {}, 65, 68),
        ("int4", {}, 129, 136),
        ("sign", {}, 512_000, 66_000),
        ("topk", {"density": 0.01}, 100_000, 8_000),
        ("threshold", {"density": 0.01}, 100_000, 10_004),
        *((name, SPECS[name], 0, 0) for name in NAMES),
    ],
)
def test_cc16_bytes_are_as_stated(name: str, parameters: dict[str, float], n: int, expected: int) -> None:
    which = make_codec(name, **parameters)
    assert which.nbytes(n) == expected
    assert which.encode(torch.randn(n)).shape == (expected,)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(vectors())
def test_cc16_bytes_are_known_before_the_data_and_equal_data_give_equal_bytes(name: str, x: Tensor) -> None:
    payload = codec(name).encode(x)
    assert payload.dtype == torch.uint8 and payload.shape == (codec(name).nbytes(len(x)),)
    assert len(payload) % 4 == 0
    garbage = torch.full_like(payload, 0xA5)
    assert torch.equal(codec(name).encode(x, out=garbage), payload)
    first, second = (codec(name).decode(payload.clone(), len(x)) for _ in range(2))
    assert torch.equal(first.view(torch.int32), second.view(torch.int32))
    out = torch.full((len(x),), math.nan)
    assert torch.equal(codec(name).decode(payload, len(x), out=out).view(torch.int32), first.view(torch.int32))


@pytest.mark.parametrize("name", NAMES)
def test_cc15_all_zero_one_element_empty_and_non_contiguous_tensors_round_trip(name: str) -> None:
    which = codec(name)
    for n in (0, 1, 2, 63, 64, 65, 255, 257, 511, 513, 5000):
        zeros = which.decode(which.encode(torch.zeros(n)), n)
        assert zeros.shape == (n,) and not bool(zeros.any())
    for value in (-2.5, 1e-30, 1e30):
        one = which.decode(which.encode(torch.tensor([value])), 1)
        assert float(one) == pytest.approx(value, rel=1e-2)
    plain = torch.randn(3000, generator=torch.Generator().manual_seed(3))
    strided = torch.empty(9000)[::3].copy_(plain)
    assert not strided.is_contiguous()
    assert torch.equal(codec(name).encode(strided), codec(name).encode(plain))
    assert torch.equal(codec(name).encode(plain.clone().requires_grad_()), codec(name).encode(plain))


@pytest.mark.parametrize("name", ["bf16", "fp16", "int8", "int4", "sign"])
def test_cc16_where_chunks_are_cut_does_not_show(name: str) -> None:
    which = codec(name)
    n = 2 * CHUNK + 700
    x = torch.randn(n, generator=torch.Generator().manual_seed(4))
    x[0] = x[CHUNK] = x[2 * CHUNK] = 5.0  # the largest magnitude everywhere, as fp16 has one factor for all
    decoded = which.decode(which.encode(x), n)
    for part in (slice(0, CHUNK), slice(CHUNK, 2 * CHUNK), slice(2 * CHUNK, n)):
        alone = which.decode(which.encode(x[part]), part.stop - part.start)
        assert torch.equal(decoded[part], alone)


@pytest.mark.parametrize("name", NAMES)
def test_cc16_payloads_may_lie_one_behind_another(name: str) -> None:
    which = codec(name)
    parts = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (300, 77, 1, 0, 129)]
    sizes = [which.nbytes(len(part)) for part in parts]
    wire = torch.empty(sum(sizes), dtype=torch.uint8)
    for part, out in zip(parts, wire.split(sizes), strict=True):
        which.encode(part, key=f"{len(part)}", out=out)
    shifted = torch.empty(len(wire) + 1, dtype=torch.uint8)[1:].copy_(wire)
    for part, there, oddly in zip(parts, wire.split(sizes), shifted.split(sizes), strict=True):
        expected = codec(name).decode(codec(name).encode(part), len(part))
        assert torch.equal(which.decode(there, len(part)), expected)
        assert torch.equal(which.decode(oddly, len(part)), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [0, 1, 255, 256, 512, 1000, 4099])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_cc4_what_is_decoded_together_has_the_bits_of_what_is_decoded_alone(name: str, n: int, members: int) -> None:
    which = codec(name)
    payloads = torch.stack([which.encode(torch.randn(n) * 10.0**i) for i in range(members)])
    alone = torch.stack([which.decode(payload, n) for payload in payloads])
    assert torch.equal(which.decode_all(payloads, n), alone)
    shifted = torch.cat([torch.zeros(members, 1, dtype=torch.uint8), payloads], dim=1)[:, 1:]
    assert torch.equal(which.decode_all(shifted, n), alone)
    with pytest.raises(ValueError, match=f"payloads of {which.name}"):
        which.decode_all(payloads[0], n)


@pytest.mark.parametrize("n", [1, 10, 20_000, 100_000])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), density=st.floats(0.0005, 1.0), distinct=st.sampled_from([1, 3, 50, 10**9]))
def test_cc16_the_k_largest_are_those_of_a_stable_sort(n: int, seed: int, density: float, distinct: int) -> None:
    """Few distinct magnitudes make ties, of which the lower indices go first; a period of 65 defeats the strided sample."""
    noise = torch.Generator().manual_seed(seed)
    magnitudes = torch.randint(0, distinct, (n,), generator=noise).float()
    magnitudes[:: n // (1 << 14) | 1] *= 1000 if seed % 2 else 0
    signs = torch.randint(0, 2, (n,), generator=noise) * 2 - 1
    k = max(1, math.ceil(density * n))
    expected = torch.sort(magnitudes, descending=True, stable=True).indices[:k].sort().values
    found, kth = largest((magnitudes * signs).numpy(), k)
    assert kth == float(magnitudes[expected].min())
    assert found.tolist() == expected.tolist()


def test_cc16_threshold_is_kept_for_64_steps_and_refreshed_to_meet_the_ratio() -> None:
    which = ThresholdCodec(0.01)
    n, noise = 10_000, torch.Generator().manual_seed(5)

    def sent(x: Tensor) -> Tensor:
        return which.decode(which.encode(x, key="a"), n)

    lowest = float(sent(torch.randn(n, generator=noise)).abs().sort().values[-100])
    for _ in range(63):
        x = torch.randn(n, generator=noise)
        x = x.where(x.abs() < 2.2, x.sign() * 2.2)  # what is above comes from the next line only: 90 entries
        x[torch.randperm(n, generator=noise)[:90]] = lowest + 0.001
        decoded = sent(x)
        assert int((decoded != 0).sum()) == 90
    assert int((sent(x) != 0).sum()) == 100, "the 65th has a threshold of its own"


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.9, 1.1, 10.0])
def test_cc16_threshold_keeps_its_size_when_gradients_change(factor: float) -> None:
    which = ThresholdCodec(0.01)
    noise = torch.Generator().manual_seed(6)
    for step in range(70):
        x = torch.randn(10_000, generator=noise) * (1.0 if step == 0 else factor)
        payload = which.encode(x, key="a")
        decoded = which.decode(payload, len(x))
        assert len(payload) == which.nbytes(len(x))
        assert 50 <= int((decoded != 0).sum()) <= 125 or factor == 0.0
        assert torch.equal(decoded[decoded != 0], x[decoded != 0])


def test_cc16_threshold_keys_do_not_mix() -> None:
    which = ThresholdCodec(0.01)
    small = torch.randn(10_000, generator=torch.Generator().manual_seed(7))
    which.encode(small, key="small")
    which.encode(small * 1000, key="large")
    alone = ThresholdCodec(0.01)
    alone.encode(small, key="small")
    later = torch.randn(10_000, generator=torch.Generator().manual_seed(8))
    assert torch.equal(which.encode(later, key="small"), alone.encode(later, key="small"))


@pytest.mark.parametrize("name", NAMES)
def test_the_registry_makes_an_equal_codec_of_name_and_parameters(name: str) -> None:
    which = codec(name)
    again = make_codec(which.name, **which.parameters)
    x = torch.randn(2000, generator=torch.Generator().manual_seed(9))
    assert type(again) is type(which) is CODECS[name] and again.parameters == which.parameters
    assert torch.equal(again.encode(x), which.encode(x))


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("gzip", {}, r"there is no codec 'gzip'; choose from none, .*powersgd"),
        ("powersgd", {"rank": 4}, r"two all-reduces; make a workers\.compression\.powersgd\.PowerSGD"),
        ("none", {"block": 4}, r"none has no parameter 'block'; it has none"),
        ("int8", {"bits": 4}, r"int8 has no parameter 'bits'; it has block"),
        ("topk", {}, r"topk needs a density"),
        ("int8", {"block": True}, r"block of int8 is a number"),
        ("topk", {"density": "1 %"}, r"density of topk is a number, and not '1 %'"),
        *(("topk", {"density": density}, r"a share of the entries") for density in (0, -0.1, 1.001, math.nan, math.inf)),
        *(("threshold", {"density": density}, r"a share of the entries") for density in (0.0, 2)),
        *(("int8", {"block": block}, r"a power of two, 16 to 65536") for block in (0, -256, 8, 100, 1 << 17, 256.0)),
        *((name, {"block": 24}, r"a power of two, 16 to 65536") for name in ("int4", "sign")),
    ],
)
def test_a_codec_or_parameter_that_cannot_work_is_refused_in_one_sentence(
    name: str, parameters: dict[str, float], sentence: str
) -> None:
    with pytest.raises(CodecError, match=sentence) as refusal:
        make_codec(name, **parameters)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_that_do_not_fit_are_refused(name: str) -> None:
    which = codec(name)
    payload = which.encode(torch.ones(100))
    for wrong in (torch.ones(4, dtype=torch.float64), torch.ones(2, 2)):
        with pytest.raises(TypeError, match=r"encodes float32 \[n\]"):
            which.encode(wrong)
    with pytest.raises(ValueError, match=f"payload of {name} has to be contiguous uint8"):
        which.decode(payload[:-1], 100)
    with pytest.raises(TypeError, match=r"decodes into contiguous float32 \[100\]"):
        which.decode(payload, 100, out=torch.empty(200)[::2])
    with pytest.raises(ValueError, match="begin at a multiple of 4"):
        which.encode(torch.ones(100), out=torch.empty(len(payload) + 2, dtype=torch.uint8)[2:])


def test_cc15_non_finite_input_is_refused_with_the_parameters_name() -> None:
    for value, what in ((math.nan, "NaN"), (math.inf, "Inf"), (-math.inf, "Inf")):
        x = torch.ones(1000)
        x[777] = value
        with pytest.raises(NonFiniteError, match=rf"the gradient of fc1\.weight holds {what}") as refusal:
            refuse_non_finite("fc1.weight", x)
        assert refusal.value.name == "fc1.weight"
    both = torch.tensor([math.inf, -math.inf, 1.0])
    assert not is_finite(both)
    refuse_non_finite("large", torch.full((1000,), FLOAT32_MAX))  # its sum is Inf, no element of it is
    refuse_non_finite("empty", torch.empty(0))
