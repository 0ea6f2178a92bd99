"""CK-2, QN-20: between whole checkpoints of the qins tier only differences are kept, and nothing is lost by that."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.workers.checkpoint.test_checkpoint_qins import training
from workers.checkpoint import (
    BackgroundWriter,
    CheckpointError,
    Published,
    list_checkpoints,
    load,
    load_newest,
    prune,
    read_manifest,
    set_aside,
    verify,
)
from workers.checkpoint import draft as draft_module
from workers.checkpoint.chain import Chain
from workers.checkpoint.codec import CHUNK_BYTES, Decoder, Encoder, Link
from workers.checkpoint.deltas import DELTAS, WHOLE, Coded, add, least_bytes, subtract
from workers.checkpoint.errors import StorageError
from workers.checkpoint.grids import GRIDS, ZERO, LogarithmicGrid, entropy
from workers.checkpoint.lossy import BLOCK, INT4, INT8, LOG8U, LOSSY, codecs_of
from workers.checkpoint.manifest import _checksum, manifest_checksum
from workers.checkpoint.reader import LONGEST_CHAIN
from workers.state import Captured, ReplicatedState

Publish = Callable[..., Published]


def whole(tensor: Tensor, codec: str, chunk_bytes: int = 1 << 20) -> Coded:
    """As a writer keeps it of a tensor that it has written whole."""
    encoder = Encoder(chunk_bytes=chunk_bytes)
    kept = encoder.coded(tensor, codec)
    assert kept is not None
    encoder.encode_lossy("t", tensor, codec, kept)
    return kept


def read(payloads: Iterable[bytes], base: Coded) -> tuple[Tensor, Coded]:
    """What a reader makes of differences."""
    after, parts = Coded(base.codec, base.dtype, base.shape, base.chunk), []
    for payload, (grid, codes) in zip(payloads, base.parts, strict=True):
        found, decode = add(np.frombuffer(payload, np.uint8), grid, codes)
        parts.append(decode())
        after.parts.append((grid, found))
    return torch.cat(parts), after


def walk(codec: str, count: int, by: float, generator: torch.Generator) -> list[Tensor]:
    """A tensor as it changes over ten checkpoints; with zeros, and of many decades where the code is logarithmic."""
    start = torch.randn(count, generator=generator)
    if codec == LOG8U:
        start = (start * torch.exp(4 * torch.randn(count, generator=generator)) * 1e-4).square()
    start[:5] = 0
    tensors = [start]
    for _ in range(9):
        noise = torch.randn(count, generator=generator)
        before = tensors[-1]
        tensors.append(before * torch.exp(by * noise) if codec == LOG8U else before + by * noise * (before != 0))
    return tensors


@pytest.mark.parametrize("codec", DELTAS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(700, 3000),
    by=st.floats(1e-4, 0.05),
    chunk_bytes=st.sampled_from([1 << 20, 4 * BLOCK, 1000, 4]),
)
def test_qn20_after_any_number_of_differences_the_error_is_that_of_one_step(
    codec: str, seed: int, count: int, by: float, chunk_bytes: int
) -> None:
    """It does not accumulate: every one of the chain is as near to its tensor as if it stood alone on the ranges of the
    base. The writer and a reader have the same codes."""
    tensors = walk(codec, count, by, torch.Generator().manual_seed(seed))
    chunk_bytes = max(chunk_bytes, 4 * BLOCK) if codec == INT8 else max(chunk_bytes, 1000)
    at_writer = at_reader = whole(tensors[0], codec, chunk_bytes)
    steps = 0
    for tensor in tensors[1:]:
        found = subtract(tensor, at_writer)
        if found is None:  # it has moved too far
            break
        steps += 1
        payloads, at_writer = found
        decoded, at_reader = read(list(payloads), at_reader)
        for (_, ours), (_, theirs) in zip(at_writer.parts, at_reader.parts, strict=True):
            assert np.array_equal(ours, theirs)
        assert torch.equal(decoded == 0, tensor == 0) or codec == INT8
        if codec == INT8:
            grid_scales = torch.cat([torch.from_numpy(grid.values(np.ones_like(codes))) for grid, codes in at_writer.parts])
            assert bool(((decoded - tensor).abs() <= grid_scales * (0.5 + 1e-4)).all())
        else:
            grid = at_writer.parts[0][0]
            assert isinstance(grid, LogarithmicGrid)
            low, high = grid.ends
            kept = tensor > 0
            relative = float((decoded[kept].double() / tensor[kept].double() - 1).abs().max())
            assert relative <= math.expm1((high - low) / 508 + 2e-5) + 3e-6
    assert steps > 0 or by > 1e-3


@pytest.mark.parametrize("codec", DELTAS)
def test_qn20_what_has_hardly_moved_takes_a_bit_or_two(codec: str) -> None:
    """Each weight × (1 + 1e-3 N(0, 1)), as in QN-20."""
    generator = torch.Generator().manual_seed(1)
    first = walk(codec, 200_000, 0.0, generator)[0]
    second = first * (1 + 1e-3 * torch.randn(len(first), generator=generator))
    encoder, base = Encoder(), whole(first, codec, CHUNK_BYTES)
    found = encoder.encode_delta("t", second, base)
    assert found is not None
    bits = 8 * sum(map(len, found[1])) / len(first)
    assert bits < (1.4 if codec == INT8 else 0.5)
    assert found[0].codec == DELTAS[codec] and WHOLE[found[0].codec] == codec


def test_qn20_what_leaves_the_ranges_far_is_kept_as_it_is() -> None:
    """And no longer where it is more than one in a hundred."""
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(10_000, generator=generator)
    base = whole(first, INT8)
    second = first.clone()
    second[::200] = 1e6 * torch.randn(50, generator=generator)
    found = subtract(second, base)
    assert found is not None
    decoded, after = read(found[0], base)
    assert torch.equal(decoded[::200], second[::200])
    again = subtract(second, after)  # their codes do not come near, so they are kept again
    assert again is not None and torch.equal(read(again[0], after)[0][::200], second[::200])
    second[::50] = 1e6
    assert subtract(second, base) is None


def test_qn20_a_second_moment_that_begins_or_ends_is_no_difference_of_codes() -> None:
    """Of a row of an embedding that was never used until now."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(5000, generator=generator).square() * 1e-6
    first[:30] = 0
    base = whole(first, LOG8U)
    second = first.clone()
    second[:20], second[40:45] = 3e-7, 0
    found = subtract(second, base)
    assert found is not None
    decoded, after = read(found[0], base)
    assert torch.equal(decoded[:30], second[:30]) and torch.equal(decoded == 0, second == 0)
    third = second.clone()
    third[:20] *= 1.02
    found = subtract(third, after)
    assert found is not None
    payloads = list(found[0])
    decoded, _ = read(payloads, after)
    assert torch.allclose(decoded, third, rtol=0.1, atol=0) and payloads[0][5000] == 0, "there is no escape any more"


@pytest.mark.parametrize(
    ("codec", "change"),
    [
        (INT8, lambda tensor: 5 * torch.randn(len(tensor), generator=torch.Generator().manual_seed(9))),  # another tensor
        (INT8, lambda tensor: 0.7 * tensor),  # steps 1.4 times as large as they could be
        (INT8, lambda tensor: 1e-3 * tensor),  # all would be 0
        (INT8, lambda tensor: torch.cat([tensor[: 5 * BLOCK] * 1e-4, tensor[5 * BLOCK :]])),  # an eighth of the blocks
        (LOG8U, lambda tensor: tensor.sqrt()),  # half the range
        (LOG8U, lambda tensor: tensor.flip(0)),
    ],
    ids=["other", "smaller", "tiny", "some blocks", "narrower", "moved"],
)
def test_ck2_what_is_better_written_whole_is(codec: str, change: Callable[[Tensor], Tensor]) -> None:
    tensor = walk(codec, 5000, 0.0, torch.Generator().manual_seed(4))[0]
    assert subtract(tensor, whole(tensor, codec)) is not None
    assert subtract(change(tensor), whole(tensor, codec)) is None


def test_entropy_is_that_of_the_frequencies() -> None:
    assert entropy(np.zeros(1000, np.int16)) == 0.0
    assert entropy(np.arange(256).repeat(40)) == pytest.approx(8.0)
    assert entropy(np.array([0, 0, 0, 1] * 100_000)) == pytest.approx(0.8113, abs=1e-3)


@pytest.mark.parametrize("codec", DELTAS)
def test_qn20_a_chain_is_decoded_chunk_by_chunk(codec: str) -> None:
    """As it is from one chunk; and a digest that is not that of a link is that link's damage."""
    tensors = walk(codec, 5000, 1e-4, torch.Generator().manual_seed(6))
    decoded = []
    for chunk_bytes in (4096, 1 << 20):
        encoder = Encoder(chunk_bytes=chunk_bytes)
        base = encoder.coded(tensors[0], codec)
        assert base is not None
        record, blobs = encoder.encode_lossy("t", tensors[0], codec, base)
        links = [Link(record, as_bytes(blobs), Path("0"))]
        for index, tensor in enumerate(tensors[1:4], 1):
            found = encoder.encode_delta("t", tensor, base)
            assert found is not None
            record, blobs, base = found
            links.insert(0, Link(record, as_bytes(blobs), Path(str(index))))
        assert len(blobs) == (5 if chunk_bytes == 4096 else 1)
        decoded.append(Decoder().decode_chain(links))
        wrong = links[1].record.model_copy(update={"checksum": "0" * 32})
        with pytest.raises(CheckpointError, match=r"^2 is damaged: the bytes of tensor 't' do not match"):
            Decoder().decode_chain([links[0], links[1]._replace(record=wrong), *links[2:]])
    assert torch.equal(*decoded)
    assert float((decoded[0] - tensors[3]).norm() / tensors[3].norm()) < 0.05


def as_bytes(blobs: list[bytes]) -> Callable[[int], Any]:
    return lambda index: np.frombuffer(blobs[index], np.uint8)


# ---------------------------------------------------------------------- checkpoints


def state_at(step: int) -> Captured:
    """Of a training that moves by a little: its weights, moments and what has no codec."""
    generator = torch.Generator().manual_seed(5)
    weights, noise = (0.05 * torch.randn(300, 128, generator=generator) for _ in range(2))
    gradient = torch.randn(300, 128, generator=generator)
    now = torch.Generator().manual_seed(step)
    tensors = {
        "parameter.a.weight": weights + 2e-3 * step * noise,
        "parameter.norm.weight": torch.ones(40),
        "buffer.low": torch.randn(7, generator=now),
        "optimizer.a.weight|exp_avg": 1e-3 * torch.randn(300, 128, generator=now),
        "optimizer.a.weight|exp_avg_sq": (1e-6 * gradient).square() * (1 + 0.01 * step),
        "optimizer.a.weight|step": torch.tensor(float(step)),
        "kept.a.weight": weights,
    }
    return Captured(tensors, {"at": step})


@pytest.fixture
def chained(publish: Publish) -> Callable[..., Published]:
    """`chained(step)` saves the state of a step as one of a chain of four."""
    chain = Chain()

    def run(step: int, **arguments: Any) -> Published:
        arguments = {"state": state_at(step), "tier": "qins", "chain": chain, "whole_every": 4, **arguments}
        return publish(step=step, **arguments)

    return run


def codec_in(folder: Path, name: str) -> str:
    """Of a tensor, as its file says."""
    header = (folder / "shard-00000.qins").read_bytes()
    size = int.from_bytes(header[:8], "little")
    records = json.loads(json.loads(header[8 : 8 + size])["__metadata__"]["tensors"])
    return next(record["codec"] for record in records if record["name"] == name)


def test_ck2_between_whole_ones_there_are_differences(chained: Publish) -> None:
    published = [chained(step) for step in range(1, 7)]
    names = [each.path.name for each in published]
    assert [each.base for each in published] == [None, *names[:3], None, names[4]]
    for step, each in enumerate(published, 1):
        assert verify(each.path).base == read_manifest(each.path).base
        back, state = load(each.path), state_at(step)
        assert back.meta == state.meta and list(back.tensors) == list(state.tensors)
        for name in ("buffer.low", "optimizer.a.weight|step"):
            assert torch.equal(back.tensors[name], state.tensors[name])
        for name in codecs_of(state.tensors):
            error = float((back.tensors[name] - state.tensors[name]).norm() / state.tensors[name].norm())
            rough = 0.12 if each.base is not None else 0.01  # of first moments, which are forgotten
            assert error < (rough if name.endswith("exp_avg") else 0.04 if name.endswith("exp_avg_sq") else 0.01)
    assert all(2.5 * each.bytes < published[0].bytes for each in published[1:4])
    assert codec_in(published[1].path, "parameter.a.weight") == DELTAS[INT8]
    assert codec_in(published[1].path, "optimizer.a.weight|exp_avg_sq") == DELTAS[LOG8U]
    assert codec_in(published[1].path, "optimizer.a.weight|exp_avg") == INT4
    assert codec_in(published[4].path, "optimizer.a.weight|exp_avg") == INT8


def test_ck2_a_difference_may_be_cut_into_other_files(chained: Publish) -> None:
    """Than its base: what belongs together is found by name."""
    first, second, third = chained(1, shard_bytes=1000), chained(2, shard_bytes=160_000), chained(3)
    shards = [len(read_manifest(each.path).shards) for each in (first, second, third)]
    assert shards[0] > shards[1] > shards[2] == 1
    name = "parameter.a.weight"
    for step, each in enumerate((first, second, third), 1):
        assert float((load(each.path).tensors[name] - state_at(step).tensors[name]).abs().max()) < 2e-3


def test_ck2_exact_ones_between_them_change_nothing(chained: Publish, publish: Publish) -> None:
    first = chained(1)
    publish(step=2, state=state_at(2))
    assert chained(3).base == first.path.name


def test_ck2_weights_in_another_codec_are_written_whole_each_time(chained: Publish) -> None:
    first, second = chained(1, weights="v1"), chained(2, weights="v1")
    assert second.base == first.path.name
    assert codec_in(second.path, "parameter.a.weight") == "qins.v1/1"
    assert codec_in(second.path, "optimizer.a.weight|exp_avg_sq") == DELTAS[LOG8U]


def test_ck2_other_weights_are_no_difference_to_the_last_ones(chained: Publish) -> None:
    """After one that holds a NaN, which is kept bit for bit, the tensor is written whole."""
    chained(1)
    broken = state_at(2)
    broken.tensors["parameter.a.weight"][0, 0] = math.nan
    second, third = chained(2, state=broken), chained(3)
    assert "NaN" in read_manifest(second.path).refused["parameter.a.weight"]
    assert load(second.path).tensors["parameter.a.weight"].isnan().sum() == 1
    assert third.base == second.path.name and codec_in(third.path, "parameter.a.weight") == INT8


def test_ck2_the_next_one_is_whole_where_the_last_is_not_there(chained: Publish, publish: Publish, tmp_path: Path) -> None:
    """Deleted, or set aside as wrong; or of another model, or in another folder; or not published at all."""
    first = chained(1)
    shutil.rmtree(first.path)
    second = chained(2)
    assert second.base is None
    set_aside(second.path.parent, 1)
    third = chained(3)
    assert third.base is None
    assert chained(4, root=tmp_path / "other").base is None
    other = state_at(5)
    other.tensors["parameter.b"] = torch.randn(5)
    assert chained(5, state=other, root=tmp_path / "other").base is None
    with pytest.raises(CheckpointError, match="its generation is over"):
        chained(6, state=other, fence=lambda: False, root=tmp_path / "other")
    assert chained(7, state=other, root=tmp_path / "other").base == "step-5-gen-1.2-qins"


def test_ck2_a_damaged_base_costs_its_chain_and_no_more(chained: Publish, publish: Publish) -> None:
    """And says so, of each that is lost."""
    exact = publish(step=1, state=state_at(1))
    chain = [chained(step) for step in range(2, 6)]
    shard = chain[1].path / "shard-00000.qins"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    root = exact.path.parent
    skipped: list[str] = []
    found = load_newest(root, on_skip=lambda entry: skipped.append(entry.reason))
    assert found is not None and found[0].path == chain[0].path
    assert len(skipped) == 3 and all(str(shard) in reason and "checksum" in reason for reason in skipped)
    shutil.rmtree(chain[0].path)
    entries = list_checkpoints(root)
    assert [entry.valid for entry in entries] == [False, False, False, None]
    assert entries[2].reason == (
        f"{chain[1].path} holds only the difference to {chain[0].path.name}, which is not beside it"
    )
    found = load_newest(root)
    assert found is not None and found[0].path == exact.path


def test_ck2_another_base_of_that_name_is_refused(chained: Publish, publish: Publish) -> None:
    first, second = chained(1), chained(2)
    shutil.rmtree(first.path)
    publish(step=1, state=state_at(9), tier="qins")
    with pytest.raises(CheckpointError, match=f"to another {first.path.name} than the one that is beside it"):
        load(second.path)


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_ck6_what_needs_a_damaged_one_is_not_sound(broken: int, chained: Publish) -> None:
    """So it is no reason to delete an older chain that is; nor is there a difference to it any more."""
    chain = Chain()
    older = [chained(step, chain=chain, whole_every=2) for step in range(1, 3)]
    chain.forget()
    newer = [chained(step, chain=chain) for step in range(3, 6)]
    assert [each.base is None for each in newer] == [True, False, False]
    shard = newer[broken].path / "shard-00000.qins"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    calls: list[int] = []
    prune(older[0].path.parent, 2, lambda: True, lambda entry: calls.append(entry.step))
    left = {entry.step for entry in list_checkpoints(older[0].path.parent)}
    assert {1, 2} <= left if broken < 2 else left == {3, 4, 5}
    assert calls == [5, 4, 3][: 3 - broken]
    chain.forget()
    assert chained(6, chain=chain).base is None


def test_ck2_a_chain_whose_first_link_is_gone_is_not_made_longer(chained: Publish) -> None:
    first, _ = chained(1), chained(2)
    shutil.rmtree(first.path)
    assert chained(3).base is None


def test_ck6_a_base_that_vanishes_while_a_difference_is_written(chained: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is noticed before it is published, and the next attempt is whole."""
    first = chained(1)
    with monkeypatch.context() as patch:
        sync = draft_module._sync_folder

        def and_delete(path: Path) -> None:
            shutil.rmtree(first.path, ignore_errors=True)
            sync(path)

        patch.setattr(draft_module, "_sync_folder", and_delete)
        with pytest.raises(StorageError, match=r"which it holds the difference to, has vanished"):
            chained(2)
    assert chained(2).base is None


def test_ck2_float64_that_float32_does_not_hold_is_kept_bit_for_bit_in_a_difference(publish: Publish) -> None:
    """A second moment that decays below it."""
    chain = Chain()
    for step, smallest in ((1, 1e-30), (2, 1e-60)):
        moment = torch.linspace(0.5, 1.0, 300, dtype=torch.float64)
        moment[0] = smallest
        state = Captured({"optimizer.w|exp_avg_sq": moment}, {})
        path = publish(step=step, state=state, tier="qins", chain=chain, whole_every=8).path
    assert torch.equal(load(path).tensors["optimizer.w|exp_avg_sq"], moment)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_ck6_what_another_is_a_difference_to_is_not_deleted(keep: int, chained: Publish) -> None:
    published = [chained(step) for step in range(1, 7)]  # 5 is whole again
    root = published[0].path.parent
    deleted = prune(root, keep, lambda: True)
    kept = {entry.step for entry in list_checkpoints(root)}
    assert kept == ({5, 6} if keep < 3 else {1, 2, 3, 4, 5, 6})
    assert len(deleted) == 6 - len(kept)
    assert all(entry.valid is not False for entry in list_checkpoints(root))
    load(published[5].path)


def test_ck7_a_writer_goes_on_with_its_chain_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed was never a base."""
    outcomes: list[Any] = []
    root = tmp_path / "checkpoints"
    writer = BackgroundWriter(root, job="job", on_done=outcomes.append, first_retry_seconds=0.01)
    arguments: dict[str, Any] = {"generation": (1, 1), "lineage": 1, "world": 1, "fence": lambda: True}

    def submit(step: int) -> None:
        writer.submit(state_at(step), step=step, tier="qins", whole_every=8, **arguments)
        assert writer.wait(60)

    submit(1)
    with monkeypatch.context() as patch:
        calls: list[int] = []

        def refuses(*_: Any) -> None:
            calls.append(1)
            if len(calls) in (1, 3):  # before the rename, and after it
                raise OSError(28, "No space left on device")

        patch.setattr("workers.checkpoint.draft._sync_folder", refuses)
        submit(2)
    submit(3)
    assert writer.close(60)
    names = [each.path.name for each in outcomes if isinstance(each, Published)]
    assert [each.base for each in outcomes if isinstance(each, Published)] == [None, names[0], names[0]]
    assert sum(isinstance(each, CheckpointError) for each in outcomes) == 2
    for step, entry in zip((3, 2, 1), list_checkpoints(root), strict=True):
        error = load(entry.path).tensors["parameter.a.weight"] - state_at(step).tensors["parameter.a.weight"]
        assert float(error.norm()) < 0.01 * float(state_at(step).tensors["parameter.a.weight"].norm())


@pytest.mark.parametrize("steps", [20, 300], ids=["early", "late"])
def test_ck9_training_goes_on_from_a_difference_as_from_a_whole_one(steps: int, publish: Publish, tmp_path: Path) -> None:
    """After a chain of six, ten steps apart, no worse than from the same state written whole; and what is lost is small
    beside what the steps gain."""
    model, optimizer, advance = training(steps)
    state, chain = ReplicatedState(model, optimizer), Chain()
    for index in range(6):
        last = publish(step=steps + 10 * index, state=state.capture(), tier="qins", chain=chain, whole_every=8)
        if index < 5:
            for _ in range(10):
                advance()
    assert len(list_checkpoints(last.path.parent)[0].bases) == 5
    codecs = [codec_in(last.path, name) for name in state.capture().tensors if name.startswith("parameter")]
    assert codecs.count(DELTAS[INT8]) >= 3
    now = state.capture()
    paths = {
        "exact": publish(step=steps + 50, state=now).path,
        "whole": publish(step=steps + 50, state=now, tier="qins", root=tmp_path / "whole").path,
        "difference": last.path,
    }
    losses: dict[str, list[float]] = {}
    for name, path in paths.items():
        state.restore(load(path))
        losses[name] = [advance() for _ in range(41)]
    exact = losses["exact"]
    off = {name: abs(each[0] - exact[0]) for name, each in losses.items()}
    assert 0 < off["difference"] < 1.2 * off["whole"] + 1e-3 * exact[0]
    assert abs(losses["difference"][40] - exact[40]) < 0.1 * (exact[0] - exact[40])
    assert max(losses["difference"]) <= 1.02 * max(losses["whole"])


# ---------------------------------------------------------------------- hostile files


@pytest.mark.parametrize("codec", DELTAS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_ck10_any_difference_is_added_or_refused(codec: str, data: st.DataObject) -> None:
    """To any base: finite numbers, or a ValueError."""
    n = data.draw(st.integers(1, 200))
    size = LOSSY[codec].size(n)
    try:
        grid, codes = GRIDS[codec].split(np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8), n)
    except ValueError:
        return
    count = data.draw(st.sampled_from([0, 0, 1, 2]))
    head = data.draw(st.binary(min_size=n, max_size=n)) + count.to_bytes(4, "little")
    payload = head + data.draw(st.binary(min_size=10 * count, max_size=10 * count))
    for _ in range(3):
        try:
            codes, decode = add(np.frombuffer(payload, np.uint8), grid, codes)
        except ValueError as error:
            assert "escape" in str(error)
            return
        assert bool(decode().isfinite().all()) and decode().shape == (n,)


@pytest.mark.parametrize("cut", [0, 1, 3, 15, 16])
def test_ck10_a_short_or_long_difference_is_refused(cut: int) -> None:
    tensor = torch.randn(12, generator=torch.Generator().manual_seed(0))
    base = whole(tensor, INT8)
    found = subtract(tensor, base)
    assert found is not None
    (payload,) = found[0]
    assert len(payload) == least_bytes(12) == 16
    grid, codes = base.parts[0]
    with pytest.raises(ValueError, match=r"fewer than the|escapes are listed"):
        add(np.frombuffer(payload[:cut] if cut < 16 else payload + b"\0", np.uint8), grid, codes)


def rewritten(folder: Path, **fields: Any) -> None:
    """A manifest that says something else, with a checksum that fits."""
    known = {**json.loads((folder / "manifest.json").read_text()), **fields}
    known.pop("checksum")
    (folder / "manifest.json").write_text(json.dumps({**known, "checksum": _checksum(known)}))


@pytest.mark.parametrize("name", ["../elsewhere", "step-1-gen-1.2", "/etc", "step-1-gen-1.2-qins/../x", ""])
def test_ck10_a_base_is_a_checkpoint_of_the_tier_beside_it(name: str, chained: Publish) -> None:
    chained(1)
    second = chained(2)
    rewritten(second.path, base={"folder": name, "checksum": "0" * 32})
    with pytest.raises(CheckpointError, match="is not the folder of a checkpoint of the qins tier"):
        load(second.path)


def test_ck10_a_base_that_says_it_is_of_another_tier_is_refused(chained: Publish) -> None:
    first, second = chained(1), chained(2)
    rewritten(first.path, tier="zzz")
    rewritten(second.path, base={"folder": first.path.name, "checksum": manifest_checksum(first.path)})
    with pytest.raises(CheckpointError, match=r"it is of tier 'zzz', and step-2-gen-1\.2-qins is a difference"):
        load(second.path)
    assert [entry.valid for entry in list_checkpoints(first.path.parent)] == [False, None]


def test_ck10_an_exact_checkpoint_has_no_base(chained: Publish, publish: Publish) -> None:
    base = read_manifest((chained(1), chained(2))[1].path).base
    assert base is not None
    exact = publish(step=3)
    rewritten(exact.path, base=base.model_dump())
    with pytest.raises(CheckpointError, match="of tier 'exact', which holds no differences"):
        load(exact.path)


def test_ck10_a_difference_that_says_it_is_whole_is_refused(chained: Publish) -> None:
    chained(1)
    second = chained(2)
    fields = json.loads((second.path / "manifest.json").read_text())
    del fields["base"]
    (second.path / "manifest.json").write_text(json.dumps(fields))
    rewritten(second.path)
    with pytest.raises(CheckpointError, match="what it is a difference to is not here"):
        load(second.path)


def test_ck10_a_base_with_other_tensors_is_refused(chained: Publish, publish: Publish) -> None:
    """Also where all checksums fit."""
    first, second = chained(1), chained(2)
    for change, sentence in (("parameter.b", "does not hold tensor"), ("shape", "of another shape, dtype or codec")):
        other = state_at(1)
        if change == "shape":
            other.tensors["parameter.a.weight"] = torch.randn(300, 127)
        else:
            other.tensors = {change: torch.randn(3), **other.tensors}
        shutil.rmtree(first.path)
        publish(step=1, state=other, tier="qins")
        rewritten(second.path, base={"folder": first.path.name, "checksum": manifest_checksum(first.path)})
        with pytest.raises(CheckpointError, match=sentence):
            load(second.path)


def test_ck10_a_chain_without_end_is_refused(chained: Publish, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cycle can be closed, as each has the checksum of the one before."""
    monkeypatch.setattr("workers.checkpoint.reader.LONGEST_CHAIN", 3)
    *_, fine, longer = [chained(step, whole_every=8) for step in range(1, 5)]
    assert LONGEST_CHAIN >= 8
    load(fine.path)
    with pytest.raises(CheckpointError, match="a difference to more than 3 others"):
        load(longer.path)


@pytest.mark.parametrize("link", [0, 1])
def test_ck10_no_flipped_byte_of_any_link_is_believed(link: int, chained: Publish) -> None:
    chain = [chained(1), chained(2)]
    for name in ("shard-00000.qins", "manifest.json"):
        path = chain[link].path / name
        sound = path.read_bytes()
        for place in range(0, len(sound), max(1, len(sound) // 40)):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
            with pytest.raises(CheckpointError):
                load(chain[1].path)
        path.write_bytes(sound)
    load(chain[1].path)


def test_qn20_codes_of_zero_are_no_neighbours_of_others() -> None:
    """A difference that would lead from or to 0 leads nowhere."""
    base = whole(torch.tensor([0.0, 1e-6, 1e-3]), LOG8U)
    grid, codes = base.parts[0]
    assert codes[0] == ZERO
    after, decode = add(np.array([1, 1, -1, 0, 0, 0, 0], np.int8).view(np.uint8), grid, codes)
    assert after[0] == ZERO and float(decode()[0]) == 0.0 and float(decode()[1]) < 1e-6 and float(decode()[2]) > 1e-3
