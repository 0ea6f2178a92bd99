"""How a step exchanges its gradients: the peers and ours, one entry each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

COMM = "workers.comm"
START = 10
"""Steps before torch's PowerSGD hook compresses, as in CC-14; its own default is 1000."""
RANK = 4
DENSITY = 0.01
LOOSE = 0.3
"""Of the gradient's energy: about what rank 4, as torch has it, leaves to error feedback in a step (CC-19)."""
ONE_BUCKET = 1024.0
"""MiB; more than any model here."""


class Exchange:
    """What a method does to a model: the module to train, what ours claims to have sent, and its end."""

    def __init__(self, module: nn.Module, state: Any = None) -> None:
        self.module, self._state = module, state

    def claimed(self) -> int | None:
        """Bytes that this rank put on links so far, by our own metric; None for a peer."""
        return None if self._state is None else int(self._state.bytes_sent)

    def close(self) -> None:
        """Release what ours holds."""
        if self._state is not None:
            self._state.close()


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    `reacts`: it chooses by what it measures, so that it needs its time at every link speed, and its accuracy is measured at
    each. `dense_as`: the method whose steps its first `START` steps are like. `module`: what must be importable.
    `settings`: of our CommState.
    """

    key: str
    label: str
    wrap: Callable[[nn.Module], Exchange]
    ours: bool = False
    reacts: bool = False
    dense_as: str | None = None
    module: str = "torch"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        """Whether what it needs can be imported."""
        return find_spec(self.module) is not None


def _alone(model: nn.Module) -> Exchange:
    return Exchange(model)


def _fp32(model: nn.Module) -> Exchange:
    return Exchange(DistributedDataParallel(model))


def _fp16(model: nn.Module) -> Exchange:
    parallel = DistributedDataParallel(model)
    parallel.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return Exchange(parallel)


def _powersgd(model: nn.Module) -> Exchange:
    """In one bucket: with more it issues its collectives from callbacks in an order that gloo does not survive."""
    parallel = DistributedDataParallel(model, bucket_cap_mb=ONE_BUCKET)
    state = powerSGD_hook.PowerSGDState(
        dist.group.WORLD, matrix_approximation_rank=RANK, start_powerSGD_iter=START, orthogonalization_epsilon=1e-8
    )
    parallel.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return Exchange(parallel)


def ours_hook(settings: Mapping[str, Any]) -> tuple[Any, Callable[..., Any]]:
    """A new state of ours and its hook."""
    comm = import_module(COMM)
    return comm.CommState(**settings), comm.hook


def _ours(key: str, label: str, settings: Mapping[str, Any], *, reacts: bool = False, dense: bool = False) -> Method:
    def wrap(model: nn.Module) -> Exchange:
        state, hook = ours_hook(settings)
        parallel = DistributedDataParallel(model)
        parallel.register_comm_hook(state, hook)
        return Exchange(parallel, state)

    return Method(
        key=f"ours-{key}",
        label=f"ours, {label}",
        wrap=wrap,
        ours=True,
        reacts=reacts,
        dense_as="ours-none" if dense else None,
        module=COMM,
        settings=settings,
    )


def _fixed(codec: str, label: str | None = None, *, dense: bool = False) -> Method:
    """`codec` with its parameter, if it has one, as `topk 0.01`."""
    return _ours(codec.split()[0], label or codec, {"policy": "fixed", "codec": codec}, dense=dense)


ALONE = Method("alone", "no exchange", _alone)
"""The same compute on as many ranks, each by itself: what exposed communication is counted from."""
FP32, FP16 = Method("ddp-fp32", "DDP fp32", _fp32), Method("ddp-fp16", "DDP fp16 hook", _fp16)
POWERSGD = Method("torch-powersgd", f"torch PowerSGD hook, rank {RANK}", _powersgd, dense_as="ddp-fp32")
ADAPTIVE = _ours("adaptive", "adaptive", {}, reacts=True)
ADAPTIVE_LOOSE = _ours("adaptive-loose", f"adaptive, error budget {LOOSE:g}", {"error_budget": LOOSE}, reacts=True)
NONE = _fixed("none")

METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        ALONE,
        FP32,
        FP16,
        POWERSGD,
        ADAPTIVE,
        ADAPTIVE_LOOSE,
        _ours("ladder", "latency ladder", {"policy": "latency_ladder"}, reacts=True),
        NONE,
        _fixed("bf16"),
        _fixed("bf16-ring"),
        _fixed("fp16"),
        _fixed("int8"),
        _fixed("int4"),
        _fixed("sign", dense=True),
        _fixed(f"topk {DENSITY}", f"top-k {DENSITY:.0%}", dense=True),
        _fixed(f"threshold {DENSITY}", f"threshold {DENSITY:.0%}", dense=True),
        _fixed(f"powersgd {RANK}", f"PowerSGD rank {RANK}", dense=True),
        _fixed(f"powersgd-int8 {RANK}", f"PowerSGD rank {RANK}, factors in int8", dense=True),
    )
}
PEERS = (FP32.key, FP16.key, POWERSGD.key)
