"""CC-1, CC-2 and CC-5 of the exchange among devices, in real processes: gloo and the CPU stand for NCCL and its devices."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers.collectives import device_ranks
from tests.workers.collectives.device_ranks import LONGEST, Bucket
from tests.workers.comm.ranks import run

FEW = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))


def buckets(world: int) -> st.SearchStrategy[Bucket]:
    """Shards of any sizes, empty ones too."""
    edge = st.integers(0, LONGEST)
    cuts = st.lists(edge, min_size=world - 1, max_size=world - 1).map(sorted).map(tuple)
    return st.builds(Bucket, st.one_of(st.sampled_from([0, 1, 64, LONGEST]), edge), cuts)


def steps(world: int) -> st.SearchStrategy[list[list[Bucket]]]:
    even = Bucket(64 * world, tuple(64 * (rank + 1) for rank in range(world - 1)))
    drawn = st.lists(st.lists(buckets(world), min_size=1, max_size=6), min_size=2, max_size=6)
    return drawn.map(lambda found: [[even], *found])


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("world", [2, 3])
@FEW
@given(st.data())
def test_cc2_cc5_devices_give_the_sums_of_shared_memory_in_whatever_order_shards_come_back(
    world: int, alone: bool, data: st.DataObject
) -> None:
    drawn = data.draw(steps(world))
    with TemporaryDirectory() as meeting, TemporaryDirectory(dir="/dev/shm") as memory:
        ranks = run(Path(meeting), (world,), device_ranks.both_ways, Path(memory), drawn, alone)
    for step, of_step in enumerate(drawn):
        for number, bucket in enumerate(of_step):
            found = [rank[step][number] for rank in ranks]
            parts = [device_ranks.gradient(rank, step, number, bucket.elements).double() for rank in range(world)]
            total = torch.stack(parts).sum(0)
            for rank, (ways, start, stop) in enumerate(zip(found, bucket.edges, bucket.edges[1:], strict=False)):
                assert torch.equal(ways.device, found[0].device), "not the same bits on all ranks"
                assert alone or torch.equal(ways.device, ways.memory), "not the same bits as in shared memory"
                assert torch.allclose(ways.device.double(), total * (1 if alone else 2), rtol=1e-5, atol=1e-6)
                expected = total[:0] if alone else total[start:stop]
                assert torch.allclose(ways.shard.double(), expected, rtol=1e-5, atol=1e-6), f"shard of rank {rank}"


def test_cc5_what_no_other_rank_would_do_is_refused(tmp_path: Path) -> None:
    for said in run(tmp_path, (2,), device_ranks.refusals):
        assert said == [
            "a bucket is float32 [n], contiguous and on cpu, not torch.float64 [6] on cpu",
            "a bucket is float32 [n], contiguous and on cpu, not torch.float32 [3] on cpu",
            "(0, 7, 6) does not cut 6 elements into 2 shards",
            "a reduce-scatter came after end(), and the all-gathers of that step are not done",
        ]


def test_cc7_a_peer_that_is_gone_is_an_exchange_error(tmp_path: Path) -> None:
    heard, left = run(tmp_path, (2,), device_ranks.one_leaves, 1)
    assert left == "left"
    assert heard.startswith("ExchangeError: ")
