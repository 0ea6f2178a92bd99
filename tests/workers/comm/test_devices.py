"""CC-1 and CC-2 of the hook where ranks have devices: here the CPU is each rank's device, and gloo stands for NCCL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.workers.comm import scenarios
from tests.workers.comm.ranks import run
from tests.workers.comm.scenarios import SMALL_BUCKETS, OnDevices
from tests.workers.comm.test_residuals import owed

CODECS = ("none", "int8", "topk 0.05", "powersgd 2")


def trained(folder: Path, shape: tuple[int, ...], lacking: list[int]) -> list[list[OnDevices]]:
    """By codec, and then by rank; many buckets, so that all-gathers wait for their turns."""
    options = [{"policy": "fixed", "codec": codec, "dense_steps": 3} for codec in CODECS]
    ranks = run(folder, shape, _train, options, lacking)
    return [[each[index] for each in ranks] for index in range(len(CODECS))]


def _train(options: list[dict[str, object]], lacking: list[int]) -> list[OnDevices]:
    return scenarios.train_on_devices(options, lacking, bucket_cap_mb=SMALL_BUCKETS)


@pytest.mark.parametrize(
    "shape",
    [(2,), pytest.param((2, 2), marks=pytest.mark.long), pytest.param((2, 1), marks=pytest.mark.long), (3, 2)],
    ids=str,
)
def test_cc2_buckets_go_over_the_group_and_give_the_bits_of_shared_memory(tmp_path: Path, shape: tuple[int, ...]) -> None:
    on_devices, in_memory = (trained(tmp_path, shape, lacking) for lacking in ([], list(range(sum(shape)))))
    for ours, usual in zip(on_devices, in_memory, strict=True):
        hosts = [ranks for ranks in shape for _ in range(ranks)]
        assert all((each.reductions > 0) == (ranks > 1) for each, ranks in zip(ours, hosts, strict=True))
        assert not any(each.reductions for each in usual)
        assert {each.outcome.digest for each in ours} == {ours[0].outcome.digest}
        assert ours[0].outcome.hosts == usual[0].outcome.hosts
        assert ours[0].outcome.sent == usual[0].outcome.sent
        if len(shape) > 1:
            assert ours[0].outcome.digest == usual[0].outcome.digest
        assert torch.allclose(ours[0].outcome.parameters, usual[0].outcome.parameters, atol=1e-5)


def test_cc2_where_one_rank_of_a_host_has_no_device_that_host_uses_memory(tmp_path: Path) -> None:
    for each in trained(tmp_path, (2, 2), [3]):
        assert [rank.reductions > 0 for rank in each] == [True, True, False, False]
        assert {rank.outcome.digest for rank in each} == {each[0].outcome.digest}


@pytest.mark.parametrize("codec", ["int8", "topk 0.05", "powersgd 2"])
def test_cc10_with_devices_nothing_is_lost(tmp_path: Path, codec: str) -> None:
    options = {"policy": "fixed", "codec": codec, "dense_steps": 5}
    ranks = run(tmp_path, (2, 2), scenarios.known_on_devices, options, {"bucket_cap_mb": 0.001})
    left = owed(ranks, named=False)
    assert {rank.digest for rank in ranks} == {ranks[0].digest}
    assert bool(left.any())
    assert torch.allclose(ranks[0].applied + left, ranks[0].given, atol=1e-5)


@pytest.mark.parametrize("codec", ["none", "int8"])
@pytest.mark.parametrize("shape", [pytest.param((2,), marks=pytest.mark.long), (2, 2)], ids=str)
def test_cc7_a_dead_rank_ends_backward_on_all_others(tmp_path: Path, shape: tuple[int, ...], codec: str) -> None:
    victim = sum(shape) - 1
    ranks = run(tmp_path, shape, scenarios.one_is_killed_on_devices, victim, codec)
    assert ranks.pop(victim) is None
    assert ranks
    for heard in ranks:
        assert heard.startswith("5 ") and "ExchangeError: " in heard
