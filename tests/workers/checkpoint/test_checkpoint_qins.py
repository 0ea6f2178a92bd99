"""CK-1, QN-21: the qins tier keeps weights and moments in few bytes, the rest bit for bit, and says what it refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from workers.checkpoint import CheckpointError, Published, load, newest_valid, read_manifest, verify
from workers.checkpoint.codec import Decoder, Encoder, flaw
from workers.checkpoint.lossy import BLOCK, INT8, LOG7, LOG8, LOG8U, LOSSY, V1, WEIGHTS, codecs_of
from workers.checkpoint.manifest import _checksum
from workers.checkpoint.shard import CODECS
from workers.qat.layers import QuantActivation, QuantLinear, set_switches
from workers.qat.observers import range_observers
from workers.qins.codec import QINSCodec
from workers.state import Captured, ReplicatedState, digest

Publish = Callable[..., Published]


def round_trip(tensor: Tensor, codec: str, chunk_bytes: int = 1 << 20) -> Tensor:
    record, blobs = Encoder(chunk_bytes=chunk_bytes).encode_lossy("t", tensor, codec)
    assert flaw(record, [len(blob) for blob in blobs], CODECS["qins"]) is None
    return Decoder().decode(record, [np.frombuffer(blob, np.uint8) for blob in blobs])


@st.composite
def values(draw: st.DrawFn) -> Tensor:
    """Float tensors with zeros, over up to 30 decades, that no codec of the tier refuses unless it is unsigned."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    count = draw(st.integers(3, 400))
    tensor = torch.randn(count, generator=generator)
    tensor *= torch.exp(draw(st.floats(0, 20)) * torch.randn(count, generator=generator).clamp(-1, 1))
    tensor[:3] = torch.tensor([3.0, -0.5, 0.0])
    return tensor.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])))


@settings(max_examples=60, deadline=None)
@given(values(), st.integers(1, 2000))
def test_ck1_v1_gives_what_the_codec_decodes_to_however_it_is_cut(tensor: Tensor, chunk_bytes: int) -> None:
    expected = QINSCodec.decode(*QINSCodec.encode(tensor, cast=True), dtype=tensor.dtype)
    back = round_trip(tensor, V1, chunk_bytes)
    assert back.dtype == tensor.dtype and torch.equal(back, expected)


@settings(max_examples=60, deadline=None)
@given(values(), st.integers(1, 2000))
def test_ck1_second_moments_keep_their_ratios_over_all_decades(tensor: Tensor, chunk_bytes: int) -> None:
    """QN-21: also those below the 1e-8 that v1 ends at; zeros stay zeros."""
    squares = (tensor.float() * 1e-6).square()
    back = round_trip(squares, LOG8U, chunk_bytes)
    assert torch.equal(back == 0, squares == 0)
    positive = squares[squares > 0].double()
    spread = math.log(float(positive.max() / positive.min()))
    relative = (back[squares > 0].double() / positive - 1).abs().max()
    resolution = 2.0**-149 / float(positive.min())  # of subnormal numbers
    assert float(relative) <= math.expm1(spread / 508 + 2e-5) + 2e-6 + resolution


@settings(max_examples=60, deadline=None)
@given(values())
def test_ck1_first_moments_err_by_half_a_step_of_their_block(tensor: Tensor) -> None:
    tensor = tensor.float()
    back = round_trip(tensor, INT8)
    for block, decoded in zip(tensor.split(BLOCK), back.split(BLOCK), strict=True):
        step = float(block.abs().max()) / 127 * (1 + 2**-8)  # the scale is rounded to 8 bits
        assert float((block - decoded).abs().max()) <= step * (0.5 + 1e-4)


@pytest.mark.parametrize("codec", [LOG7, LOG8])
@settings(max_examples=60, deadline=None)
@given(values(), st.integers(400, 2000))
def test_ck1_qn19_weights_in_blocks_of_a_logarithm_keep_signs_zeros_and_what_is_no_number(
    codec: str, tensor: Tensor, chunk_bytes: int
) -> None:
    """However it is cut; a chunk that holds a NaN is longer."""
    tensor[-1] = math.nan
    back = round_trip(tensor, codec, chunk_bytes)
    assert back.dtype == tensor.dtype and bool(back[-1].isnan())
    kept, found = tensor[:-1].double(), back[:-1].double()
    assert torch.equal(kept.sign(), found.sign())
    assert float(((found - kept).abs() / kept.abs()).nan_to_num(0.0).max()) <= (0.3 if codec == LOG7 else 0.15)


@pytest.mark.parametrize(
    ("codec", "tensor", "reason"),
    [
        (V1, torch.ones(4), "equal"),
        (V1, torch.tensor([1.0, math.nan]), "NaN"),
        (V1, torch.empty(0), "empty"),
        (LOG8U, torch.tensor([1.0, -1.0]), "negative"),
        (LOG8U, torch.tensor([1.0, math.inf]), "Inf"),
        (LOG8U, torch.zeros(4), "equal"),
        (LOG8U, torch.tensor([0.0, 2.0, 2.0]), "equal"),
        (INT8, torch.tensor([1.0, math.nan]), "NaN"),
        (LOG7, torch.full((200,), math.nan), "200 of 200"),
        (LOG8, torch.empty(0), "empty"),
        (INT8, torch.empty(0), "empty"),
    ],
)
def test_qn21_what_a_codec_cannot_hold_is_refused_with_the_reason(codec: str, tensor: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Encoder().encode_lossy("t", tensor, codec)


@pytest.mark.parametrize("name", WEIGHTS)
def test_ck1_the_field_chooses_the_codec(name: str) -> None:
    one, weights = torch.ones(2), WEIGHTS[name]
    chosen = {
        "parameter.a.weight": weights,
        "parameter.exp_avg_sq": weights,
        "kept.a.weight": weights,
        "optimizer.a.weight|exp_avg": INT8,
        "optimizer.a.weight|momentum_buffer": INT8,
        "optimizer.a.weight|exp_avg_sq": LOG8U,
        "optimizer.a.weight|max_exp_avg_sq": LOG8U,
        "optimizer.a.weight|step": None,
        "buffer.low": None,
        "kept.low": None,
    }
    codecs = codecs_of(dict.fromkeys(chosen, one), name)
    assert {field: codecs.get(field) for field in chosen} == chosen
    assert codecs_of({"parameter.a": one.int()}, name) == {}


def small_state() -> Captured:
    generator = torch.Generator().manual_seed(5)
    gradient = torch.randn(300, 40, generator=generator)
    tensors = {
        "parameter.a.weight": 0.05 * torch.randn(300, 40, generator=generator),
        "parameter.norm.weight": torch.ones(40),
        "buffer.low": torch.randn(7, generator=generator),
        "buffer.updates": torch.tensor(12),
        "optimizer.a.weight|exp_avg": 1e-3 * gradient,
        "optimizer.a.weight|exp_avg_sq": (1e-6 * gradient).square(),
        "optimizer.norm.weight|exp_avg": torch.zeros(40),
        "optimizer.norm.weight|exp_avg_sq": torch.zeros(40),
        "optimizer.a.weight|step": torch.tensor(100.0),
        "kept.a.weight": 0.05 * torch.randn(300, 40, generator=generator),
        "kept.low": torch.randn(7, generator=generator),
    }
    return Captured(tensors, {"groups": [{"lr": 0.1}]})


@pytest.mark.parametrize("weights", WEIGHTS)
def test_qn21_weights_and_moments_shrink_and_the_rest_is_exact(publish: Publish, weights: str) -> None:
    """CK-1: with the codec for the weights that the JobSpec names."""
    state = small_state()
    published = publish(state=state, tier="qins", weights=weights)
    back = load(published.path)
    assert back.meta == state.meta and list(back.tensors) == list(state.tensors)
    codecs = codecs_of(state.tensors, weights)
    for name, tensor in state.tensors.items():
        assert (back.tensors[name].shape, back.tensors[name].dtype) == (tensor.shape, tensor.dtype)
        if name not in codecs or name in read_manifest(published.path).refused:
            assert torch.equal(back.tensors[name], tensor)
    for name in ("parameter.a.weight", "kept.a.weight"):
        assert torch.equal(back.tensors[name], round_trip(state.tensors[name], WEIGHTS[weights]))
        assert not torch.equal(back.tensors[name], state.tensors[name])
    assert published.bytes < published.raw_bytes / (3.6 if weights == "log8" else 3.8)  # that one has a bit more


def test_qn21_refused_tensors_are_listed_with_the_reason(publish: Publish) -> None:
    folder = publish(state=small_state(), tier="qins", weights="v1").path
    manifest = verify(folder)
    assert manifest.tier == "qins"
    assert set(manifest.refused) == {"parameter.norm.weight", "optimizer.norm.weight|exp_avg_sq"}
    assert "equal" in manifest.refused["parameter.norm.weight"]
    assert all("\n" not in reason for reason in manifest.refused.values())


def test_ck11_the_exact_tier_is_written_as_before(publish: Publish) -> None:
    """A reader of the version before, which knows no field `refused`, still reads it."""
    folder = publish().path
    assert "refused" not in json.loads((folder / "manifest.json").read_text())
    assert read_manifest(folder).refused == {}


def test_ck9_both_tiers_lie_side_by_side(publish: Publish, state: Captured) -> None:
    exact, qins = publish(step=1), publish(step=2, tier="qins")
    root = exact.path.parent
    assert [
        each and each.path for each in (newest_valid(root), newest_valid(root, "exact"), newest_valid(root, "qins"))
    ] == [
        qins.path,
        exact.path,
        qins.path,
    ]
    assert digest(load(exact.path)) == digest(state) != digest(load(qins.path))


@pytest.mark.parametrize("codec", LOSSY)
def test_qn21_equal_tensors_give_equal_records_and_blobs(codec: str) -> None:
    tensor = torch.randn(500, generator=torch.Generator().manual_seed(3)).square()
    assert Encoder().encode_lossy("t", tensor, codec) == Encoder().encode_lossy("t", tensor.clone(), codec)


@pytest.mark.parametrize("weights", ["int8", "v1"])
def test_qn21_a_second_saving_of_what_was_read_changes_no_weight(publish: Publish, weights: str) -> None:
    first = load(publish(step=1, state=small_state(), tier="qins", weights=weights).path)
    second = load(publish(step=2, state=first, tier="qins", weights=weights).path)
    for name in ("parameter.a.weight", "optimizer.a.weight|exp_avg_sq"):
        assert torch.allclose(second.tensors[name], first.tensors[name], rtol=3e-6, atol=0)


# ---------------------------------------------------------------------- resume


def training(steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], float]]:
    """A small network after `steps` of AdamW on a fixed problem, and a function that does one more and gives its loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 10))
    x = torch.randn(512, 20, generator=torch.Generator().manual_seed(1))
    y = (x[:, :10] * x[:, 10:]).argmax(1)
    x = x * torch.logspace(-3, 0, 20)  # gradients of all sizes, as embeddings have them
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    advance = stepper(model, optimizer, x, y)
    for _ in range(steps):
        advance()
    return model, optimizer, advance


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Callable[[], float]:
    def advance() -> float:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return advance


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("steps", [20, 300], ids=["early", "late"])
def test_ck9_training_goes_on_from_the_qins_tier_as_from_the_exact_one(steps: int, weights: str, publish: Publish) -> None:
    """Nothing jumps, and what is lost is small beside what the steps gain. The inputs are of three decades, and so the
    weights of as many, which a linear code of blocks holds worst."""
    losses: dict[str, list[float]] = {}
    for tier in ("exact", "qins"):
        model, optimizer, advance = training(steps)
        state = ReplicatedState(model, optimizer)
        state.restore(load(publish(step=steps, state=state.capture(), tier=tier, weights=weights).path))
        losses[tier] = [advance() for _ in range(41)]
    exact, qins = losses["exact"], losses["qins"]
    assert 0 < abs(qins[0] - exact[0]) < 2e-2 * exact[0]
    assert abs(qins[40] - exact[40]) < 0.1 * (exact[0] - exact[40])
    assert max(qins) <= 1.02 * max(exact)


def test_qn21_a_linear_code_of_the_second_moment_would_break_adam() -> None:
    """The negative test, on the step that AdamW takes next: m / (√v + 1e-8). A v rounded to 0 makes it thousands long."""
    _, optimizer, _ = training(20)
    largest = {LOG8U: 0.0, INT8: 0.0}
    for entries in optimizer.state.values():
        m, v = entries["exp_avg"], entries["exp_avg_sq"]
        for codec in largest:
            step, coded = (m.abs() / (second.sqrt() + 1e-8) for second in (v, round_trip(v, codec)))
            largest[codec] = max(largest[codec], float((coded / step)[step > 0].max()))
    assert largest[LOG8U] < 1.05 and largest[INT8] > 100


@pytest.mark.parametrize("weights", WEIGHTS)
def test_qn21_observers_and_the_plan_are_exact_and_kept_weights_are_weights(publish: Publish, weights: str) -> None:
    """CK-1: of a network in its quantization-aware epochs, with the best weights so far beside the present ones."""
    torch.manual_seed(2)
    model = nn.Sequential(QuantActivation(8), QuantLinear(20, 40, bits=8))
    optimizer = torch.optim.AdamW(model.parameters())
    state = ReplicatedState(model, optimizer)
    for scale in (1.0, 3.0):
        set_switches(model, weights=True, activations=True, state=True, observing=True)
        model(scale * torch.randn(64, 20)).square().mean().backward()
        optimizer.step()
        for observer in range_observers(model).values():
            observer.take(observer.seen)
        if scale == 1.0:
            state.keep()
    state.history.append((9, "evaluate", {"loss": 1.5}))
    state.added_epochs["qat"] = 3
    captured = state.capture()
    back = load(publish(state=captured, tier="qins", weights=weights).path)
    same = {name for name, tensor in captured.tensors.items() if torch.equal(back.tensors[name], tensor)}
    assert back.meta == captured.meta
    assert {name for name in captured.tensors if name.startswith("buffer.") or name.endswith("|step")} <= same
    kept_buffers = {f"kept.{name}" for name in state.buffers}
    assert kept_buffers and kept_buffers <= same
    assert {"parameter.1.weight", "kept.1.weight"}.isdisjoint(same)
    assert not torch.equal(back.tensors["kept.1.weight"], back.tensors["parameter.1.weight"])
    state.restore(back)
    state.put_back()
    assert torch.equal(state.parameters["1.weight"], back.tensors["kept.1.weight"])
    assert state.history == [(9, "evaluate", {"loss": 1.5})] and state.added_epochs == {"qat": 3}


# ---------------------------------------------------------------------- hostile files


def test_ck10_shapes_and_codecs_are_judged_without_the_bytes() -> None:
    record, [blob] = Encoder(chunk_bytes=64 << 20).encode_lossy("t", torch.randn(100), V1)
    known = CODECS["qins"]
    assert flaw(record, [len(blob)], known) is None
    assert "here stand 'planes" in str(flaw(record, [len(blob)]))
    assert "does not hold" in str(flaw(record.model_copy(update={"dtype": "int8"}), [len(blob)], known))
    assert "unfold" in str(flaw(record.model_copy(update={"shape": [2**23]}), [len(blob)], known))
    assert "needs" in str(flaw(record.model_copy(update={"shape": [2**62]}), [len(blob)], known))


@pytest.mark.parametrize("codec", LOSSY)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_ck10_any_payload_decodes_or_is_refused(codec: str, data: st.DataObject) -> None:
    """Also one whose checksum an attacker has made fit: numbers, or a ValueError; finite ones where the codec has no
    other."""
    n = data.draw(st.integers(1, 200))
    size = LOSSY[codec].size(n)
    payload = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    try:
        values = LOSSY[codec].unpack(payload, n)
    except ValueError as error:
        assert any(word in str(error) for word in ("range", "scale", "escapes"))
        return
    assert values.shape == (n,) and values.dtype == torch.float32
    assert codec in (LOG7, LOG8) or not bool(values.isnan().any())


@settings(max_examples=100, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flipped=st.integers(1, 255))
def test_ck10_no_flipped_byte_of_a_blob_is_believed(where: float, flipped: int) -> None:
    tensor = torch.randn(200, generator=torch.Generator().manual_seed(0))
    for codec in LOSSY:
        record, [blob] = Encoder().encode_lossy("t", tensor.square(), codec)
        content = bytearray(blob)
        content[int(where * len(content))] ^= flipped
        try:
            back = Decoder().decode(record, [np.frombuffer(bytes(content), np.uint8)])
        except ValueError:
            continue
        assert torch.equal(back, round_trip(tensor.square(), codec))


def test_ck10_a_lossy_shard_cannot_pass_for_an_exact_one(publish: Publish, tmp_path: Path) -> None:
    exact = publish(step=1, state=small_state()).path
    qins = publish(step=1, state=small_state(), tier="qins", root=tmp_path / "other").path
    shard = "shard-00000.qins"
    (exact / shard).write_bytes((qins / shard).read_bytes())
    fields = json.loads((exact / "manifest.json").read_text())
    fields["shards"] = json.loads((qins / "manifest.json").read_text())["shards"]
    del fields["checksum"]
    (exact / "manifest.json").write_text(json.dumps({**fields, "checksum": _checksum(fields)}))
    with pytest.raises(CheckpointError, match=r"format 'quantarion\.qins/1', but this version reads 'quantarion\.exact/1'"):
        load(exact)
