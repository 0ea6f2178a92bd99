"""Exchanges over real sockets, every rank in a thread of its own."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.workers.collectives.abandoned import MEMBERS
from workers.collectives.connect import Connector
from workers.collectives.exchange import ExchangeError, FlatExchange, Place, Topology
from workers.identity import StateId

PLACES = tuple(Place(rank, f"host-{rank}", "127.0.0.1") for rank in range(4))


@pytest.fixture(autouse=True)
def descriptors_are_given_back() -> Iterator[None]:
    """Gloo closes its sockets when nobody holds a group any more, and each gang has dozens."""
    yield
    for member in MEMBERS:
        member.forget()
    MEMBERS.clear()
    gc.collect()


@pytest.fixture
def store() -> Iterator[str]:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    yield f"127.0.0.1:{server.port}"
    del server


def connect(store: str, prefix: str, states: list[StateId], groups: str = "") -> list[FlatExchange | Exception]:
    """Every rank in a thread of its own; `groups` names that of each."""
    places = tuple(replace(place, group=group) for place, group in zip(PLACES, groups or "a" * len(states), strict=False))

    def one(index: int) -> FlatExchange | Exception:
        topology = Topology(places, index)
        try:
            return Connector().connect(topology, store, prefix, states[index], lambda: False)
        except ExchangeError as error:
            return error

    with ThreadPoolExecutor(len(states)) as threads:
        return list(threads.map(one, range(len(states))))
