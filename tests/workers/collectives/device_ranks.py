"""What each rank of a host does with a `DeviceExchange`; the CPU is its device, and gloo its backend."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from workers.collectives.device import DeviceExchange, DeviceReduction
from workers.collectives.exchange import ExchangeError
from workers.collectives.shared import HostExchange, HostMemory, Layout
from workers.identity import Generation

CPU = torch.device("cpu")
LONGEST = 3000


class Bucket(NamedTuple):
    """`elements`, cut at these; `cuts` are sorted and one fewer than there are ranks."""

    elements: int
    cuts: tuple[int, ...]

    @property
    def edges(self) -> tuple[int, ...]:
        return (0, *(min(cut, self.elements) for cut in self.cuts), self.elements)


class Ways(NamedTuple):
    """The same bucket by devices and by shared memory, and what each rank found in its shard before it was changed."""

    device: Tensor
    memory: Tensor
    shard: Tensor


def gloo_group() -> object:
    made = dist.new_group(backend="gloo")
    assert made is not None
    return made._get_backend(CPU)


def gradient(rank: int, step: int, number: int, elements: int) -> Tensor:
    noise = torch.Generator().manual_seed(10_000 * step + 100 * number + rank)
    return torch.randn(elements, generator=noise) * 10.0 ** -(rank % 3)


def both_ways(folder: Path, steps: Sequence[Sequence[Bucket]], alone: bool) -> list[list[Ways]]:
    """Shards are doubled between the halves of each sum; the order in which they come back is each rank's own."""
    rank, world = dist.get_rank(), dist.get_world_size()
    exchange = DeviceExchange(gloo_group(), CPU, alone=alone)
    paths = [folder / f"{each}.memory" for each in range(world)]
    memory = HostMemory(paths[rank], Layout(LONGEST, max(1, *map(len, steps))))
    dist.barrier()
    on_host = HostExchange(memory, paths, Generation(1, 1))
    return [_step(rank, step, buckets, exchange, on_host) for step, buckets in enumerate(steps)]


def _step(rank: int, step: int, buckets: Sequence[Bucket], exchange: DeviceExchange, on_host: HostExchange) -> list[Ways]:
    given = [gradient(rank, step, number, bucket.elements) for number, bucket in enumerate(buckets)]
    expected = [each.clone() for each in given]
    started = [exchange.reduce_scatter(g, cuts=b.edges) for g, b in zip(given, buckets, strict=True)]
    drive(exchange, lambda: all(each.summed for each in started))
    shards = [each.shard.clone() for each in started]
    order = list(range(len(started)))
    random.Random(100 * step + rank).shuffle(order)
    for count, number in enumerate(order):
        if count == len(order) // 2:
            exchange.end()
        started[number].shard.mul_(2)
        started[number].all_gather()
    exchange.end()
    drive(exchange, lambda: all(each.done for each in started))
    for values, bucket in zip(expected, buckets, strict=True):
        by_memory = on_host.reduce_scatter(values, cuts=bucket.edges)
        drive(on_host, lambda each=by_memory: each.summed)  # type: ignore[misc]
        if not exchange.alone:
            by_memory.shard.mul_(2)
        by_memory.all_gather()
        drive(on_host, lambda each=by_memory: each.done)  # type: ignore[misc]
    return [Ways(*each) for each in zip(given, expected, shards, strict=True)]


def drive(exchange: DeviceExchange | HostExchange, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        if not exchange.progress():
            time.sleep(0.0002)


def refusals() -> list[str]:
    """What is said of calls that only a mistake can make."""
    exchange = DeviceExchange(gloo_group(), CPU, alone=False)
    values = torch.ones(6)
    said = []

    def refused(call: Callable[[], object]) -> None:
        try:
            call()
        except (ValueError, RuntimeError) as error:
            said.append(str(error))

    refused(lambda: exchange.reduce_scatter(values.double(), cuts=(0, 3, 6)))
    refused(lambda: exchange.reduce_scatter(values[::2], cuts=(0, 1, 3)))
    refused(lambda: exchange.reduce_scatter(values, cuts=(0, 7, 6)))
    reduction = exchange.reduce_scatter(values, cuts=(0, 3, 6))
    exchange.end()
    refused(lambda: exchange.reduce_scatter(values.clone(), cuts=(0, 3, 6)))
    drive(exchange, lambda: reduction.summed)
    reduction.all_gather()
    drive(exchange, lambda: reduction.done)
    return said


def one_leaves(victim: int) -> str:
    """What the other hears of an operation that its peer never joins: gloo closes the connection of a process that ends."""
    exchange = DeviceExchange(gloo_group(), CPU, alone=False)
    first = exchange.reduce_scatter(torch.ones(4), cuts=(0, 2, 4))
    drive(exchange, lambda: first.summed)
    if dist.get_rank() == victim:
        return "left"
    try:
        second: DeviceReduction = exchange.reduce_scatter(torch.ones(4), cuts=(0, 2, 4))
        drive(exchange, lambda: second.summed)
    except ExchangeError as error:
        exchange.close()
        return f"ExchangeError: {error}"
    return "summed"
