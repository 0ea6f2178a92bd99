"""EP-7 and EP-18: opening the exchange of a generation, on real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from workers.collectives.exchange import Abandoned, Connector, ExchangeError, FlatExchange, Place, Topology
from workers.identity import GENESIS, Generation, StateId

HERE = StateId(7, 0, Generation(1, 2), 2**64 - 5)
PLACES = tuple(Place(rank, f"host-{rank}", "127.0.0.1") for rank in range(3))


@pytest.fixture
def store() -> Iterator[str]:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    yield f"127.0.0.1:{server.port}"
    del server


def connect(store: str, prefix: str, states: list[StateId]) -> list[FlatExchange | Exception]:
    """Every rank in a thread of its own."""

    def one(index: int) -> FlatExchange | Exception:
        topology = Topology(PLACES[: len(states)], index)
        try:
            return Connector().connect(topology, store, prefix, states[index], lambda: False)
        except ExchangeError as error:
            return error

    with ThreadPoolExecutor(len(states)) as threads:
        return list(threads.map(one, range(len(states))))


def test_ranks_that_stand_at_one_state_sum(store: str) -> None:
    exchanges = connect(store, "a", [HERE] * 3)
    values = [torch.full((5,), float(rank)) for rank in range(3)]
    pending = [e.all_reduce(v) for e, v in zip(exchanges, values, strict=True) if isinstance(e, FlatExchange)]
    for operation in pending:
        operation.wait(lambda: False)
    assert [v.tolist() for v in values] == [[3.0] * 5] * 3


@pytest.mark.parametrize(
    "other",
    [
        HERE._replace(round=1),
        HERE._replace(lineage=HERE.lineage - 2**40),
        HERE._replace(generation=Generation(1, 1)),
        GENESIS,
    ],
)
def test_ep18_a_rank_that_stands_elsewhere_stops_the_generation(store: str, other: StateId) -> None:
    outcomes = connect(store, "b", [HERE, HERE, other])
    assert all(isinstance(outcome, ExchangeError) for outcome in outcomes)
    assert "rank 2 stands at" in str(outcomes[0])
    assert "rank 0 stands at" in str(outcomes[2])


def test_ep7_a_connection_that_cannot_stand_is_abandoned(store: str) -> None:
    with pytest.raises(Abandoned):
        Connector().connect(Topology(PLACES, 0), store, "c", HERE, lambda: True)
