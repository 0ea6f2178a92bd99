"""What the ranks of a test do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from tests.workers.comm.ranks import Known, digest, flat, hooked, wanted
from workers.collectives.device import DeviceExchange
from workers.comm import CommState, devices, neighbours
from workers.compression.controller import controller
from workers.compression.controller.controller import Controller
from workers.compression.controller.layout import Measured
from workers.compression.controller.records import Record
from workers.compression.controller.state import ControllerState
from workers.memory_file import MemoryShortage

STEPS = 30
SMALL_BUCKETS = 0.0001
"""MB: the model below has then a bucket for each parameter."""


class Outcome(NamedTuple):
    """`loss` is the mean of the last 10 steps, on this rank."""

    digest: str
    parameters: Tensor
    loss: float
    sent: int
    steps: int
    choices: list[str]
    hosts: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]


class Odd(nn.Module):
    """No model of ours: parameters of one to four axes, a branch that may be left out, one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(1, 6, 3, padding=1)
        self.narrow = nn.Linear(6 * 36, 48)
        self.twice = nn.Linear(48, 48)
        self.scale = nn.Parameter(torch.ones(()))
        self.branch = nn.Linear(48, 48)
        self.norm = nn.LayerNorm(48)
        self.answer = nn.Linear(48, 4)

    def forward(self, x: Tensor, branch: bool = True) -> Tensor:
        x = torch.tanh(self.narrow(self.look(x).flatten(1)))
        x = x + torch.tanh(self.twice(torch.tanh(self.twice(x)))) * self.scale
        x = x + torch.tanh(self.branch(x)) if branch else x
        return self.answer(self.norm(x))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Which quarter of a picture is the brightest."""
    noise = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    x = torch.randn(16, 1, 6, 6, generator=noise)
    return x, brightest_quarters(x)


def brightest_quarters(x: Tensor) -> Tensor:
    """int64 [n], of pictures [n, 1, 6, 6]."""
    return x.unfold(2, 3, 3).unfold(3, 3, 3).sum(dim=(4, 5)).flatten(1).argmax(dim=1)


def train(
    options: dict[str, Any] | None, steps: int = STEPS, mode: str = "", device: str | torch.device = "cpu", **ddp: Any
) -> Outcome:
    """Of `Odd`; with plain DDP where there are no options.

    Args:
        mode: `accumulate` three micro-batches; leave the `branch` out now and then; `bfloat16`.
    """
    torch.manual_seed(3)
    model = (Odd().bfloat16() if mode == "bfloat16" else Odd()).to(device)
    if options is None:
        return _train(DistributedDataParallel(model, **ddp), None, steps, mode)
    with hooked(model, options, **ddp) as (wrapped, state):
        return _train(wrapped, state, steps, mode)


def _train(model: DistributedDataParallel, state: CommState | None, steps: int, mode: str) -> Outcome:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        x, y = (each.to(next(model.parameters()).device) for each in batch(step))
        if mode == "bfloat16":
            x = x.bfloat16()
        if mode == "accumulate":
            with model.no_sync():
                for part in (0, 1):
                    cross_entropy(model(x[part::3]), y[part::3]).backward()
            loss = cross_entropy(model(x[2::3]), y[2::3])
        elif mode == "branch":
            loss = cross_entropy(model(x, branch=(step + dist.get_rank()) % 3 == 0 and step % 4 > 0), y)
        else:
            loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    trained = digest(model), flat(model), sum(losses[-10:]) / len(losses[-10:])
    if state is None:
        return Outcome(*trained, 0, steps, [], (), ())
    choices = list(map(str, state.choices))
    return Outcome(*trained, state.bytes_sent, state.steps, choices, state.hosts, state.groups)


def train_each(all_options: list[dict[str, Any] | None], **ddp: Any) -> list[Outcome]:
    return [train(options, **ddp) for options in all_options]


def train_in_small_buckets(all_options: list[dict[str, Any] | None]) -> list[Outcome]:
    return train_each(all_options, bucket_cap_mb=SMALL_BUCKETS)


def train_modes(modes: list[tuple[str, dict[str, Any]]]) -> list[tuple[Outcome, Outcome]]:
    """With plain DDP, and with ours uncompressed and in float32."""
    exact = {"policy": "fixed", "codec": "none"}
    return [(train(None, 12, mode, **ddp), train(exact, 12, mode, **ddp)) for mode, ddp in modes]


def train_alarmed(whom: int, steps: Sequence[int]) -> tuple[Outcome, list[int]]:
    """`whom` finds its link collapsed in some steps. With those after which was decided, by measures of all."""
    begun, decide, decided = 0, controller.decide, []

    def begin_step(self: Controller, step: int) -> None:
        nonlocal begun
        begun = step
        began(self, step)

    def counted(before: ControllerState, reduced: Measured, step: int, *rest: Any) -> tuple[ControllerState, list[Record]]:
        decided.append(step)
        return decide(before, reduced, step, *rest)

    began, Controller.begin_step = Controller.begin_step, begin_step  # type: ignore[method-assign]
    controller.decide = counted  # type: ignore[assignment]
    Controller.alarm = property(lambda _: dist.get_rank() == whom and begun in steps)  # type: ignore[assignment]
    return train({}, 45), decided


def train_without_room(lacking: list[int]) -> Outcome:
    """Some ranks have no room in /dev/shm."""

    def no_room(*_: object) -> None:
        raise MemoryShortage("there is no room")

    if dist.get_rank() in lacking:
        neighbours.HostMemory = no_room  # type: ignore[assignment, misc]
    return train({"policy": "fixed", "codec": "int8"}, 8)


def ranks_of_a_host_differ_in_their_group() -> str:
    """What `CommState` says of it, and that the process group is as good as before."""
    os.environ["QUANTARION_GROUP"] = f"site {dist.get_rank()}"
    try:
        CommState()
    except ValueError as error:
        dist.barrier(dist.new_group([0, 1, 2], use_local_synchronization=True))
        return str(error)
    return "nothing"


def groups_of_the_script_come_after(options: dict[str, Any]) -> float:
    """The script makes a process group of its own, by the ranks that are in it only, after the hook's."""
    with hooked(Odd(), options) as (wrapped, _):
        own = dist.new_group([0, 2], use_local_synchronization=True) if dist.get_rank() != 1 else None
        x, y = batch(0)
        cross_entropy(wrapped(x), y).backward()
        total = torch.ones(1)
        if own is not None:
            dist.all_reduce(total, group=own)
        return float(total)


def pretend_devices(lacking: Sequence[int] = ()) -> None:
    """From here on the CPU is a device of this rank's own, with gloo in the place of NCCL; some ranks lack one."""

    def make_group(device: torch.device, store: Any, index: int, world: int, timeout: timedelta) -> Any:
        gloo: Any = dist.ProcessGroupGloo
        return gloo(store, index, world, timeout)

    mine = devices.NONE if dist.get_rank() in lacking else dist.get_rank() + 1
    devices.identity = lambda device: mine
    devices.make_group = make_group


class OnDevices(NamedTuple):
    outcome: Outcome
    reductions: int


def train_on_devices(all_options: list[dict[str, Any]], lacking: list[int], **ddp: Any) -> list[OnDevices]:
    """With the number of buckets that went over the group."""
    pretend_devices(lacking)
    count = 0
    reduce_scatter = DeviceExchange.reduce_scatter

    def counted(self: DeviceExchange, values: Tensor, *, cuts: Sequence[int]) -> Any:
        nonlocal count
        count += 1
        return reduce_scatter(self, values, cuts=cuts)

    DeviceExchange.reduce_scatter = counted  # type: ignore[method-assign]
    found = []
    for options in all_options:
        count = 0
        found.append(OnDevices(train(options, 14, **ddp), count))
    return found


def known_on_devices(options: dict[str, Any], ddp: dict[str, Any]) -> Balance:
    pretend_devices()
    return known_gradients(range(20), options, None, ddp)


# ------------------------------------------------------------------ gradients that are known


class Balance(NamedTuple):
    """float64: what was applied, and given, summed over the steps; what each rank owes in the end, by name."""

    applied: Tensor
    given: Tensor
    state: dict[str, Any]
    digest: str


def known_gradients(
    steps: range, options: dict[str, Any], states: dict[int, list[dict[str, Any]]] | None, ddp: dict[str, Any]
) -> Balance:
    """Each rank begins with its `states`."""
    model = Known()
    options = {**options, **({"model": model} if options.get("model") else {"model": None})}
    applied = torch.zeros(flat(model).numel(), dtype=torch.float64)
    given = applied.clone()
    world = dist.get_world_size()
    with hooked(model, options, **ddp) as (wrapped, state):
        if states is not None:
            state.load_state_dict(*states[dist.get_rank()])
        for step in steps:
            wrapped.zero_grad()
            wrapped(wanted(dist.get_rank(), step)).backward()
            applied += torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).double()
            each = [torch.cat([g.reshape(-1) for g in wanted(rank, step)]).double() for rank in range(world)]
            given += torch.stack(each).mean(0)
            torch.optim.SGD(model.parameters(), lr=1.0).step()
        return Balance(applied, given, state.state_dict(), digest(model))


def loaded_on_one_rank(loader: int, options: dict[str, Any], saved: dict[str, Any]) -> str:
    """What a rank hears of it."""
    with hooked(Known(), options) as (wrapped, state):
        if dist.get_rank() == loader:
            state.load_state_dict(saved)
        try:
            wrapped(wanted(dist.get_rank(), 0)).backward()
        except RuntimeError as error:
            return str(error)
    return "nothing"


class Skipped(NamedTuple):
    nan: list[bool]
    kept: bool
    scales: list[float]
    digest: str
    finite: bool


def one_gradient_is_infinite(codec: str) -> Skipped:
    """On the last rank, in the last parameter, in one of 12 steps of a GradScaler."""
    model, rank = Known(), dist.get_rank()
    with hooked(model, {"policy": "fixed", "codec": codec, "dense_steps": 1}, bucket_cap_mb=0.001) as (wrapped, state):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scales, nan, kept = [], [], False
        for step in range(12):
            gradients = wanted(rank, step)
            if step == 8 and rank == dist.get_world_size() - 1:
                gradients[2][3, 4, 1] = torch.inf
            before = state.state_dict()["residuals"]
            optimizer.zero_grad()
            scaler.scale(wrapped(gradients)).backward()
            if step == 8:
                nan = [not bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None]
                after = state.state_dict()["residuals"]
                kept = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return Skipped(nan, kept, scales, digest(model), bool(flat(model).isfinite().all()))


# ------------------------------------------------------------------ overlap and loss of ranks


class _WaitsInBackward(torch.autograd.Function):
    """Its backward does not end before `reached()`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reached: Any) -> Tensor:
        ctx.reached = reached
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.reached()
        return gradients[0], None


def backward_waits_for_the_first_sum() -> list[bool]:
    """For each step but the first: whether a bucket was exchanged while backward went on."""
    first, second = nn.Linear(30, 40), nn.Linear(40, 30)
    seen: list[bool] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor) -> Tensor:
            return self.second(_WaitsInBackward.apply(self.first(x), reached))

    with hooked(Model(), {"policy": "fixed", "codec": "int8"}, bucket_cap_mb=0.001) as (wrapped, state):

        def reached() -> None:
            if state.steps == 0:
                return  # DDP's first layout has but one bucket
            deadline = time.monotonic() + 60
            while not _one_is_done(state) and time.monotonic() < deadline:
                time.sleep(0.001)
            seen.append(_one_is_done(state))

        for _ in range(6):
            wrapped(torch.randn(4, 30)).sum().backward()
    return seen


def _one_is_done(state: CommState) -> bool:
    return any(task.done for task in list(state._iterations._tasks))


def one_is_killed(victim: int, codec: str) -> str:
    """What the others hear of it."""
    with hooked(Odd(), {"policy": "fixed", "codec": codec}, bucket_cap_mb=SMALL_BUCKETS) as (wrapped, state):
        if dist.get_rank() == victim:
            layer = wrapped.module.narrow

            def die(*_: object) -> None:
                if state.steps == 5:
                    os.kill(os.getpid(), signal.SIGKILL)

            layer.register_full_backward_hook(die)
        try:
            for step in range(20):
                x, y = batch(step)
                cross_entropy(wrapped(x), y).backward()
        except RuntimeError as error:
            return f"{state.steps} {error}"
    return "nothing"


def one_is_killed_on_devices(victim: int, codec: str) -> str:
    pretend_devices()
    return one_is_killed(victim, codec)


# ------------------------------------------------------------------ whole trainings


def forgetful_mean(bucket: dist.GradBucket, density: float) -> Any:
    """For DDP: of this share of a bucket's entries, the largest; nothing is owed for the others."""
    gradient = bucket.buffer()
    kept = gradient.abs().topk(max(1, int(density * len(gradient)))).indices
    sparse = torch.zeros_like(gradient).index_copy_(0, kept, gradient[kept])
    work = dist.all_reduce(sparse.div_(dist.get_world_size()), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


def final_losses(options: dict[str, Any] | None, seeds: Sequence[int], steps: int, forgets: float = 0.0) -> list[float]:
    """On samples that nobody has trained on, after `steps` on a thousand others, for each seed.

    Args:
        options: of the hook; None for plain DDP, which then `forgets` all but this share of each bucket, if it is not 0.
    """
    found = []
    samples = torch.Generator().manual_seed(0)
    x, unseen = torch.randn(1024, 1, 6, 6, generator=samples), torch.randn(2048, 1, 6, 6, generator=samples)
    y = brightest_quarters(x)
    for seed in seeds:
        torch.manual_seed(seed)
        model = Odd()
        drawn = torch.Generator().manual_seed(1000 * seed + dist.get_rank())
        batches = [torch.randint(len(x), (16,), generator=drawn) for _ in range(steps)]
        if options is None:
            wrapped = DistributedDataParallel(model)
            if forgets:
                wrapped.register_comm_hook(None, lambda state, bucket: forgetful_mean(bucket, forgets))
            _descend(wrapped, x, y, batches)
        else:
            with hooked(model, options) as (wrapped, _):
                _descend(wrapped, x, y, batches)
        with torch.no_grad():
            found.append(float(cross_entropy(model(unseen), brightest_quarters(unseen))))
    return found


def _descend(model: DistributedDataParallel, x: Tensor, y: Tensor, batches: Sequence[Tensor]) -> None:
    """With a rate that falls to zero, so that the end is no matter of chance."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=len(batches))
    for chosen in batches:
        optimizer.zero_grad()
        cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        schedule.step()
