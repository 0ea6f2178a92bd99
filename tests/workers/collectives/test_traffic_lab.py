"""What a rank says that it has sent is what the interfaces have counted, within 5 %: ranks on hosts of the lab (CC-26)."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Size

from benchmarks.lab import Lab, can_run
from tests.codecs import CODECS
from tests.workers.collectives.gangs import each_over
from workers.collectives.buckets import Row, plan_buckets
from workers.collectives.connect import Connector
from workers.collectives.exchange import Place, Topology
from workers.collectives.reducer import Reducer
from workers.collectives.shared import HostExchange, HostMemory, Layout
from workers.compression.choice import Choice
from workers.compression.gradients import GradientCompression
from workers.identity import GENESIS, Generation, StateId

CLOSE = 0.05
STEPS = 4
CLONE_NEWNET = 0x40000000
PLAN = plan_buckets(
    [("a", Size([700, 900])), ("b", Size([900])), ("c", Size([800, 600])), ("d", Size([600]))],
    tail=8,
    first_bytes=1 << 20,
    bucket_bytes=4 << 20,
)
GENERATION = Generation(1, 1)

T = TypeVar("T")


def enter_namespace(name: str) -> None:
    """The calling thread, and those that it starts, are in this network namespace from now on."""
    with open(f"/run/netns/{name}") as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


class LabRanks:
    """`per_host` ranks on each host of a lab, each a thread in the namespace of its host.

    `groups` names that of each host.
    """

    def __init__(self, lab: Lab, folder: Path, per_host: int, codec: str, groups: str) -> None:
        hosts = [host for host in lab.hosts for _ in range(per_host)]
        self._places = tuple(Place(rank, f"host-{h.index}", h.address, groups[h.index]) for rank, h in enumerate(hosts))
        self._members = tuple(tuple(range(h.index * per_host, (h.index + 1) * per_host)) for h in lab.hosts)
        self._paths = [folder / f"{rank}.memory" for rank in range(len(hosts))]
        self._plan = (Choice.parse(codec),) * len(PLAN.sizes)
        self.threads = [ThreadPoolExecutor(1, initializer=enter_namespace, initargs=(h.namespace,)) for h in hosts]
        keeper = ThreadPoolExecutor(1, initializer=enter_namespace, initargs=(lab.switch,))
        address = lab.stand_at_switch()
        server = keeper.submit(self._serve, address).result()
        self._store = f"{address}:{server.port}"
        self._server = server
        self._barrier = threading.Barrier(len(hosts))
        self.compressions = [GradientCompression(PLAN, lambda step: self._plan, seed=3) for _ in hosts]
        sizes = self.compressions[0].thin_sizes
        self._memories = [HostMemory(path, Layout(max(PLAN.sizes), 2, thin=sizes)) for path in self._paths]
        self.reducers = self.each(self._connect)

    @staticmethod
    def _serve(address: str) -> dist.TCPStore:
        return dist.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))

    def _connect(self, rank: int) -> Reducer:
        topology = Topology(self._places, rank)
        exchange = Connector().connect(topology, self._store, "g", GENESIS, lambda: False)
        mine = next(members for members in self._members if rank in members)
        paths = [self._paths[r] for r in mine]
        shared = HostExchange(self._memories[rank], paths, GENERATION) if len(mine) > 1 else None
        self.compressions[rank].begin_generation(topology.units(self._members))
        return Reducer(exchange, self._members, shared, self.compressions[rank])

    def each(self, do: Callable[[int], T]) -> list[T]:
        """On every rank at the same time."""
        running = [thread.submit(do, rank) for rank, thread in enumerate(self.threads)]
        return [each.result() for each in running]

    def sent_by_host(self, sent: Sequence[int]) -> list[int]:
        return [sum(sent[rank] for rank in members) for members in self._members]

    def step(self, rank: int, step: int) -> int:
        """Sum one step's gradients; the bytes that this rank says to have sent."""
        reducer, row = self.reducers[rank], Row(PLAN)
        noise = torch.Generator().manual_seed(100 * step + rank)
        for bucket in row.buckets:
            bucket.copy_(torch.randn(len(bucket), generator=noise))
        state = StateId(step, 0, GENERATION, step)
        self.compressions[rank].begin(state, GENERATION, 0.1)
        reducer.begin()
        sizes = PLAN.gradient_sizes
        tasks = [reducer.sum_bucket(i, row.buckets[i][:size]) for i, size in enumerate(sizes)]
        tasks.append(reducer.sum_exactly(row.tail))
        for task in tasks:
            task.wait(lambda: False)
        self.compressions[rank].commit()
        return reducer.sent_bytes


@pytest.fixture
def lab() -> Iterator[Lab]:
    if reason := can_run():
        pytest.skip(reason)
    with Lab(hosts=3) as made:
        yield made


def say_and_count(lab: Lab, ranks: LabRanks) -> tuple[list[int], list[int]]:
    """Of some steps: bytes that each host's ranks say that they have sent, and those that its interface has counted."""
    before = [each.sent_payload for each in lab.traffic()]
    said = [0] * len(lab.hosts)
    for step in range(STEPS):
        claimed = ranks.each(lambda rank, step=step: ranks.step(rank, step))  # type: ignore[misc]
        said = [a + b for a, b in zip(said, ranks.sent_by_host(claimed), strict=True)]
    return said, [each.sent_payload - earlier for each, earlier in zip(lab.traffic(), before, strict=True)]


@pytest.mark.root
@pytest.mark.parametrize(("codec", "per_host", "groups"), each_over(CODECS, (2, "aaa"), (1, "aaa"), (2, "aab")))
def test_cc26_the_interfaces_count_what_the_ranks_say_that_they_have_sent(
    codec: str, per_host: int, groups: str, lab: Lab, tmp_path: Path
) -> None:
    said, counted = say_and_count(lab, LabRanks(lab, tmp_path, per_host, codec, groups))
    for ours, theirs in zip(said, counted, strict=True):
        assert ours > 10_000
        assert abs(theirs - ours) <= CLOSE * ours


@pytest.mark.root
@pytest.mark.parametrize("per_host", [1, 2])
def test_cc1_the_interfaces_count_between_groups_what_two_hosts_would_send(per_host: int, lab: Lab, tmp_path: Path) -> None:
    """All that the only host of a group sends goes to the other group: 2 (G − 1)/G · 4n bytes, G = 2, and not H = 3."""
    _, counted = say_and_count(lab, LabRanks(lab, tmp_path, per_host, "none", "aab"))
    expected = STEPS * 2 * (2 - 1) / 2 * 4 * sum(PLAN.sizes)
    assert abs(counted[2] - expected) <= CLOSE * expected
