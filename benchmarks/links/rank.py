"""One rank of a cell: does steps when it is told to, and answers with what they took.

Its annotations are evaluated, as DDP compares those of a communication hook with its own types.
"""

import os
import time
import traceback
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from benchmarks.links.line import Line, Lost, Message
from benchmarks.links.methods import METHODS, ONE_BUCKET, Exchange, ours_hook
from benchmarks.links.tasks import TASKS, Data, batch, evaluate, loss_of

TIMEOUT = timedelta(seconds=300)


class Training:
    """A model under one method."""

    def __init__(self, cell: Message, rank: int, world: int, data: Data) -> None:
        self.task, self.data, self.seed = TASKS[cell["model"]], data, int(cell["seed"])
        self.rank, self.world, self.step = rank, world, 0
        self.model = self.task.build(self.seed)
        self.exchange = METHODS[cell["method"]].wrap(self.model)
        self.optimizer = self.task.optimizer(self.model)

    def run(self, message: Message) -> Message:
        """{"steps": n}: the seconds, the loss of this rank's share, and what ours claims to have sent until then."""
        if message.get("evaluate"):
            loss, accuracy = evaluate(self.model, self.data)
            return {"loss": loss, "accuracy": accuracy}
        seconds, losses = [], []
        for _ in range(int(message["steps"])):
            begun = time.perf_counter()
            losses.append(self._step())
            seconds.append(time.perf_counter() - begun)
        return {"seconds": seconds, "losses": losses, "claimed": self.exchange.claimed()}

    def _step(self) -> float:
        inputs, targets = batch(self.task, self.data, self.seed, self.step, self.rank, self.world)
        self.step += 1
        self.optimizer.zero_grad()
        loss = loss_of(self.exchange.module(inputs), targets)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def close(self) -> None:
        self.exchange.close()


class Vector(nn.Module):
    """A parameter [n] whose gradient is the input."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(elements))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight @ x


class OneBucket:
    """The exchange of one bucket and nothing else (CC-8); answers with the moments, which all processes here share."""

    def __init__(self, cell: Message, rank: int) -> None:
        elements = int(cell["mebibytes"] * 2**18)
        state, hook = (None, default_hooks.allreduce_hook) if cell["method"] == "gloo" else ours_hook(cell["settings"])
        self.model = DistributedDataParallel(Vector(elements), bucket_cap_mb=ONE_BUCKET)
        self.model.register_comm_hook(state, self._timed(hook))
        self.exchange = Exchange(self.model, state)
        self.input = torch.full((elements,), float(rank + 1))
        self.moments: list[list[float]] = []

    def _timed(self, hook: Any) -> Any:
        def timed(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            begun = time.monotonic()

            def ended(future: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
                self.moments.append([begun, time.monotonic()])
                return future.value()

            return hook(state, bucket).then(ended)

        return timed

    def run(self, message: Message) -> Message:
        """{"steps": n}: when each exchange began and ended. Raises RuntimeError where the mean is wrong."""
        self.moments.clear()
        wanted = (dist.get_world_size() + 1) / 2
        for _ in range(int(message["steps"])):
            dist.barrier()
            self.model.zero_grad()
            self.model(self.input).backward()
            gradient = self.model.module.weight.grad
            if not bool(((gradient - wanted).abs() < 1e-5).all()):
                raise RuntimeError(f"the mean of the gradients is {gradient[:3].tolist()}…, not {wanted}")
        return {"moments": list(self.moments), "claimed": self.exchange.claimed()}

    def close(self) -> None:
        self.exchange.close()


def variables(cell: Message, host: int, local: int) -> dict[str, str]:
    """What torchrun would set."""
    ranks, hosts = int(cell["ranks"]), int(cell["hosts"])
    values = {
        "RANK": host * ranks + local,
        "WORLD_SIZE": hosts * ranks,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": ranks,
        "GROUP_RANK": host,
        "GROUP_WORLD_SIZE": hosts,
        "MASTER_ADDR": cell["address"],
        "MASTER_PORT": cell["port"],
    }
    return {name: str(value) for name, value in values.items()}


def serve(line: Line, cell: Message, host: int, local: int, data: dict[str, Data]) -> None:
    """Do what comes over the line until it ends. An error is an answer too."""
    try:
        os.environ |= variables(cell, host, local)
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        line.send({"rank": rank, "port": cell["port"]})
        dist.init_process_group("gloo", timeout=TIMEOUT)
        work = OneBucket(cell, rank) if "mebibytes" in cell else Training(cell, rank, world, data[cell["model"]])
        line.send({"ready": True})
        while True:
            message = line.receive()
            if message.get("close"):
                work.close()
                line.send({"closed": True})
                return
            line.send(work.run(message))
    except Lost:
        return
    except Exception as error:
        traceback.print_exc()
        line.send({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})
