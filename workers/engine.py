"""One step of one rank: gradients into staging, the exchange, and apply, which is the commit (EP-2 to EP-7).

The engine owns the bytes of the state and the memory of recent commits. It decides nothing: whether a commit may happen is
asked of the rank's state machine.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from workers.buffers import BufferChanges
from workers.coherence.agreement import Agreement
from workers.collectives.buckets import BucketPlan, Staging, plan_buckets
from workers.collectives.copies import Copies
from workers.collectives.exchange import Abandoned, Exchange, Pending
from workers.collectives.ordered import LeafSums, SumOrder
from workers.collectives.reducer import Reducer
from workers.collectives.shared import Layout
from workers.compression.finite import NonFiniteError
from workers.compression.gradients import GradientCompression
from workers.compression.memory import lost_norm
from workers.compression.setup import uncompressed
from workers.errors import TaskError
from workers.faults import Faults
from workers.identity import Generation, StateId, next_lineage
from workers.observing import Observers
from workers.outer.config import SyncConfig
from workers.outer.fragments import Fragments
from workers.outer.host import HostGradient
from workers.outer.sync import OuterSync
from workers.protocol import RankMachine
from workers.recent import Recent
from workers.rounds import from_rows
from workers.state import Captured, Copy, ReplicatedState, copied, tensor_bytes
from workers.sum_check import SumCheck
from workers.transfer import Commit, Heir, Snapshot, TransferError
from workers.votes import NO_VOTES, Votes

HASHED_ELEMENTS = 1024
"""Sampled from each bucket for the lineage: some 20 µs a bucket where its memory is cold (EP names)."""

HOST_SLOTS = 2
"""Buckets that the ranks of a host exchange at the same time."""

OWED_EVERY = 10
"""Steps from one look at the norm of what is owed to the next."""

_SCALARS = ("loss", "samples", "refused", "alarmed", *Votes._fields)
_REFUSED, _ALARMED = (_SCALARS.index(name) - len(_SCALARS) for name in ("refused", "alarmed"))
"""Where they stand, from the end of the tail."""


Results = TypeVar("Results")


class ApplyError(Exception):
    """The optimizer or scheduler raised while it changed the state: the bytes are no state any more (EP-11)."""


class Engine:
    """Gradients of `model` to commits of `state`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        machine: RankMachine,
        faults: Faults,
        scheduler: Any = None,
        scaler: Any = None,
        clip_norm: float | None = None,
        compression: Callable[[BucketPlan], GradientCompression] = uncompressed,
        sync: SyncConfig | None = None,
        sketch_seed: int | None = None,
    ) -> None:
        """`sync`: a step is a round of inner steps, and what is reduced are parameter differences; None for gradients.
        `sketch_seed`: for `agreement`, the same on all ranks; None where nobody asks how gradients agree."""
        self.machine, self.faults, self.clip_norm = machine, faults, clip_norm
        faults.flip, faults.spoil, faults.disturb = self._flip, self._spoil, self._disturb
        faults.miscount = self._miscount
        self._spoilt, self._noise = False, 0.0
        self._chance = torch.Generator().manual_seed(0)  # of noise: what the task draws stays the same
        self.replica = ReplicatedState(model, optimizer, scheduler, scaler)
        self._parameters = [(n, p) for n, p in self.replica.parameters.items() if p.requires_grad]
        self._observers = Observers(model)
        observed = set(self._observers.owned())
        buffers = self.replica.buffers.values()
        self._buffers = BufferChanges([buffer for buffer in buffers if id(buffer) not in observed])
        tail = len(self._parameters) + self._buffers.elements + len(_SCALARS)
        pinned = any(parameter.is_cuda for _, parameter in self._parameters)
        bucket_plan = plan_buckets([(n, p.shape) for n, p in self._parameters], tail)
        self.staging = Staging(bucket_plan, self._observers.width, pinned=pinned)
        self._copies = Copies()
        plan = self.staging.plan
        self.compression = compression(plan)
        self.replica.attached["compression"] = self.compression
        self.outer: OuterSync | None = None
        if sync is not None:
            host_gradient = HostGradient(plan, [p for _, p in self._parameters]) if sync.within == "host" else None
            self.outer = OuterSync(self.replica, sync, clip_norm, host_gradient)
        self._fragments = Fragments(sync, len(plan.sizes)) if sync is not None and sync.staleness else None
        self._in_bucket = [0] * len(plan.sizes)
        for slot in plan.slots:
            self._in_bucket[slot.bucket] += 1
        for index, (_, parameter) in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(self._hook(index))
        self._held = [
            (held, name, f"{prefix}.{name}" if prefix else name, tensor)
            for prefix, module in model.named_modules()
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]
        self.agreement: Agreement | None = None
        self.sums: SumCheck | None = None
        if sketch_seed is not None and sync is None:
            self.agreement = Agreement(plan.gradient_sizes, sketch_seed)
            self.sums = SumCheck(sketch_seed, self.staging, self.compression)
        self._looking: Agreement | None = None  # in this step
        self._sketched = torch.empty(0)
        self._leaves = LeafSums(self.staging.plan)
        self._order: SumOrder | None = None
        self._loss_sum, self._samples = 0.0, 0
        self._own = [0.0, 0]
        self._exchange: Exchange | None = None
        self._reducer: Reducer | None = None
        self.loss_scale = 1.0
        """What gradients are divided by before they are exchanged: what is owed outlives a change of the scale (CC-11)."""
        self._measured = torch.empty(0)
        self.owed = 0.0
        """L2 norm of the residuals relative to that of the reduced gradient, not older than `OWED_EVERY` steps (CC-12)."""
        self.decisions: list[dict[str, Any]] = []
        """About compression, of the last commit; plain values."""
        self.vote: Callable[[], Votes] = lambda: NO_VOTES  # this rank's, for the step that ends
        self.votes = NO_VOTES
        """Their sums over all ranks, of the last commit."""
        self._stop: Callable[[], bool] = lambda: False
        self._armed = False
        self._pending: list[Pending] = []
        self._arrived: list[int] = []
        self._used: set[int] = set()
        self._copies_grads = clip_norm is not None or scaler is not None
        self.lock = threading.Lock()
        self.recent = Recent(machine, self.staging, self.lock)
        self._inherited: list[Mapping[str, torch.Tensor]] = []
        self.restores = 0
        self.in_step = False
        self.describe: Callable[[], dict[str, Any]] = dict  # what else a snapshot carries
        self.after_round: Callable[[str, dict[str, float]], None] = lambda name, sums: None  # part of the commit

    @property
    def own_loss(self) -> float:
        """Mean over the samples of the last step that were this rank's; NaN where none were."""
        loss_sum, samples = self._own
        return loss_sum / samples if samples else math.nan

    @property
    def refused(self) -> bool:
        """After `finish_exchange`: a rank's gradient or loss is not finite; the same on all."""
        return float(self.staging.tail[_REFUSED]) > 0

    @property
    def own_refusal(self) -> str | None:
        """What of this rank's is not: the name of a parameter, or `loss`; with a GradScaler the loss counts for nothing."""
        error = self.compression.non_finite
        if error is not None:
            return error.name
        return None if self.replica.scaler is not None or math.isfinite(self._own[0]) else "loss"

    @property
    def shared_layout(self) -> Layout:
        """Of the memory in which the ranks of a host exchange the buckets of this model."""
        return Layout(max(self.staging.plan.sizes), HOST_SLOTS, thin=self.compression.thin_sizes)

    # ------------------------------------------------------------------ one step

    def begin_step(
        self,
        exchange: Exchange,
        stop: Callable[[], bool],
        order: SumOrder | None = None,
        reducer: Reducer | None = None,
    ) -> None:
        """Start step s+1: take the other staging row, remember what the forward pass will change (EP-4).

        Args:
            stop: whether to give up.
            order: in which micro-batches are added up, each of them a leaf; None for no order in particular.
            reducer: takes the gradients over hosts and links, compressed; None for gloo's ring. Not with an order.
        """
        self._exchange, self._stop, self._order, self._reducer = exchange, stop, order, reducer
        self.loss_scale = 1.0
        if reducer is not None:
            reducer.begin()
            self._absorb_inherited()
            if self.replica.scaler is not None:
                self.loss_scale = float(self.replica.scaler.get_scale())
            rate = float(self.replica.optimizer.param_groups[0]["lr"])
            self.compression.begin(self.machine.state, self.machine.generation, rate)
        if order is not None:
            self._leaves.begin(order.mine)
        self._loss_sum, self._samples = 0.0, 0
        self._own = [0.0, 0]
        self.recent.take_row()
        self._buffers.save()
        if self.outer is not None:
            self.outer.begin()
        self._pending.clear()
        self._copies.forget()
        self._arrived = [0] * len(self._in_bucket)
        self._used.clear()
        self._clear_grads()
        self._observers.forget()
        step = self.machine.state.step + 1
        self._looking = self.agreement if order is None and Agreement.is_due(step) else None
        if self._looking is not None:
            self._looking.begin(step)
        if self.sums is not None:
            self.sums.begin(exchange, reducer, step)
        self.in_step = True

    def backward(self, loss: torch.Tensor, samples: int, batch: int, *, last: bool) -> None:
        """Backward of a micro-batch of `samples` out of a batch of `batch`; the exchange starts on the `last` one.

        With inner steps `batch` is that of the inner step, and the exchange starts when all of them are taken.
        """
        if self._spoilt:
            loss, self._spoilt = loss * torch.nan, False
        loss_sum = float(loss.detach()) * samples
        self._loss_sum += loss_sum
        self._samples += samples
        self._own = [self._own[0] + loss_sum, self._own[1] + samples]
        scaled = loss * (samples / batch)
        if self.replica.scaler is not None:
            scaled = self.replica.scaler.scale(scaled)
        self._armed = last and self.outer is None
        try:
            scaled.backward()
        finally:
            self._armed = False
        if self._order is not None:
            self._end_leaf(batch)

    def stream(self, inner_step: int, inner_steps: int, weight: float) -> None:
        """After `inner_step` of a round's `inner_steps`: the differences whose time has come go out (CC-24).

        Args:
            weight: this rank's share of the samples of the whole round.
        """
        if self._fragments is None or self._reducer is None or self.outer is None:
            return
        due, slots = self._fragments.due(inner_step, inner_steps), self.staging.plan.slots
        if due > len(self._pending):
            mine = [index for index, slot in enumerate(slots) if len(self._pending) <= slot.bucket < due]
            self.outer.send(weight, [self._parameters[index][0] for index in mine])
            for index in mine:
                self._fill(index)
                self._parameters[index][1].grad = None
        while len(self._pending) < due:
            self._launch()
        self._reducer.progress()

    def _end_leaf(self, batch: int) -> None:
        """Put what the micro-batch gave by itself; the next one starts from the same state."""
        row = self._leaves.row()
        self._used = {index for index, view in enumerate(row.views) if self._copy_grad(index, view)}
        self._fill_tail(row.tail, batch)
        self._leaves.add(row)
        self._buffers.put_back()
        self._clear_grads()
        self._loss_sum, self._samples = 0.0, 0

    def finish_exchange(self, batch: int) -> None:
        """Launch what is left, in plan order, and wait for every bucket. Raises Abandoned, ExchangeError."""
        assert self._exchange is not None
        self._check_tensors()
        if self.outer is not None:
            self.outer.differences(self._samples / batch)
            try:
                self.outer.end()
            except NonFiniteError as error:
                self.compression.refused(error)
        if self._order is not None:
            self._pending += self._exchange.sum_in_order(self._leaves.nodes, self._order, self.staging.row)
        else:
            self._launch_rest(batch)
        if self._observers.width:
            self.staging.observed.copy_(self._observers.seen())
            reduce = self._reducer.sum_exactly if self._reducer is not None else self._exchange.all_reduce
            self._pending.append(reduce(self.staging.observed, largest=True))
        self._noise = 0.0
        for bucket, pending in enumerate(self._pending):
            self.faults.hit("in_exchange", bucket=bucket)
            pending.wait(self._stop)
        self._pending.clear()  # and the memory that operations hold
        if self._looking is not None:
            self._looking.end(self._sketched, self._samples / batch)
        if self.sums is not None:
            self.sums.end(skipped=self.refused)

    def discard(self) -> None:
        """Forget the step in progress: gradients, and what the forward pass changed (EP-4)."""
        self._noise = 0.0
        if not self.in_step:
            return
        self._clear_grads()
        self._buffers.put_back()
        if self.outer is not None:
            self.outer.put_back(moments=True)
        self._pending.clear()
        if self._reducer is not None:
            self._reducer.abandon()
        self._copies.forget()
        self.staging.discard()
        self.in_step = False

    # ------------------------------------------------------------------ commits

    def apply_step(self, meta: dict[str, Any], generation: Generation, *, took_part: bool = True) -> Commit:
        """Apply the reduced buckets: that is the commit of the next step (EP-5). Raises ApplyError.

        `took_part`: this rank has contributed to them.
        """
        before = self.machine.state
        tensors = [*self.staging.tensors, self.compression.replicated(), self._measured]
        content = self._hash(tensors)
        after_step = before.step + 1
        lineage = next_lineage(before, after_step, 0, generation, content)
        after = StateId(after_step, 0, generation, lineage)
        versions = [tensor._version for tensor in self.staging.tensors]
        try:
            self.faults.hit("in_apply")
            self._apply(meta)
        except Exception as error:
            raise self._lost(error) from error
        unchanged = versions == [tensor._version for tensor in self.staging.tensors]
        self._copies_grads = self._copies_grads or not unchanged
        self.compression.commit(skipped=bool(meta.get("skipped")))
        if self.outer is not None and not meta.get("skipped"):
            self.outer.commit(took_part=took_part)
        if self._reducer is not None and after_step % OWED_EVERY == 0:
            owed = self.compression.memory.norm
            self.owed = lost_norm(owed, self._norm()) if owed else 0.0
        self._decide(after_step, meta)
        commit = Commit(before, after, meta, tensors)
        self.in_step = False
        self.recent.remember(commit, self.staging.current if unchanged else None, servable=unchanged)
        return commit

    def _decide(self, step: int, meta: dict[str, Any]) -> None:
        controller = self.compression.controller
        if controller is not None:
            alarmed = float(self.staging.tail[_ALARMED]) > 0
            self.decisions = controller.decide(step, self._measured, tuple(meta["hosts"]), alarmed=alarmed)
            if "gradient_norm" in meta:
                controller.measures.gradient_norm(meta["gradient_norm"])

    def observe_round(self, fn: Callable[[], Results], *, observe: bool) -> tuple[Results, torch.Tensor]:
        """Run a round's own code; what it changes of the model's buffers is undone, as only commits change the state.

        Returns its results and float64 [n], what the model's observers have seen meanwhile; empty without `observe`.
        """
        self._buffers.save()
        self._observers.forget()
        try:
            with torch.no_grad():
                results = fn()
            return results, self._observers.seen().double() if observe else torch.empty(0).double()
        finally:
            self._buffers.put_back()

    def apply_round(self, meta: dict[str, Any], tensors: list[torch.Tensor], generation: Generation) -> Commit:
        """Commit a round: its results become part of the history, and what its observers have seen of the model.

        Args:
            meta: `name`; `keys` of the sums and of the `largest`; `observe`.
            tensors: the reduced rows, as `rounds.to_rows` makes them.

        Raises:
            ApplyError: what is to follow from the results has raised.
        """
        before = self.machine.state
        lineage = next_lineage(before, before.step, before.round + 1, generation, self._hash(tensors))
        after = StateId(before.step, before.round + 1, generation, lineage)
        results, observed = from_rows(meta, tensors)
        commit = Commit(before, after, meta, tensors)
        try:
            with torch.no_grad():
                if meta["observe"]:
                    self._observers.take(observed)
                self.after_round(meta["name"], results)
        except Exception as error:
            raise self._lost(error) from error
        with self.lock:
            self.replica.history.append((before.step, meta["name"], results))
        self.recent.remember(commit, None, servable=True)
        return commit

    def _lost(self, error: Exception) -> ApplyError:
        """The bytes are no state any more."""
        with self.lock:
            self.machine.lost_state()
        self.in_step = False
        return ApplyError(f"{type(error).__name__}: {error}")

    def replay(self, commit: Commit) -> Commit:
        """Apply a commit that a peer made. Raises TransferError where it does not lead on from our state."""
        if commit.before != self.machine.state:
            raise TransferError(f"the donor offered a commit after {commit.before}, we are at {self.machine.state}")
        if commit.meta["kind"] == "round":
            done = self.apply_round(commit.meta, commit.tensors, commit.after.generation)
        else:
            self.recent.take_row()
            *reduced, replicated, self._measured = commit.tensors
            for ours, received in zip(self.staging.tensors, reduced, strict=True):
                ours.copy_(received)
            took_part = self.compression.replay(commit.before, commit.after.generation, replicated)
            self._buffers.save()
            if self.outer is not None:
                self.outer.replay()
            done = self.apply_step(commit.meta, commit.after.generation, took_part=took_part)
        if done.after != commit.after:
            with self.lock:
                self.machine.lost_state()
            raise TransferError(f"replaying step {commit.after.step} gave another lineage than the donor's")
        return done

    def restore(self, snapshot: Snapshot) -> float:
        """Take over a donor's state. Returns what was `owed`, which is lost by it (CC-12)."""
        with self.lock:
            self.machine.lost_state()
            self.restores += 1
            self.recent.forget()
            self._inherited.clear()
        self._clear_grads()
        self.in_step = False
        self.compression.lose()
        if self.outer is not None:
            self.outer.lose()
        lost, self.owed = self.owed, 0.0
        self.replica.restore(snapshot.captured)
        with self.lock:
            self.machine.synced(snapshot.state, snapshot.previous)
        return lost

    def capture(self, copy: Copy = copied) -> Snapshot:
        """A copy of the committed state, also in the middle of a step: of what that has changed, it is what was before."""
        captured = self._captured(copy)
        captured.meta.update(self.describe())
        return Snapshot(self.machine.state, self.machine.previous, captured)

    def digest(self) -> str:
        """Of the committed state, also in the middle of a step."""
        return self.replica.digest(self._captured() if self.in_step else None)

    def _captured(self, copy: Copy = copied) -> Captured:
        training = self.outer.start if self.outer is not None and self.in_step else None
        return self.replica.capture(self._buffers.before if self.in_step else {}, training, copy)

    # ------------------------------------------------------------------ what peers ask for

    @property
    def heir(self) -> Heir:
        """Of ranks that leave (CC-12)."""
        return Heir({name: parameter.shape for name, parameter in self._parameters}, self._inherit)

    def estate(self) -> dict[str, torch.Tensor]:
        """What this rank owes by error feedback, by parameter name; nothing where that is all zeros."""
        self._absorb_inherited()
        owed = self.compression.memory.state_dict()
        return owed if any(bool(tensor.any()) for tensor in owed.values()) else {}

    def _inherit(self, owed: Mapping[str, torch.Tensor]) -> None:
        with self.lock:
            self._inherited.append(owed)

    def _absorb_inherited(self) -> None:
        with self.lock:
            inherited, self._inherited = self._inherited, []
        for owed in inherited:
            self.compression.absorb(owed)

    # ------------------------------------------------------------------ gradients

    def _hook(self, index: int) -> Callable[[torch.Tensor], None]:
        def arrived(_: torch.Tensor) -> None:
            if self._armed:
                if self._stop():
                    raise Abandoned
                if self._order is None:
                    self._fill(index)
                    self._launch_ready()
                    if self._reducer is not None:
                        self._reducer.progress()
            elif self._pending and self._reducer is not None:  # differences that go out while the round goes on
                self._reducer.progress()

        return arrived

    def _fill(self, index: int) -> None:
        bucket = self.staging.plan.slots[index].bucket
        if index in self._used:  # once more in one backward pass
            if bucket < len(self._pending):
                raise TaskError(
                    f"the gradient of {self._parameters[index][0]} was accumulated twice in one backward pass, the second "
                    "time after it had been sent: write checkpoint(..., use_reentrant=False), and call backward nowhere "
                    "but through job.step(loss)"
                )
            self._arrived[bucket] -= 1
        if self._copy_grad(index, self.staging.views[index], bucket):
            self._used.add(index)
        self._arrived[bucket] += 1

    def _copy_grad(self, index: int, view: torch.Tensor, bucket: int | None = None) -> bool:
        """Into `view`; zeros, and False, where there is none. Staging of a `bucket` need not be there on return."""
        grad = self._parameters[index][1].grad
        if grad is None:
            view.zero_()
            return False
        grad = grad.to_dense() if grad.is_sparse else grad
        if self._noise:
            grad = self._noisy(grad)
        if grad.is_cuda and self.loss_scale != 1.0:  # on the way nobody on the CPU may touch it
            grad = grad.float() / self.loss_scale
        if grad.is_cuda and bucket is not None:
            self._copies.start(bucket, view, grad)
            return True
        view.copy_(grad)
        if not grad.is_cuda and self.loss_scale != 1.0:
            view.div_(self.loss_scale)
        return True

    def _launch_ready(self) -> None:
        """Start the next buckets that are complete; the last one waits for its tail."""
        while len(self._pending) < len(self._arrived) - 1 and self._is_complete(len(self._pending)):
            self._launch()

    def _is_complete(self, bucket: int) -> bool:
        return self._arrived[bucket] >= self._in_bucket[bucket] and self._copies.landed(bucket)

    def _launch(self) -> None:
        assert self._exchange is not None
        bucket = len(self._pending)
        self._copies.wait(bucket)
        if self._looking is not None:
            self._looking.add(bucket, self.staging.gradient(bucket))
        if self._reducer is not None:
            gradient = self.staging.gradient(bucket)
            if self.sums is not None:
                self.sums.launched(bucket)
            if self.compression.controller is not None:
                self.compression.controller.gradient(bucket, gradient)
            self._pending.append(self._reducer.sum_bucket(bucket, gradient))
        else:
            self._pending.append(self._exchange.all_reduce(self.staging.buckets[bucket]))

    def _launch_rest(self, batch: int) -> None:
        assert self._exchange is not None
        if self._reducer is not None:
            self._reducer.backward_ended()
        for index, slot in enumerate(self.staging.plan.slots):
            if index not in self._used and slot.bucket >= len(self._pending):
                self._fill(index)  # left out by this backward: what earlier micro-batches gave, or nothing
        if self._reducer is None:
            self._fill_tail(self.staging.tail, batch)
        while len(self._pending) < len(self._arrived):
            self._launch()
        if self._reducer is not None:  # by now every gradient was looked at
            self._fill_tail(self.staging.tail, batch)
            self._pending.append(self._reducer.sum_exactly(self.staging.tail))
            self._measure()
            claims = self.sums.sum_claims(self._reducer) if self.sums is not None else None
            if claims is not None:
                self._pending.append(claims)
        if self._looking is not None:
            self._sketched = self._looking.collect()
            reduce = self._reducer.sum_exactly if self._reducer is not None else self._exchange.all_reduce
            self._pending.append(reduce(self._sketched))

    def _measure(self) -> None:
        """What the ranks tell each other to choose codecs by, and codecs that are tried beside the exchange."""
        controller, step = self.compression.controller, self.machine.state.step + 1
        self._measured = torch.empty(0)
        if controller is not None and self._reducer is not None:
            if controller.is_due(step):
                self._measured = controller.vector(step)
                self._pending.append(self._reducer.sum_exactly(self._measured, largest=True))
            controller.try_shadows(step, self._reducer.progress)

    def _check_tensors(self) -> None:
        """The tensors of the model must still be those that the state is made of. Raises TaskError."""
        for held, name, path, tensor in self._held:
            if held.get(name) is not tensor:
                kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
                raise TaskError(
                    f"the {kind} {path} is no longer the tensor that it was when the Job was made: write into it in place "
                    f"({name}.copy_(value)), and move or convert the model before you make the Job"
                )

    def _fill_tail(self, tail: torch.Tensor, batch: int) -> None:
        """Who used which parameter, how the buffers changed (weighted by samples), and the scalars."""
        count = len(self._parameters)
        if len(self._used) == count:
            tail[:count] = 1.0
        else:
            tail[:count] = torch.tensor([1.0 if i in self._used else 0.0 for i in range(count)])
        scalars = len(tail) - len(_SCALARS)
        self._buffers.write(tail[count:scalars], self._samples / batch)
        controller = self.compression.controller
        refused, alarmed = self.own_refusal is not None, controller is not None and controller.alarm
        flags = (float(refused), float(alarmed), *self.vote())
        tail[scalars:] = torch.tensor([self._loss_sum, float(self._samples), *flags])

    @torch.no_grad()
    def _apply(self, meta: dict[str, Any]) -> None:
        optimizer, scaler = self.replica.optimizer, self.replica.scaler
        count = len(self._parameters)
        tail = self.staging.tail
        used = tail[:count].tolist()
        scale = float(meta.get("loss_scale", 1.0))
        for (_, parameter), view, users in zip(self._parameters, self.staging.views, used, strict=True):
            if not users:
                parameter.grad = None
            elif self._copies_grads or parameter.dtype != torch.float32 or parameter.device.type != "cpu":
                parameter.grad = view.to(device=parameter.device, dtype=parameter.dtype, copy=True)
            else:
                parameter.grad = view
            if scale != 1.0 and parameter.grad is not None:
                parameter.grad.mul_(scale)  # a copy, as there is a scaler
        loss_sum, samples, refused, _, *votes = tail[-len(_SCALARS) :].tolist()
        self.votes = Votes(*votes)
        if self.outer is not None:
            self.outer.put_back(moments=bool(refused))
        meta["loss"] = loss_sum / samples if samples and math.isfinite(loss_sum) else None
        meta["lr_current"] = float(optimizer.param_groups[0]["lr"])
        if refused:
            meta["skipped"] = True
            if scaler is None:
                self._buffers.put_back()
                self._clear_grads()
                return
            self._overflow()
        if self.outer is not None:
            meta["gradient_norm"] = self._norm()
            self.outer.merge(meta["inner_steps"])
        else:
            self._step_optimizer(meta)
        self._buffers.apply(tail[count : len(tail) - len(_SCALARS)])
        self._observers.take(self.staging.observed)
        self._clear_grads()

    @torch.enable_grad()
    def _step_optimizer(self, meta: dict[str, Any]) -> None:
        optimizer, scaler = self.replica.optimizer, self.replica.scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        if self.clip_norm is not None:
            grads = [p for _, p in self._parameters if p.grad is not None]
            meta["gradient_norm"] = float(nn.utils.clip_grad_norm_(grads, self.clip_norm))
        elif self.compression.controller is not None:
            meta["gradient_norm"] = self._norm()
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        if self.replica.scheduler is not None:
            self.replica.scheduler.step()

    def _norm(self) -> float:
        """L2 norm of what was reduced."""
        reduced = (self.staging.gradient(bucket) for bucket in range(len(self.staging.buckets)))
        return sum(float(torch.dot(values, values)) for values in reduced) ** 0.5

    def _overflow(self) -> None:
        """A rank's gradient was refused: the scaler is to see it, skip the step as well, and scale less."""
        grads = [parameter.grad for _, parameter in self._parameters if parameter.grad is not None]
        grads[0].fill_(torch.inf)

    def _clear_grads(self) -> None:
        for _, parameter in self._parameters:
            parameter.grad = None

    def _flip(self) -> None:
        """For drills: a bit in the middle of the first parameter's first element."""
        with torch.no_grad():
            flat = self._parameters[0][1].view(-1)
            flat[:1] = (flat[:1].view(torch.int32) ^ (1 << 16)).view(torch.float32)

    def _spoil(self) -> None:
        """For drills: the next loss is NaN, and so are its gradients."""
        self._spoilt = True

    def _miscount(self) -> None:
        """For drills: the next sum that this rank makes for others is wrong."""
        if self._reducer is not None:
            self._reducer.miscount()

    def _disturb(self, level: float) -> None:
        """For drills: the next gradient has noise of `level` times its norm."""
        self._noise = level

    def _noisy(self, grad: torch.Tensor) -> torch.Tensor:
        """A parameter's, with noise of `_noise` times its own norm: then that is so of the whole gradient too."""
        noise = torch.randn(grad.shape, generator=self._chance).to(grad)
        return grad + noise * (self._noise * grad.norm() / noise.norm())

    @staticmethod
    def _hash(tensors: list[torch.Tensor]) -> int:
        hasher = blake2b(digest_size=8)
        for tensor in tensors:
            stride = max(1, tensor.numel() // HASHED_ELEMENTS)
            hasher.update(tensor_bytes(tensor[::stride]))
        return int.from_bytes(hasher.digest(), "big")
