"""CC-2 and CC-25 of the hook on CUDA devices, as many as there are: with one only, its ranks share memory of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.workers.comm import on_cuda
from tests.workers.comm.ranks import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

CODECS = ("none", "int8", "topk 0.05", "powersgd 2")
SHAPES = [(2,), (1, 1), (2, 2), (2, 1)]


def has_its_own(shape: tuple[int, ...]) -> list[bool]:
    """Of each rank: whether it has neighbours, and each of them a device of its own."""
    count = torch.cuda.device_count()
    found, first = [], 0
    for ranks in shape:
        devices = {rank % count for rank in range(first, first + ranks)}
        found += [len(devices) == ranks > 1] * ranks
        first += ranks
    return found


@pytest.mark.parametrize("mode", ["", "bfloat16", "accumulate"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cc25_cc4_parameters_on_devices_are_the_same_bits_everywhere_and_near_those_of_ddp(
    tmp_path: Path, shape: tuple[int, ...], mode: str
) -> None:
    options = [{"policy": "fixed", "codec": codec, "dense_steps": 3} for codec in CODECS]
    ranks = run(tmp_path, shape, on_cuda.train_each, [None, *options], mode)
    plain = ranks[0][0]
    for index in range(1, 1 + len(CODECS)):
        each = [rank[index] for rank in ranks]
        assert {rank.digest for rank in each} == {each[0].digest}
        assert all(rank.steps == 20 and torch.isfinite(rank.parameters).all() for rank in each)
    near = 0.05 if mode == "bfloat16" else 1e-5
    assert torch.allclose(ranks[0][1].parameters, plain.parameters, atol=near)


def test_cc20_it_adapts_on_devices(tmp_path: Path) -> None:
    ranks = run(tmp_path, (2, 1), on_cuda.train_each, [{}], "")
    assert {rank[0].digest for rank in ranks} == {ranks[0][0].digest}


@pytest.mark.parametrize("codec", ["none", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cc6_streams_wait_for_what_they_read(tmp_path: Path, shape: tuple[int, ...], codec: str) -> None:
    """Gradients are late on the device, and what follows backward reads them on a stream of the script's own."""
    found = run(tmp_path, shape, on_cuda.gradients_are_late, codec)
    assert [rank.wrong for rank in found] == [0] * len(found)
    assert [rank.on_device for rank in found] == has_its_own(shape)


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_cc25_a_rank_alone_keeps_its_gradients_on_its_device(tmp_path: Path, codec: str) -> None:
    ((with_hook, without),) = run(tmp_path, (1,), on_cuda.train_alone, codec)
    assert with_hook == pytest.approx(without, abs=1e-5)
