"""What a round sends, and that ranks in different rounds find out before they add anything up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from workers import elastic
from workers.collectives.exchange import Exchange
from workers.config import TrainingConfig
from workers.elastic import Binding, Job
from workers.rounds import Largest, Sums, fingerprint, from_rows, is_common, to_rows
from workers.solo import SoloRank

NOTHING = torch.empty(0, dtype=torch.float64)


def reduced(marks: list[Tensor]) -> Tensor:
    return torch.stack(marks).amax(dim=0)


def of(name: str, results: Sums, observed: Tensor = NOTHING) -> Tensor:
    return fingerprint(name, to_rows(results, observed)[0], observed)


OTHERS: dict[str, Callable[[], Tensor]] = {
    "name": lambda: of("b", {"x": 1.0, "y": Largest(2.0)}),
    "key": lambda: of("a", {"z": 1.0, "y": Largest(2.0)}),
    "kind": lambda: of("a", {"x": 1.0, "y": 2.0}),
    "another kind": lambda: of("a", {"x": Largest(1.0), "y": Largest(2.0)}),
    "one less": lambda: of("a", {"y": Largest(2.0)}),
    "observed": lambda: of("a", {"x": 1.0, "y": Largest(2.0)}, torch.zeros(3)),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("alike", [1, 3])
def test_ranks_in_different_rounds_do_not_agree_whoever_they_are(what: str, alike: int) -> None:
    here, there = of("a", {"x": 1.0, "y": Largest(2.0)}), OTHERS[what]()
    for marks in ([here] * alike + [there], [there] + [here] * alike, [there] * alike + [here]):
        assert not is_common(reduced(marks))


@given(
    results=st.dictionaries(
        st.text(max_size=5), st.one_of(st.floats(allow_nan=False), st.floats(allow_nan=False).map(Largest)), max_size=6
    ),
    observed=st.lists(st.floats(-5, 5), max_size=4),
    ranks=st.integers(1, 9),
)
def test_ranks_in_the_same_round_agree_whatever_they_have_measured(
    results: Sums, observed: list[float], ranks: int
) -> None:
    """The values and the order of the keys say nothing; the hash survives float64."""
    row = torch.tensor(observed, dtype=torch.float64)
    marks = [of("a", results, row)]
    for rank in range(1, ranks):
        others = {key: type(value)(rank) for key, value in reversed(results.items())}
        marks.append(of("a", others, torch.full_like(row, rank)))
    found = reduced(marks)
    assert is_common(found) and 0 <= float(found[0]) < 2**53 and float(found[0]).is_integer()
    assert torch.equal(found, marks[0])


@given(
    results=st.dictionaries(st.text(max_size=5), st.one_of(st.floats(-9, 9), st.floats(-9, 9).map(Largest)), max_size=6),
    observed=st.lists(st.floats(-5, 5), max_size=4),
)
def test_rows_are_read_back_as_they_were_written(results: Sums, observed: list[float]) -> None:
    """Also by a rank that replays the round, and in rounds of earlier commits: what is checked is no part of a commit."""
    row = torch.tensor(observed, dtype=torch.float64)
    meta, rows = to_rows(results, row)
    assert set(meta) == {"keys", "largest"} and len(rows) == (2 if meta["largest"] or observed else 1)
    again, seen = from_rows(meta, rows)
    assert again == results and torch.equal(seen, row)


class Neighbour:
    """A gang of two whose other rank sends what `other` makes of what this one does."""

    def __init__(self, inner: Exchange, other: Callable[[Tensor], Tensor]) -> None:
        self._inner, self._other = inner, other
        self.operands: list[Tensor] = []

    def all_reduce(self, buffer: Tensor, *, largest: bool = False) -> Any:
        self.operands.append(buffer)
        theirs = self._other(buffer)
        buffer.copy_(torch.maximum(buffer, theirs) if largest else buffer + theirs)
        return self._inner.all_reduce(buffer, largest=largest)


def job_beside(other: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> tuple[Job, Neighbour]:
    rank: Any = SoloRank()
    rank.exchange_in_use = neighbour = Neighbour(rank.exchange_in_use, other)
    monkeypatch.setattr(elastic, "_binding", Binding(rank, TrainingConfig(name="job")))
    monkeypatch.setattr(elastic, "_job", None)
    model = nn.Linear(2, 1)
    return Job(model, torch.optim.SGD(model.parameters(), lr=0.1), TensorDataset(torch.zeros(4, 2))), neighbour


def test_a_round_that_another_rank_is_not_in_is_an_exchange_that_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any row is sent; nothing is committed, and the rank says why."""
    elsewhere = of("another", {"x": 1.0})
    job, neighbour = job_beside(lambda buffer: elsewhere, monkeypatch)
    with pytest.raises(
        RuntimeError, match="another rank is in another round than 'mine', or measures something else in it"
    ):
        job.collect("mine", lambda part, parts: {"x": 1.0})
    assert len(neighbour.operands) == 1 and job.history == [] and job.state_id.round == 0


def test_a_round_that_all_ranks_are_in_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    job, neighbour = job_beside(torch.clone, monkeypatch)
    assert job.collect("mine", lambda part, parts: {"x": 1.5, "y": Largest(math.pi)}) == {"x": 3.0, "y": math.pi}
    assert len(neighbour.operands) == 3 and job.state_id.round == 1
