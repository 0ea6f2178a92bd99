"""CC-25: what the environment says of hosts, and options and gradients that cannot work: one sentence each."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import workers.comm
from tests.workers.comm.ranks import Known
from workers.comm import CommState
from workers.comm.hosts import host_key, places_of


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_cc25_hosts_are_the_nodes_of_torchrun_or_else_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_RANK", "3")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert socket.gethostname() in host_key()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert host_key() == "node 3"


def test_cc25_hosts_and_groups_are_what_ranks_say() -> None:
    places = places_of([7, -3, 7, 5, -3], [1, 1, 1, 2, 1])
    assert [place.rank for place in places] == [0, 1, 2, 3, 4]
    assert [place.host for place in places] == ["0", "1", "0", "3", "1"]
    assert [place.group for place in places] == ["0", "0", "0", "3", "0"]
    with pytest.raises(ValueError, match="ranks 1 and 4 share a host, and QUANTARION_GROUP is not the same for both"):
        places_of([7, -3, 7, 5, -3], [1, 1, 1, 2, 2])


def test_cc25_it_needs_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="init_process_group before CommState"):
        CommState()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"policy": "best"}, "'best' is no policy: write one of 'adaptive', 'latency_ladder', 'fixed'"),
        ({"policy": "fixed", "codec": "zip"}, "zip"),
        ({"policy": "fixed", "codec": "topk"}, "topk"),
        ({"codec": "int8"}, "write CommState(policy='fixed', codec='int8')"),
        ({"policy": "fixed", "dense_steps": 0}, "dense_steps is 1 or more, and not 0"),
        ({"error_budget": 1.5}, "error_budget is a share of the gradient's energy, 0 to 1, and not 1.5; write 0.1"),
        ({"follow_learning_rate": True}, "write CommState(optimizer=optimizer, ...)"),
    ],
)
def test_cc25_options_that_cannot_work_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError) as refused:
        CommState(**options)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def hooked(model: nn.Module) -> tuple[DistributedDataParallel, CommState]:
    wrapped, state = DistributedDataParallel(model), CommState()
    wrapped.register_comm_hook(state, workers.comm.hook)
    return wrapped, state


def test_cc25_a_rank_alone_keeps_its_gradients(alone: None) -> None:
    wrapped, state = hooked(Known())
    for step in range(3):
        wanted = [torch.full(p.shape, float(step)) for p in wrapped.parameters()]
        wrapped.zero_grad()
        wrapped(wanted).backward()
        assert all(p.grad is not None and torch.equal(p.grad, g) for p, g in zip(wrapped.parameters(), wanted, strict=True))
    assert (state.steps, state.bytes_sent, state.hosts) == (3, 0, ((0,),))
    state.close()


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Linear(2, 2).double(), torch.ones(1, 2, dtype=torch.float64)),
        (nn.Embedding(4, 2, sparse=True), torch.tensor([1])),
    ],
)
def test_cc25_gradients_that_cannot_be_exchanged_are_refused(alone: None, model: nn.Module, inputs: torch.Tensor) -> None:
    wrapped, state = hooked(model)
    with pytest.raises(Exception, match="exchanges dense float32, float16 and bfloat16 gradients on the CPU"):
        wrapped(inputs).sum().backward()
    state.close()


def test_cc25_after_close_backward_says_so(alone: None) -> None:
    wrapped, state = hooked(nn.Linear(2, 2))
    state.close()
    state.close()
    with pytest.raises(RuntimeError, match="the CommState was closed"):
        wrapped(torch.ones(1, 2)).sum().backward()


def test_cc25_a_state_of_another_model_is_refused(alone: None) -> None:
    wrapped, state = hooked(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="a state of CommState has policy, q, residuals, steps, and this has epoch"):
        state.load_state_dict({"epoch": 3})
    state.load_state_dict({"steps": 1, "q": {}, "residuals": {"7": torch.ones(3)}, "policy": {}})
    with pytest.raises(RuntimeError, match=r"the residual of 7, \[3\], fits no parameter of the model"):
        wrapped(torch.ones(1, 2)).sum().backward()
    state.close()
