"""Gangs of any shape in one process: real gloo groups over loopback, real shared memory, a thread for each rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import pytest

from workers.collectives.connect import Connector
from workers.collectives.exchange import Place, Topology
from workers.collectives.reducer import Reducer
from workers.collectives.shared import HostExchange, HostMemory, Layout
from workers.compression.gradients import GradientCompression
from workers.identity import GENESIS, Generation

T = TypeVar("T")


TYPICAL = ("int8", "topk 0.05", "powersgd-int8 2", "changing")
"""Of the choices one of each kind of way."""


def each_over(choices: Iterable[str], first: tuple[Any, ...], *others: tuple[Any, ...]) -> list[Any]:
    """Every choice with the `first` arguments, and the typical ones with the `others`; the rest are long tests."""
    found = []
    for choice in choices:
        for arguments in (first, *others):
            seldom = arguments is not first and choice not in TYPICAL
            name = f"{choice}-{'-'.join(map(str, arguments))}"
            found.append(pytest.param(choice, *arguments, marks=pytest.mark.long if seldom else (), id=name))
    return found


class Gang:
    """Ranks on hosts, `shape[h]` of them on host h, of one generation; `compressions` may come from an earlier one.

    Args:
        groups: the name of the group of each host; all are in one if it is empty.
        sockets: hosts whose ranks share no memory.
        nan_tells: as in `Reducer`.
    """

    def __init__(
        self,
        store: str,
        folder: Path,
        shape: Sequence[int],
        compressions: list[GradientCompression],
        number: int = 1,
        groups: str = "",
        sockets: Sequence[int] = (),
        nan_tells: bool = False,
    ) -> None:
        self.compressions = compressions
        self.generation = Generation(1, number)
        hosts = [host for host, ranks in enumerate(shape) for _ in range(ranks)]
        near = groups or "a" * len(shape)
        self.places = tuple(Place(rank, f"host-{host}", "127.0.0.1", near[host]) for rank, host in enumerate(hosts))
        by_host = [tuple(r for r, h in enumerate(hosts) if h == host) for host in range(len(shape))]
        self.hosts = tuple(
            part for h, ranks in enumerate(by_host) for part in ([(r,) for r in ranks] if h in sockets else [ranks])
        )
        self.threads = ThreadPoolExecutor(len(hosts))
        largest = max(compressions[0].plan.sizes)
        paths = [folder / f"{number}-{rank}.memory" for rank in range(len(hosts))]
        memories = [HostMemory(path, Layout(max(largest, 5000), 2, thin=compressions[0].thin_sizes)) for path in paths]

        def enter(rank: int) -> Reducer:
            topology = Topology(self.places, rank)
            exchange = Connector().connect(topology, store, f"g{number}", GENESIS, lambda: False)
            mine = next(members for members in self.hosts if rank in members)
            shared = HostExchange(memories[rank], [paths[r] for r in mine], self.generation) if len(mine) > 1 else None
            compressions[rank].begin_generation(topology.units(self.hosts))
            return Reducer(exchange, self.hosts, shared, compressions[rank], nan_tells=nan_tells)

        self.reducers = self.each(enter)

    def each(self, do: Callable[[int], T]) -> list[T]:
        """On every rank at the same time. Raises what went wrong first: others may only have waited for that rank."""
        running = [self.threads.submit(do, rank) for rank in range(len(self.places))]
        done, _ = wait(running, return_when=FIRST_EXCEPTION)
        for each in done:
            if (error := each.exception()) is not None:
                raise error
        return [each.result() for each in running]


def never() -> bool:
    return False
