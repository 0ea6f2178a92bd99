"""EP-2 and EP-5 on a device: the engine's steps are those of a plain loop, also where gradients are late."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from workers.collectives.exchange import FlatExchange, Place, Topology
from workers.engine import Engine
from workers.faults import Faults
from workers.identity import GENESIS, Generation
from workers.protocol import RankMachine, RankState

FIRST = Generation(1, 1)
ALONE = Topology((Place(0, "host", "127.0.0.1"),), 0)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")),
]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_ep2_ep5_steps_on_a_device_are_those_of_a_plain_loop(tmp_path: Path, device: str, scaled: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 500), nn.Tanh(), nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 2)).to(device)
    plain = deepcopy(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (model, plain)]
    machine = RankMachine(state=GENESIS, generation=FIRST, promised=FIRST, healed=True, phase=RankState.TRAINING)
    scaler = torch.amp.GradScaler(device, init_scale=8.0) if scaled else None
    engine = Engine(model, optimizers[0], machine=machine, faults=Faults([], tmp_path, dict), scaler=scaler)
    for step in range(6):
        noise = torch.Generator().manual_seed(step)
        x, y = torch.randn(12, 8, generator=noise).to(device), torch.randn(12, 2, generator=noise).to(device)
        engine.begin_step(FlatExchange(ALONE), lambda: False)
        if device == "cuda":
            torch.cuda._sleep(50_000_000)
        engine.backward(mse_loss(model(x), y), len(x), len(x), last=True)
        engine.finish_exchange(len(x))
        engine.apply_step({"kind": "step"}, FIRST)
        optimizers[1].zero_grad()
        mse_loss(plain(x), y).backward()
        optimizers[1].step()
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)
    captured = engine.capture().captured
    assert all(tensor.device.type == "cpu" for tensor in captured.tensors.values())
