"""Scripts of torchrun without torchrun: real processes with its variables, on any hosts of one machine."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import blake2b
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import workers.comm
from workers.comm import CommState

PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch.distributed", "numpy", "tests.workers.comm.scenarios"])

Scenario = Callable[..., Any]


def run(folder: Path, shape: Sequence[int], scenario: Scenario, *arguments: Any, groups: Sequence[str] = ()) -> list[Any]:
    """`scenario(*arguments)` on `shape[h]` ranks of each host h: what each returned; of one that was killed, None.

    Args:
        groups: of each host, as in QUANTARION_GROUP.
    """
    hosts = [host for host, ranks in enumerate(shape) for _ in range(ranks)]
    meeting = folder / f"meeting-{len(list(folder.iterdir()))}"
    started = []
    for rank, host in enumerate(hosts):
        variables = {
            "RANK": rank,
            "WORLD_SIZE": len(hosts),
            "LOCAL_RANK": hosts[:rank].count(host),
            "LOCAL_WORLD_SIZE": shape[host],
            "GROUP_RANK": host,
            "GLOO_SOCKET_IFNAME": "lo",
            **({"QUANTARION_GROUP": groups[host]} if groups else {}),
        }
        ours, theirs = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=_rank, args=(theirs, variables, meeting, scenario, arguments))
        process.start()
        theirs.close()
        started.append((process, ours))
    try:
        return [_result(ours) for _, ours in started]
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def _rank(
    results: Connection, variables: dict[str, Any], meeting: Path, scenario: Scenario, arguments: tuple[Any, ...]
) -> None:
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=variables["RANK"],
        world_size=variables["WORLD_SIZE"],
        timeout=timedelta(seconds=90),
    )
    result: Any
    try:
        result = scenario(*arguments)
    except BaseException:
        result = AssertionError(traceback.format_exc())
    results.send_bytes(pickle.dumps(result))  # `send` would leave tensors with this process
    results.close()


def _result(ours: Connection) -> Any:
    try:
        result = pickle.loads(ours.recv_bytes())
    except EOFError:
        return None
    if isinstance(result, AssertionError):
        raise result
    return result


@contextmanager
def hooked(model: nn.Module, options: dict[str, Any], **ddp: Any) -> Iterator[tuple[DistributedDataParallel, CommState]]:
    """The two lines of a script, and its end."""
    wrapped = DistributedDataParallel(model, **ddp)
    state = CommState(**options)
    wrapped.register_comm_hook(state, workers.comm.hook)
    try:
        yield wrapped, state
    finally:
        state.close()


def flat(model: nn.Module) -> Tensor:
    """All parameters, float32 [n]."""
    return torch.cat([parameter.detach().reshape(-1).float().cpu() for parameter in model.parameters()])


def digest(model: nn.Module) -> str:
    return blake2b(flat(model).numpy().tobytes(), digest_size=8).hexdigest()


class Known(nn.Module):
    """Its gradients are what the test says, whatever its parameters are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(40, 30))
        self.second = nn.Parameter(torch.zeros(30))
        self.third = nn.Parameter(torch.zeros(20, 25, 2))

    def forward(self, wanted: list[Tensor]) -> Tensor:
        parts = [(p * g).sum() for p, g in zip(self.parameters(), wanted, strict=True)]
        return torch.stack(parts).sum()


def wanted(rank: int, step: int) -> list[Tensor]:
    """Gradients of `Known` on a rank."""
    noise = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(p.shape, generator=noise) * 10.0 ** -(rank % 3) for p in Known().parameters()]
