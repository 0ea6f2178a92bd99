"""QN-10: the attention cache keeps what it was given, each vector on a range of its own."""

from __future__ import annotations

import math

import pytest
import torch

from workers.models.transformer import ByteTransformer
from workers.qins.chat import caches_for
from workers.qins.kv_cache import FLOOR, FORMATS, LEVELS, QINSKVCache, VFormat

B, H, D = 3, 2, 16


def vectors(length: int, seed: int = 0, batch: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, H, length, D, generator=generator), torch.randn(batch, H, length, D, generator=generator)


def filled(v_format: VFormat, length: int = 7) -> QINSKVCache:
    cache = QINSKVCache(B, 20, H, D, v_format)
    cache.update(*vectors(length))
    return cache


@pytest.mark.parametrize("v_format", FORMATS)
def test_qn10_keys_are_kept_as_float16_and_values_within_a_step(v_format: VFormat) -> None:
    k, v = vectors(7)
    keys, values = filled(v_format).get_kv(B)
    assert torch.equal(keys, k.half()) and values.dtype == torch.float16
    if v_format == "fp16":
        assert torch.equal(values, v.half())
        return
    halves = v.half().float()
    high = halves.abs().amax(-1, keepdim=True)
    low = halves.abs().amin(-1, keepdim=True)
    if v_format == "packed7":
        low = low.maximum(high * FLOOR)
    relative = ((high / low).log() / (LEVELS[v_format] - 1) / 2).exp() - 1 + 2e-3  # float16 has 2^-11
    bound = torch.where(halves.abs() >= low, relative * halves.abs(), low * 1.01)
    assert bool(((values.float() - halves).abs() <= bound).all())
    assert torch.equal(values.sign(), halves.half().sign())


@pytest.mark.parametrize("v_format", FORMATS)
@pytest.mark.parametrize("pieces", [(1,) * 7, (3, 4), (6, 1)])
def test_qn10_token_by_token_is_the_same_as_at_once(v_format: VFormat, pieces: tuple[int, ...]) -> None:
    k, v = vectors(7)
    one, start = QINSKVCache(B, 20, H, D, v_format), 0
    for length in pieces:
        one.update(k[:, :, start : start + length], v[:, :, start : start + length])
        start += length
    for ours, theirs in zip(one.get_kv(B), filled(v_format).get_kv(B), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("v_format", FORMATS)
def test_qn10_one_request_never_affects_another(v_format: VFormat) -> None:
    k, v = vectors(7)
    loud = v.clone()
    loud[0] *= 1e4
    loud[1, 1, 3, 5] = math.nan
    other = QINSKVCache(B, 20, H, D, v_format)
    other.update(k, loud)
    mine, theirs = filled(v_format).get_kv(B)[1], other.get_kv(B)[1]
    assert torch.equal(mine[2], theirs[2]) and torch.equal(mine[1, 0], theirs[1, 0])
    assert torch.equal(mine[1, 1, :3], theirs[1, 1, :3]) and math.isnan(theirs[1, 1, 3, 5])


@pytest.mark.parametrize("v_format", ["v1", "packed7"])
def test_qn10_special_values(v_format: VFormat) -> None:
    """Zeros and signs stay, equal magnitudes are exact, what is not finite is NaN and leaves its vector alone."""
    v = torch.zeros(1, 1, 5, 4)
    v[0, 0, 1] = torch.tensor([0.0, 1.0, -1.0, 1.0])
    v[0, 0, 2] = torch.tensor([math.inf, -math.inf, math.nan, 0.5])
    v[0, 0, 3] = torch.tensor([65504.0, -6e-8, 0.0, 1.0])
    v[0, 0, 4] = torch.tensor([1e6, 1.0, -1.0, 0.0])  # beyond float16
    cache = QINSKVCache(1, 5, 1, 4, v_format)
    cache.update(torch.zeros(1, 1, 5, 4), v)
    back = cache.get_kv(1)[1][0, 0]
    assert back[0].tolist() == [0.0] * 4
    assert back[1].tolist() == [0.0, 1.0, -1.0, 1.0]
    assert back[2, :3].isnan().all() and back[2, 3] == 0.5
    assert back[3, 0] == pytest.approx(65504.0, rel=1e-3) and back[3, 1] < 0 and back[3, 2] == 0
    assert back[4, 0].isnan() and back[4, 1:].tolist() == [1.0, -1.0, 0.0]


def test_qn10_bytes_are_those_of_the_table() -> None:
    """D = 128: 2, 2.06 and 1.03 bytes for each value, beside 2 of the key."""
    numbers = 32 * 64 * 128
    sizes = {each: (QINSKVCache(1, 64, 32, 128, each).nbytes - 2 * numbers) / numbers for each in FORMATS}
    assert sizes == {"fp16": 2.0, "v1": pytest.approx(2.0625), "packed7": pytest.approx(1.03125)}


def test_qn10_what_does_not_fit_changes_nothing() -> None:
    cache = filled("packed7", 18)
    before = [each.clone() for each in cache.get_kv(B)]
    k, v = vectors(3)
    for bad, words in (
        ((k, v), "3 tokens do not fit after 18 in a cache for 20"),
        (vectors(1, batch=B + 1), "4 samples do not fit in a cache for 3"),
        (vectors(1, batch=1), "holds 3 samples, not 1"),
        ((k, v[:, :, :2]), "not of one shape"),
        ((k[..., :4], v[..., :4]), "not of one shape"),
        ((k.long(), v.long()), "not floating-point"),
    ):
        with pytest.raises(ValueError, match=words):
            cache.update(*bad)
    with pytest.raises(ValueError, match="holds 3 samples, not 4"):
        cache.get_kv(B + 1)
    with pytest.raises(ValueError, match="cannot be cut to 19"):
        cache.truncate(19)
    assert cache.current_len == 18
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(cache.get_kv(B), before, strict=True))


def test_qn10_cut_and_reset() -> None:
    cache = filled("packed7", 7)
    cache.truncate(4)
    cache.update(*(each[:, :, 4:] for each in vectors(7)))
    for ours, theirs in zip(cache.get_kv(2), filled("packed7", 7).get_kv(2), strict=True):
        assert torch.equal(ours, theirs)
    cache.reset()
    cache.update(*vectors(1, batch=1))
    assert cache.current_len == 1 and cache.get_kv(1)[0].shape == (1, H, 1, D)


@pytest.mark.parametrize(("sizes", "words"), [((0, 1, 1, 1), "holds nothing"), ((1, 1, 1, 0), "holds nothing")])
def test_qn10_sizes_that_are_none(sizes: tuple[int, int, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        QINSKVCache(*sizes)
    with pytest.raises(ValueError, match="write one of fp16, v1, packed7"):
        QINSKVCache(1, 1, 1, 1, "int3")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> ByteTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ByteTransformer(vocabulary=32, context=24, width=32, depth=2, heads=2).eval()


@pytest.mark.parametrize(("v_format", "within"), [("fp16", 5e-3), ("v1", 0.05), ("packed7", 0.1)])
def test_qn10_attention_through_the_cache_is_the_attention_without(
    v_format: VFormat, within: float, model: ByteTransformer
) -> None:
    """In pieces of any length; the logits are of size 1."""
    tokens = torch.randint(0, 32, (2, 24), generator=torch.Generator().manual_seed(2))
    caches = caches_for(model, 2, v_format)
    with torch.inference_mode():
        expected = model(tokens)
        found = torch.cat([model(part, caches) for part in tokens.split([5, 1, 1, 10, 7], dim=1)], dim=1)
    assert torch.allclose(found, expected, atol=within) and float(expected.std()) > 0.5
    with pytest.raises(ValueError, match="the text has 25 tokens, but the model sees 24"):
        model(tokens[:, :1], caches)


@pytest.mark.parametrize("v_format", FORMATS)
def test_generation_with_a_cache_goes_on_beyond_the_context(v_format: VFormat, model: ByteTransformer) -> None:
    """Until the context is full each token costs one pass over one token; the text is that without a cache."""
    prompt, lengths = torch.tensor([3, 1, 4]), []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    try:
        caches = caches_for(model, 1, v_format)
        text = list(model.generate(prompt, 30, caches=caches))
        assert lengths == [3] + [1] * 21 + [24] * 8
        assert list(model.generate(prompt, 30, caches=caches)) == text
    finally:
        hook.remove()
    if v_format == "fp16":
        assert text == list(model.generate(prompt, 30))
