"""What a script makes for its model, and gives to DDP with the hook."""

from __future__ import annotations

import atexit
import threading
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.optim import Optimizer

from workers.collectives.exchange import Groups, Hosts
from workers.comm.compression import State, merged
from workers.comm.hosts import join
from workers.comm.iterations import Iterations
from workers.comm.layout import Names
from workers.comm.neighbours import Neighbours
from workers.comm.ready import Ready
from workers.comm.thread import CommThread
from workers.compression.choice import Choice, Plan
from workers.compression.config import CompressionConfig
from workers.compression.setup import compression_of

Policy = Literal["adaptive", "latency_ladder", "fixed"]

DEVICES = ("cpu", "cuda")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class CommState:
    """The exchange of one DDP model's gradients. Make it on all ranks, after `init_process_group`:

        state = CommState(policy="fixed", codec="powersgd 4")
        model.register_comm_hook(state, hook)

    Args:
        policy: `adaptive` measures links and codecs, and decides; `latency_ladder` goes by the round-trip time alone;
            `fixed` is always `codec`.
        codec: `none`, `bf16`, `bf16-ring`, `fp16`, `int8`, `int4`, `sign`, `topk 0.01`, `threshold 0.01`, `powersgd 4`,
            `powersgd-int8 4`.
        error_budget: largest share of the gradient's energy that `adaptive` may leave to error feedback in a step, 0 to 1;
            above 0.1 is looser than the rule of GraVAC (CC-19).
        dense_steps: steps before `sign`, `topk`, `threshold` and low rank; until then it is `int8` (CC-14).
        model: its names are those of `state_dict`; without it they are places in the order of parameters.
        optimizer, follow_learning_rate: scale what error feedback keeps when the optimizer's learning rate changes, by
            old/new between 0.5 and 2; for optimizers whose update is the learning rate times the gradient (CC-11).
        process_group: DDP's, if it has one of its own.
        seed: of PowerSGD's first Q; the same on all ranks.

    Raises:
        ValueError: an option cannot work; CodecError, which is one, where it is the codec. Or QUANTARION_GROUP is not the
            same on all ranks of a host.
        RuntimeError: there is no process group.

    The environment variable QUANTARION_GROUP names the group of hosts that this host is in, a site or a rack; gradients are
    encoded between groups then. Without it all are in one.
    """

    def __init__(
        self,
        *,
        policy: Policy = "adaptive",
        codec: str = "none",
        error_budget: float = 0.1,
        dense_steps: int = 10,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        follow_learning_rate: bool = False,
        process_group: dist.ProcessGroup | None = None,
        seed: int = 0,
    ) -> None:
        config = _config(policy, codec, error_budget, dense_steps, follow_learning_rate)
        if follow_learning_rate and optimizer is None:
            raise ValueError("follow_learning_rate needs the optimizer: write CommState(optimizer=optimizer, ...)")
        if not dist.is_initialized():
            raise RuntimeError("there is no process group: call torch.distributed.init_process_group before CommState()")
        joined = join(process_group)
        world, self._groups = joined.exchange.topology.world, joined.exchange.topology.groups
        self._closing = threading.Event()
        self._neighbours = Neighbours(joined.exchange, joined.run, joined.timeout)
        self._iterations = Iterations(
            joined.exchange,
            self._neighbours,
            Names(model),
            partial(
                compression_of,
                config=config if world > 1 else CompressionConfig(policy="fixed"),
                planned_steps=0,  # nobody knows how many
                seed=seed,
            ),
            partial(_learning_rate, optimizer),
            joined.timeout,
            self._closing.is_set,
        )
        self._thread = CommThread(self._iterations, self._closing)
        atexit.register(self.close)

    @property
    def bytes_sent(self) -> int:
        """What this rank has put on links to other hosts: payloads and gloo's frames."""
        return self._iterations.sent_bytes

    @property
    def steps(self) -> int:
        """Backward passes whose gradients were exchanged, those before a checkpoint included."""
        return self._iterations.steps

    @property
    def choices(self) -> Plan:
        """What was in force for each bucket in the last backward pass; empty while buckets are not known yet."""
        return self._iterations.compression.choices if self._iterations.compression.plan.slots else ()

    @property
    def hosts(self) -> Hosts:
        """The ranks that exchange through shared memory; one that shares none is by itself. All, before the first pass."""
        return self._neighbours.hosts

    @property
    def groups(self) -> Groups:
        """The ranks of each group of hosts."""
        return self._groups

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, between two steps: the `residuals` of this rank, and what is the same on all ranks: `steps`,
        `q` of PowerSGD, and plain values of the `policy`, which begins anew where there are other buckets. Tensors are by
        the names of parameters."""
        return dict(self._iterations.state_dict())

    def load_state_dict(self, state: State, *more: State) -> None:
        """Take over what a rank has saved, and the residuals of `more` ranks; between two steps, on every rank.

        What was saved by any rank must be taken over by one: where there are
        fewer ranks now, by some of them several; a rank that none is left for takes any with `residuals` empty.

        Raises ValueError where it is of another model; before the first step, `backward` does.
        """
        self._iterations.load_state_dict(merged((state, *more)))

    def close(self) -> None:
        """End the thread and share no memory any more. It is called at exit."""
        if not self._closing.is_set():
            atexit.unregister(self.close)
            self._thread.close()
            self._neighbours.close()

    def reduce(self, ready: Ready) -> Future[Tensor]:
        """What `hook` does."""
        gradient = ready.gradient
        if self._closing.is_set():
            raise RuntimeError("the CommState was closed; make a new one for a new DDP model")
        if gradient.is_sparse or gradient.device.type not in DEVICES or gradient.dtype not in DTYPES:
            raise ValueError(
                "workers.comm exchanges dense float32, float16 and bfloat16 gradients on the CPU and on CUDA devices, not "
                f"{gradient.layout} {gradient.dtype} on {gradient.device.type}: write sparse=False, or leave the hook out"
            )
        opened = ready.reduced.then(_opened)
        self._thread.put(ready)  # last: the other thread can go on when this one has let go of the interpreter
        return opened


def _opened(reduced: Future[Tensor | Exception]) -> Tensor:
    """DDP hears of an error only where a callback raises it."""
    result = reduced.value()
    if isinstance(result, Exception):
        raise result
    return result


def _config(
    policy: Policy, codec: str, error_budget: float, dense_steps: int, follow_learning_rate: bool
) -> CompressionConfig:
    if policy not in get_args(Policy):
        raise ValueError(f"{policy!r} is no policy: write one of {', '.join(map(repr, get_args(Policy)))}")
    if policy != "fixed" and codec != "none":
        raise ValueError(f"the policy {policy!r} chooses codecs itself: write CommState(policy='fixed', codec={codec!r})")
    if dense_steps < 1:
        raise ValueError(f"dense_steps is 1 or more, and not {dense_steps}")
    if not 0 <= error_budget <= 1:
        raise ValueError(f"error_budget is a share of the gradient's energy, 0 to 1, and not {error_budget}; write 0.1")
    return CompressionConfig(
        policy=policy,
        codec=str(Choice.parse(codec)),
        error_budget=error_budget,
        dense_steps=dense_steps,
        follow_learning_rate=follow_learning_rate,
    )


def _learning_rate(optimizer: Optimizer | None) -> float:
    return 0.0 if optimizer is None else float(optimizer.param_groups[0]["lr"])
