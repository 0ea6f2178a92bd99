"""EP-7 and EP-18: opening the exchange of a generation, on real sockets."""

from __future__ import annotations

import pytest
import torch

from tests.workers.collectives.conftest import PLACES, connect
from workers.collectives.connect import Connector
from workers.collectives.exchange import INSIDE, PHASES, Abandoned, ExchangeError, FlatExchange, Topology
from workers.identity import GENESIS, Generation, StateId

HERE = StateId(7, 0, Generation(1, 2), 2**64 - 5)


def test_ranks_that_stand_at_one_state_sum(store: str) -> None:
    exchanges = connect(store, "a", [HERE] * 3)
    values = [torch.full((5,), float(rank)) for rank in range(3)]
    pending = [e.all_reduce(v) for e, v in zip(exchanges, values, strict=True) if isinstance(e, FlatExchange)]
    for operation in pending:
        operation.wait(lambda: False)
    assert [v.tolist() for v in values] == [[3.0] * 5] * 3


def test_cc1_members_of_a_group_exchange_among_themselves_where_there_are_several(store: str) -> None:
    """The others do not even begin that operation."""
    exchanges = connect(store, "d", [HERE] * 4, "abba")
    received = {rank: torch.zeros(2) for rank in (1, 2)}
    pending = []
    for rank, exchange in enumerate(exchanges):
        assert isinstance(exchange, FlatExchange) and len(exchange._inside) == PHASES
        if rank in received:
            sizes, sent = [0, 1, 1, 0], torch.tensor([rank + 10.0, rank + 20.0])
            pending.append(exchange.all_to_all(received[rank], sent, sizes, sizes, INSIDE + 2))
    for operation in pending:
        operation.wait(lambda: False)
    assert {rank: values.tolist() for rank, values in received.items()} == {1: [11.0, 12.0], 2: [21.0, 22.0]}


@pytest.mark.parametrize(("groups", "expected"), [("aaa", [0, 0, 0]), ("aab", [PHASES, PHASES, 0]), ("abc", [0, 0, 0])])
def test_cc1_no_gloo_groups_are_opened_that_nobody_needs(store: str, groups: str, expected: list[int]) -> None:
    exchanges = connect(store, "e", [HERE] * 3, groups)
    assert [len(e._inside) for e in exchanges if isinstance(e, FlatExchange)] == expected
    assert all(isinstance(e, FlatExchange) and len(e._groups) == PHASES for e in exchanges)


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
        Connector().connect(Topology(PLACES[:3], 0), store, "c", HERE, lambda: True)
