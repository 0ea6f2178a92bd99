"""CC-10 and CC-25: what the hook owes, over other buckets and other worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workers.comm import scenarios
from tests.workers.comm.ranks import Known, run
from tests.workers.comm.scenarios import Balance

LOSSY = ("int4", "topk 0.05", "powersgd 2")
EXACT = {"policy": "fixed", "codec": "none"}


def lossy(codec: str) -> dict[str, Any]:
    return {"policy": "fixed", "codec": codec, "dense_steps": 1}


def owed(ranks: list[Balance], named: bool) -> Tensor:
    """float64 [n], in the order of parameters: what all ranks together owe."""
    total = []
    for place, (name, parameter) in enumerate(Known().named_parameters()):
        each = (rank.state["residuals"].get(name if named else str(place)) for rank in ranks)
        parts = [torch.zeros(parameter.shape, dtype=torch.float64) if e is None else e.double() for e in each]
        total.append(torch.stack(parts).sum(0).reshape(-1))
    return torch.cat(total)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("cap", [0.001, 25])
def test_cc10_what_was_applied_and_what_is_owed_is_what_was_given(tmp_path: Path, codec: str, cap: float) -> None:
    ranks = run(tmp_path, (2, 1), scenarios.known_gradients, range(12), lossy(codec), None, {"bucket_cap_mb": cap})
    assert {rank.digest for rank in ranks} == {ranks[0].digest}
    assert bool(owed(ranks, named=False).any())
    assert torch.allclose(ranks[0].applied + owed(ranks, named=False), ranks[0].given, atol=1e-5)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("after", [(1, 1), (2, 2, 1)], ids=str)
@pytest.mark.parametrize("named", [pytest.param(False, marks=pytest.mark.long), True])
def test_cc25_states_go_over_to_other_buckets_and_another_world(
    tmp_path: Path, codec: str, after: tuple[int, ...], named: bool
) -> None:
    """Without compression afterwards all that was owed is applied, to the parameters that it was owed to."""
    names = {"model": named}
    first = run(tmp_path, (2, 1), scenarios.known_gradients, range(8), lossy(codec) | names, None, {"bucket_cap_mb": 0.001})
    world, saved = sum(after), [rank.state for rank in first]
    assert saved[0]["steps"] == 8
    spare = {**saved[0], "residuals": {}}
    states = {rank: saved[rank::world] or [spare] for rank in range(world)}
    then = run(tmp_path, after, scenarios.known_gradients, range(8, 12), EXACT | names, states, {})
    assert {rank.digest for rank in then} == {then[0].digest}
    assert {rank.state["steps"] for rank in then} == {12}
    assert not owed(then, named).any()
    applied, given = first[0].applied + then[0].applied, first[0].given + then[0].given
    assert torch.allclose(applied, given, atol=1e-5)
    assert not torch.allclose(first[0].applied, first[0].given, atol=1e-2)


@pytest.mark.parametrize("loader", [0, 2])
def test_cc25_a_state_that_is_loaded_on_one_rank_only_is_refused_on_all(tmp_path: Path, loader: int) -> None:
    options = lossy("powersgd 1")
    (first,) = run(tmp_path, (1,), scenarios.known_gradients, range(4), options, None, {})
    for heard in run(tmp_path, (2, 1), scenarios.loaded_on_one_rank, loader, options, first.state):
        assert "call load_state_dict on every rank" in heard
        assert f"the CommState of rank {1 if loader == 0 else loader} is not that of rank 0" in heard


def test_cc25_a_state_that_is_loaded_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """The dense start is not repeated, and PowerSGD begins with its Q; but the first two passes are exact."""
    options = {**lossy("powersgd 1"), "dense_steps": 6}
    first = run(tmp_path, (1, 1), scenarios.known_gradients, range(10), options, None, {})
    q = first[0].state["q"]
    assert q and all(torch.equal(q[name], first[1].state["q"][name]) for name in q)
    states = {rank: [each.state] for rank, each in enumerate(first)}
    none = run(tmp_path, (1, 1), scenarios.known_gradients, range(10, 10), options, states, {})
    for before, after in zip(first, none, strict=True):
        assert after.state is not before.state
        for kind in ("residuals", "q"):
            assert after.state[kind].keys() == before.state[kind].keys()
            assert all(torch.equal(after.state[kind][name], x) for name, x in before.state[kind].items())
    then = run(tmp_path, (1, 1), scenarios.known_gradients, range(10, 16), options, states, {})
    applied, given = first[0].applied + then[0].applied, first[0].given + then[0].given
    assert torch.allclose(applied + owed(then, named=False), given, atol=1e-5)
    assert bool(owed(then, named=False).any())
