"""The cells of the slow links, measured in a lab of two hosts."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.lab import Lab, can_run, namespaces
from benchmarks.links.cells import Cell, Effort, measure_times, run_steps
from benchmarks.links.gang import CellFailed, Hosts
from benchmarks.links.limit import LimitCell, measure_limit
from benchmarks.links.methods import ALONE, FP32, NONE
from benchmarks.links.tasks import TASKS, parameters

MODEL = "transformer"
CELL = {"model": MODEL, "method": FP32.key, "seed": 1}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := can_run():
        pytest.skip(reason)
    with (
        tempfile.TemporaryDirectory(prefix="ql-") as folder,
        Lab(2) as lab,
        Hosts(lab, Path(folder), [MODEL], None) as found,
    ):
        yield found


def ranks_of(hosts: Hosts) -> set[int]:
    """Every pid on the hosts."""
    return {pid for host in hosts.lab.hosts for pid in namespaces.processes(host.namespace)}


@pytest.mark.root
def test_cc27_ddp_sends_what_a_ring_sends_and_nothing_is_sent_without_an_exchange(hosts: Hosts) -> None:
    ring = 2 * (2 - 1) / 2 * parameters(TASKS[MODEL]) * 4
    idle = ranks_of(hosts)
    for rate in ("unshaped", "1000"):
        cells = [Cell("time", MODEL, "2x1", rate, method, 0) for method in (ALONE.key, FP32.key, NONE.key)]
        alone, peer, ours = (found for _, found in measure_times(hosts, cells, Effort(steps=7, least=7)))
        assert [len(found["seconds"]) for found in (alone, peer, ours)] == [7, 7, 7]
        assert ring <= peer["payload"] <= 1.05 * ring
        assert peer["claimed"] is None
        assert ours["claimed"] == pytest.approx(ours["payload"], rel=0.05)
        assert alone["payload"] < 0.001 * ring
        assert ranks_of(hosts) == idle


@pytest.mark.root
def test_cc27_a_method_that_fails_leaves_the_others_of_its_contest_alone(hosts: Hosts) -> None:
    idle = ranks_of(hosts)
    cells = [Cell("time", MODEL, "2x1", "unshaped", method, 0) for method in ("nothing", FP32.key)]
    failed, found = (record for _, record in measure_times(hosts, cells, Effort(steps=2, least=2)))
    assert failed == {"error": "rank 0: KeyError: 'nothing'"} or failed == {"error": "rank 1: KeyError: 'nothing'"}
    assert len(found["seconds"]) == 2
    assert ranks_of(hosts) == idle


@pytest.mark.root
def test_cc27_every_method_begins_with_the_same_model_and_batch(hosts: Hosts) -> None:
    losses = []
    for method in (ALONE.key, FP32.key):
        with hosts.start(2, 1, CELL | {"method": method}) as gang:
            losses.append(run_steps(gang, 2).losses)
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]  # by then DDP has taken the mean of the gradients


@pytest.mark.root
def test_cc8_the_exchange_of_one_bucket_is_no_faster_than_its_link(hosts: Hosts) -> None:
    found = measure_limit(hosts, LimitCell("limit", "bucket", "2x1", "1000", "gloo", 4))
    bucket = 4 * 2**20
    assert bucket <= found["payload"] <= 1.05 * bucket
    burst = 2 * 128 * 1024
    assert min(found["seconds"]) >= (bucket - burst) * 8 / 1e9


@pytest.mark.root
def test_a_rank_that_fails_or_dies_ends_its_cell_only(hosts: Hosts) -> None:
    idle = ranks_of(hosts)
    with pytest.raises(CellFailed, match="KeyError: 'nothing'"):
        hosts.start(2, 1, CELL | {"method": "nothing"})
    assert ranks_of(hosts) == idle
    with pytest.raises(CellFailed, match="rank "), hosts.start(2, 1, CELL) as gang:
        os.kill(min(ranks_of(hosts) - idle), signal.SIGKILL)
        run_steps(gang, 1000)
    assert ranks_of(hosts) == idle
    with hosts.start(2, 1, CELL) as gang:
        assert len(run_steps(gang, 3).seconds) == 3
