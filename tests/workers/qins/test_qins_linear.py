"""QN-8, QN-9, QN-13: the layer that holds codes equals `F.linear` with the decoded weight, and never a stale one."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from workers.qins.codec import QINSCodec
from workers.qins.linear import (
    BUFFERS,
    LIMIT_BYTES,
    CachePolicy,
    ProjectiveLinear,
    QINSLinear,
    RecentlyUsed,
    recently_used,
)


def layer(cache: CachePolicy = "all", seed: int = 0, bias: bool = True) -> QINSLinear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return QINSLinear.from_linear(nn.Linear(6, 4, bias), cache=cache)


def inputs() -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("cache", ["none", "lru", "all"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_qn8_the_output_is_that_of_the_decoded_weight_bit_for_bit(
    cache: CachePolicy, bias: bool, dtype: torch.dtype
) -> None:
    ours, x = layer(cache, bias=bias), inputs().to(dtype)
    weight = QINSCodec.decode(ours.stored, ours.sign, ours.log_min, ours.log_max)
    expected = linear(x, weight.to(dtype), None if ours.bias is None else ours.bias.to(dtype))
    for _ in range(2):
        assert torch.equal(ours(x), expected) and ours(x).dtype == dtype
    assert ours.cached_bytes == (0 if cache == "none" else 4 * 24)


def test_qn8_from_linear_leaves_its_source_and_keeps_the_mode() -> None:
    source = nn.Linear(6, 4).eval()
    before = copy.deepcopy(source.state_dict())
    new = QINSLinear.from_linear(source)
    assert not new.training and new.bias is not None
    with torch.no_grad():
        new.bias.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("bias", [True, False])
def test_qn8_the_state_dict_has_the_buffers_and_the_bias_only(bias: bool) -> None:
    ours = layer(bias=bias)
    ours(inputs())
    assert set(ours.state_dict()) == {"stored", "sign", "log_min", "log_max"} | ({"bias"} if bias else set())
    assert [name for name, _ in ours.named_parameters()] == (["bias"] if bias else [])
    fresh = QINSLinear(6, 4, bias)
    fresh.load_state_dict(ours.state_dict())
    assert torch.equal(fresh(inputs()), ours(inputs()))


def test_qn8_a_fresh_layer_has_the_weight_zero() -> None:
    assert QINSLinear(3, 2).weight.tolist() == [[0.0] * 3] * 2


def test_qn8_gradients_reach_the_input_and_the_bias() -> None:
    ours, x = layer(), inputs().requires_grad_()
    ours(x).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, ours.weight.sum(0).expand_as(x))
    assert ours.bias is not None and ours.bias.grad is not None


def test_qn8_a_refused_weight_is_named() -> None:
    source = nn.Linear(2, 2)
    nn.init.constant_(source.weight, 0.5)
    with pytest.raises(ValueError, match=r"blocks\.0\.weight.*equal"):
        QINSLinear.from_linear(source, name="blocks.0.weight")


def _replace(ours: QINSLinear) -> None:
    ours.sign = -ours.sign


def _in_place(ours: QINSLinear) -> None:
    ours.stored.copy_(ours.stored.flip(0))


def _range_in_place(ours: QINSLinear) -> None:
    ours.log_max.add_(1)


def _other_range(ours: QINSLinear) -> None:
    ours.log_min = ours.log_min - 2


def _data(ours: QINSLinear) -> None:
    ours.sign.data = -ours.sign


def _load(ours: QINSLinear) -> None:
    ours.load_state_dict(layer(seed=1).state_dict())


def _assign(ours: QINSLinear) -> None:
    ours.load_state_dict(layer(seed=1).state_dict(), assign=True)


def _behind_its_back(ours: QINSLinear) -> None:
    ours.sign.data.neg_()
    ours.invalidate_cache()


@pytest.mark.parametrize(
    "change",
    [_replace, _in_place, _range_in_place, _other_range, _data, _load, _assign, _behind_its_back],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("cache", ["lru", "all"])
def test_qn9_no_change_leaves_a_stale_weight(cache: CachePolicy, change: Callable[[QINSLinear], None]) -> None:
    ours = layer(cache)
    before = ours(inputs())
    assert ours.cached_bytes > 0
    change(ours)
    decoded = QINSCodec.decode(ours.stored, ours.sign, ours.log_min, ours.log_max)
    assert torch.equal(ours(inputs()), linear(inputs(), decoded, ours.bias))
    assert not torch.equal(ours(inputs()), before)


@pytest.mark.parametrize("move", [nn.Module.half, nn.Module.double, nn.Module.cpu, nn.Module.bfloat16])
def test_qn9_casts_and_moves_drop_the_cache_and_spare_the_range(move: Callable[[nn.Module], nn.Module]) -> None:
    ours = layer("all")
    before, state = ours(inputs()), copy.deepcopy(ours.state_dict())
    move(ours)
    assert ours.cached_bytes == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    assert torch.equal(ours(inputs()), before)


def test_qn9_under_inference_mode_the_weight_is_kept_and_still_fresh() -> None:
    ours = layer("all")
    with torch.inference_mode():
        first = ours(inputs())
    assert ours.cached_bytes > 0 and torch.equal(ours(inputs()), first)
    ours.stored.copy_(ours.stored.flip(0))
    with torch.inference_mode():
        assert not torch.equal(ours(inputs()), first)


def test_qn9_buffers_without_version_counters_are_decoded_each_time() -> None:
    with torch.inference_mode():
        ours = layer("all")
        first = ours(inputs())
        assert ours.cached_bytes == 0
        ours.sign.neg_()
        assert not torch.equal(ours(inputs()), first)


def test_qn9_copies_do_not_share_the_cache() -> None:
    ours = layer("all")
    ours(inputs())
    twin = copy.deepcopy(ours)
    assert twin.cached_bytes == 0
    twin.sign.neg_()
    assert not torch.equal(twin(inputs()), ours(inputs()))


def test_qn13_the_legacy_layer_warns_and_multiplies_with_codes() -> None:
    with pytest.warns(DeprecationWarning, match="QINSLinear"):
        legacy = ProjectiveLinear.from_linear(nn.Linear(6, 4, bias=False))
    codes = legacy.sign * (255 - legacy.stored.float()) / 254
    assert torch.allclose(legacy(inputs()), inputs() @ codes.t(), atol=1e-5)


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Sets the limit of this process, which has the default again afterwards."""
    yield recently_used.limit
    recently_used.limit(LIMIT_BYTES)


def test_qn9_lru_keeps_what_was_used_last(limit: Callable[[int], None]) -> None:
    """Within the limit, whatever the order; each layer is right all the same."""
    one = 4 * 24
    limit(0)
    limit(2 * one)
    layers = [layer("lru", seed) for seed in range(3)]
    expected = [linear(inputs(), QINSCodec.decode(*(getattr(each, n) for n in BUFFERS)), each.bias) for each in layers]
    for turn in (0, 1, 0, 2):
        assert torch.equal(layers[turn](inputs()), expected[turn])
    assert [each.cached_bytes for each in layers] == [one, 0, one] and recently_used.nbytes == 2 * one
    limit(one)
    assert [each.cached_bytes for each in layers] == [0, 0, one]
    limit(one - 1)
    assert torch.equal(layers[1](inputs()), expected[1]) and recently_used.nbytes == 0
    assert layers[1].cached_bytes == 0


def test_qn9_lru_counts_no_layer_that_is_gone(limit: Callable[[int], None]) -> None:
    limit(0)
    limit(4 * 24)
    gone = layer("lru")
    gone(inputs())
    assert recently_used.nbytes == 4 * 24
    del gone
    gc.collect()
    assert recently_used.nbytes == 0


def test_qn9_lru_has_256_mib_unless_told() -> None:
    assert QINSLinear(3, 2).cache == "lru" and RecentlyUsed().limit_bytes == LIMIT_BYTES == 256 << 20
