"""The replicated state of a rank: everything that must be the same bytes on every member.

Parameters, buffers, optimizer state, scheduler, loss scaler, and the history of collected results. Captured as named CPU
tensors and plain values, so that a peer, a checkpoint and a digest all see the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from workers import plain

Copy = Callable[[str, torch.Tensor], torch.Tensor]
"""A copy, on the CPU, of the tensor of that name."""


def copied(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """In memory of its own."""
    return tensor.detach().to("cpu", copy=True)


@dataclass
class Captured:
    """A copy: `tensors` by name on the CPU, `meta` plain values."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


class Attached(Protocol):
    """Something beside the model that must be the same on every member."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None: ...

    def plain_state(self) -> dict[str, Any]: ...

    def load_plain_state(self, plain: Mapping[str, Any]) -> None: ...


class ReplicatedState:
    """Names every tensor of a model and its optimizer, and copies them out and in."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, scheduler: Any = None, scaler: Any = None) -> None:
        self.model, self.optimizer, self.scheduler, self.scaler = model, optimizer, scheduler, scaler
        self.history: list[tuple[int, str, dict[str, float]]] = []
        self.kept: dict[str, torch.Tensor] = {}  # parameters and buffers as they were at an earlier step, by name
        self.added_epochs: dict[str, int] = {}  # by the phase that they extend
        self.attached: dict[str, Attached] = {}  # by the first part of the names of its tensors
        self.own_moments = False  # the optimizer's state is each rank's own: it travels and is saved, but is not compared
        self.parameters = named_parameters(model, optimizer)
        self.buffers = dict(model.named_buffers())
        self._names = {id(p): name for name, p in self.parameters.items()}
        if scaler is not None:
            # torch makes its tensors at the first loss, which a rank that only replays commits has not seen
            scaler.scale(torch.zeros((), device=next(iter(self.parameters.values())).device))

    # ------------------------------------------------------------------ copying out

    def capture(
        self, before: Mapping[int, torch.Tensor] | None = None, training: Captured | None = None, copy: Copy = copied
    ) -> Captured:
        """A copy of the whole state.

        Args:
            before: by `id()`, those buffers that a running step changes, as they were (EP-4).
            training: a `capture_training` that stands for the present parameters, optimizer and scheduler.
            copy: where to.
        """
        training = training or self.capture_training(copy)
        tensors = dict(training.tensors)
        for name, buffer in self.buffers.items():
            tensors[f"buffer.{name}"] = copy(f"buffer.{name}", (before or {}).get(id(buffer), buffer))
        tensors |= {f"kept.{name}": copy(f"kept.{name}", tensor) for name, tensor in self.kept.items()}
        for prefix, attached in self.attached.items():
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in attached.state_dict().items()}
        return Captured(tensors, {**self._plain_meta(), **training.meta})

    def capture_training(self, copy: Copy = copied) -> Captured:
        """A copy of what an optimizer step changes: parameters, the optimizer's state and groups, the scheduler."""
        tensors = {f"parameter.{name}": copy(f"parameter.{name}", p) for name, p in self.parameters.items()}
        scalars: dict[str, Any] = {}
        for parameter, entries in self.optimizer.state.items():
            owner = self._names[id(parameter)]
            for key, value in entries.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer.{owner}|{key}"] = copy(f"optimizer.{owner}|{key}", value)
                else:
                    scalars[f"{owner}|{key}"] = value
        return Captured(tensors, {"optimizer": scalars, **deepcopy(self._schedule_meta())})

    def _schedule_meta(self) -> dict[str, Any]:
        groups = [
            {key: _as_plain(value) for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        return {"groups": groups, "scheduler": None if self.scheduler is None else self.scheduler.state_dict()}

    def _plain_meta(self) -> dict[str, Any]:
        return {
            **self._schedule_meta(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "history": [list(entry) for entry in self.history],
            "added_epochs": dict(self.added_epochs),
            "attached": {prefix: attached.plain_state() for prefix, attached in self.attached.items()},
        }

    def expected(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of the tensors a fitting state must hold (the optimizer's are created as needed)."""
        named: list[tuple[str, torch.Tensor]] = [(f"parameter.{n}", p) for n, p in self.parameters.items()]
        named += [(f"buffer.{n}", b) for n, b in self.buffers.items()]
        return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in named}

    def check_settings(self, captured: Captured) -> None:
        """Raise ValueError where the captured optimizer, scheduler or scaler is of another kind than ours."""
        ours = self._plain_meta()
        if [group.keys() for group in captured.meta["groups"]] != [group.keys() for group in ours["groups"]]:
            raise ValueError("the checkpoint is of another optimizer: its parameter groups have other settings")
        for part in ("scheduler", "scaler"):
            if (captured.meta[part] is None) != (ours[part] is None):
                has = "no" if captured.meta[part] is None else "a"
                raise ValueError(f"the checkpoint is of another job: it has {has} {part}")

    # ------------------------------------------------------------------ copying in

    @torch.no_grad()
    def restore(self, captured: Captured) -> None:
        """Take over a captured state, byte for byte. Raises KeyError or RuntimeError where it does not fit."""
        self.restore_training(captured)
        for name, buffer in self.buffers.items():
            buffer.copy_(captured.tensors[f"buffer.{name}"])
        if self.scaler is not None:
            self.scaler.load_state_dict(captured.meta["scaler"])
            self.scaler._per_optimizer_states.clear()  # of an apply that raised half-way
        self.history[:] = [(int(s), str(n), dict(d)) for s, n, d in captured.meta["history"]]
        self.added_epochs = dict(captured.meta.get("added_epochs", {}))
        self.kept = {name: tensor.clone() for name, tensor in _below("kept", captured).items()}
        for prefix, attached in self.attached.items():
            attached.load_state_dict(_below(prefix, captured))
            attached.load_plain_state(captured.meta.get("attached", {}).get(prefix, {}))

    @torch.no_grad()
    def restore_training(self, captured: Captured, *, moments: bool = True) -> None:
        """Take over what `capture_training` holds; the optimizer's state per parameter only with `moments`."""
        for name, parameter in self.parameters.items():
            parameter.copy_(captured.tensors[f"parameter.{name}"])
        if moments:
            self._restore_optimizer(captured)
        for group, saved in zip(self.optimizer.param_groups, captured.meta["groups"], strict=True):
            for key, value in saved.items():
                group[key] = torch.tensor(value) if isinstance(group.get(key), torch.Tensor) else value
        if self.scheduler is not None:
            self.scheduler.load_state_dict(deepcopy(captured.meta["scheduler"]))

    def _restore_optimizer(self, captured: Captured) -> None:
        by_owner: dict[str, dict[str, Any]] = {}
        for name, tensor in captured.tensors.items():
            if name.startswith("optimizer."):
                owner, key = name.removeprefix("optimizer.").rsplit("|", 1)
                by_owner.setdefault(owner, {})[key] = tensor
        for name, value in captured.meta["optimizer"].items():
            owner, key = name.rsplit("|", 1)
            by_owner.setdefault(owner, {})[key] = value
        self.optimizer.state.clear()
        for name, parameter in self.parameters.items():
            if name in by_owner:
                self.optimizer.state[parameter] = {
                    key: value.to(parameter.device if value.dim() else "cpu").clone()
                    if isinstance(value, torch.Tensor)
                    else value
                    for key, value in by_owner[name].items()
                }

    # ------------------------------------------------------------------ an earlier step

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the present parameters and buffers; those kept before are forgotten."""
        self.kept = {name: tensor.detach().cpu().clone() for name, tensor in self._named()}

    @torch.no_grad()
    def put_back(self) -> None:
        """Return to the parameters and buffers that are kept; RuntimeError where there are none."""
        if not self.kept:
            raise RuntimeError("there are no weights to put back: keep some first")
        for name, tensor in self._named():
            tensor.copy_(self.kept[name])

    def _named(self) -> Iterable[tuple[str, torch.Tensor]]:
        yield from self.parameters.items()
        yield from self.buffers.items()

    # ------------------------------------------------------------------ comparing

    def digest(self, captured: Captured | None = None) -> str:
        """BLAKE2b-128 over all tensors in name order and the plain values (EP-18), without moments of a rank's own; of what
        is there, or of a state that was `captured`, which is changed."""
        captured = self.capture() if captured is None else captured
        if self.own_moments:
            captured.tensors = {n: t for n, t in captured.tensors.items() if not n.startswith("optimizer.")}
            captured.meta["optimizer"] = {}
        return digest(captured)


def _below(prefix: str, captured: Captured) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with it, by the rest of their names."""
    prefix += "."
    return {name.removeprefix(prefix): t for name, t in captured.tensors.items() if name.startswith(prefix)}


def digest(captured: Captured) -> str:
    """BLAKE2b-128 of a captured state: 32 hex digits."""
    hasher = blake2b(digest_size=16)
    for name in sorted(captured.tensors):
        hasher.update(name.encode())
        hasher.update(tensor_bytes(captured.tensors[name]))
    hasher.update(plain.dumps(captured.meta).encode())
    return hasher.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The raw bytes of a CPU tensor, without a copy where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    raw: Any = flat.view(torch.uint8).numpy()
    return memoryview(raw).cast("B")


def named_parameters(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Every parameter once (tied ones under their first name), then those only the optimizer knows."""
    named = dict(model.named_parameters())
    seen = {id(p) for p in named.values()}
    extra: Iterable[nn.Parameter] = (p for group in optimizer.param_groups for p in group["params"])
    for index, parameter in enumerate(extra):
        if id(parameter) not in seen:
            named[f"optimizer[{index}]"] = parameter
            seen.add(id(parameter))
    return named


def _as_plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value
