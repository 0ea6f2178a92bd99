"""Backward passes of a process, one after the other: from the first of its buckets to the commit of residuals.

Until the buckets of a pass are known to be those of the pass before, sums are exact: DDP orders its buckets anew after the
first one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from workers.collectives.buckets import BucketPlan
from workers.collectives.exchange import SLICE_SECONDS, Abandoned, ExchangeError, FlatExchange, Underway
from workers.collectives.reducer import Reducer
from workers.collectives.tasks import BRIEFLY_SECONDS, Task, patience
from workers.comm.compression import NO_BUCKETS, State, replicated_number, take_over, whole_state
from workers.comm.hosts import agree
from workers.comm.layout import Layout, Names, same
from workers.comm.neighbours import Neighbours
from workers.comm.ready import Ready, on_cpu
from workers.compression.controller.controller import Controller
from workers.compression.gradients import GradientCompression
from workers.identity import NO_GENERATION, StateId

logger = logging.getLogger("quantarion.comm")

CHECK_SECONDS = 0.1
"""How long a dead neighbour goes unnoticed."""

QUIET_STEPS = 2
"""Where no rank needs to be told that a gradient was refused, in one pass of so many ranks tell each other whether their
links have collapsed."""

NORM_STEPS = 2
"""In one pass of so many the norm of the gradient is computed."""


class Iterations:
    """Calls are in one thread, but for what reads or sets its state between two iterations.

    Args:
        exchange: over all ranks.
        neighbours: the ranks of this host.
        names: of the model's parameters.
        compress: makes the compression for a plan of buckets.
        learning_rate: the optimizer's, at present.
        timeout: seconds in which a bucket must get on.
        stop: whether to give up.
    """

    def __init__(
        self,
        exchange: FlatExchange,
        neighbours: Neighbours,
        names: Names,
        compress: Callable[[BucketPlan], GradientCompression],
        learning_rate: Callable[[], float],
        timeout: float,
        stop: Callable[[], bool],
    ) -> None:
        self._exchange, self._neighbours, self._names, self._compress = exchange, neighbours, names, compress
        self._learning_rate, self._timeout, self._stop = learning_rate, timeout, stop
        self.steps = self.sent_bytes = 0
        self.compression = compress(NO_BUCKETS)
        alone = tuple((place.rank,) for place in exchange.topology.places)
        self._plain = Reducer(exchange, alone, None, self.compression)
        self._encoding = self._reducer = self._plain
        self._layout: Layout = ()
        self._loaded: State | None = None
        self._open: list[Ready] = []
        self._values: list[Tensor] = []
        self._refused: list[bool] = []
        self._tasks: list[Task] = []
        self._compressed = False
        self._flags = self._measured = torch.empty(0)
        self._quiet = False
        """Nobody has to be told that a gradient was refused: none can be, or its sum is NaN everywhere."""
        self._in_rings = False
        """All buckets go by gloo's rings, which get on by themselves."""
        self._awaited: object = None
        self._briefly = BRIEFLY_SECONDS
        self._since = self._checked = time.monotonic()

    # ------------------------------------------------------------------ one iteration

    @property
    def waiting(self) -> bool:
        """Whether there is anything to be waited for."""
        return any(not task.done for task in self._tasks)

    @property
    def spare_seconds(self) -> float:
        """How long the next bucket may be waited for before `get_on`: links go on by themselves."""
        first = self._first
        alone = first is not None and isinstance(first.awaited, Underway) and not self._open[-1].last
        if not alone:
            return 0.0
        return CHECK_SECONDS if self._in_rings else self._briefly

    def start(self, ready: Ready) -> None:
        """Start the sum of the next bucket. Raises ExchangeError, Abandoned."""
        self._open.append(ready)
        self._since, self._briefly = time.monotonic(), BRIEFLY_SECONDS
        if ready.index != len(self._open) - 1:
            raise ExchangeError(
                f"bucket {ready.index} came after {len(self._open) - 1} buckets of a backward pass that has not ended: "
                "call backward once for each forward pass"
            )
        if ready.index == 0:
            self._begin(ready)
        elif self._reducer is self._encoding and not self._is_known(ready):
            self._go_on_plain()
        values = ready.mean_of(self._exchange.topology.world)
        if not self._stays_on_device(ready):
            values = on_cpu(values)
        self._values.append(values)
        self._tasks.append(self._sum(ready.index, values))
        if ready.last:
            self._no_more_buckets()
            self._say_what_all_must_know()
            if not self.waiting:
                self._conclude()

    def get_on(self) -> None:
        """Let the sums get on for a moment; the last one ends the iteration. Raises ExchangeError, Abandoned."""
        if not self._move(wait=self.spare_seconds == 0) and self._open[-1].last:
            self._conclude()

    def abandon(self) -> list[Ready]:
        """Forget what is on its way. Returns the buckets that get no sum."""
        self._reducer.abandon()
        self._neighbours.abandon()
        self._tasks.clear()
        return self._open

    def _begin(self, ready: Ready) -> None:
        self._compressed = self._is_known(ready)
        self._reducer = self._encoding if self._compressed else self._plain
        self._reducer.begin()
        if self._compressed:
            before = StateId(self.steps, 0, NO_GENERATION, 0)
            self.compression.begin(before, NO_GENERATION, self._learning_rate())
        plan = range(len(self.compression.plan.sizes)) if self._compressed else ()
        rings = [self._reducer.goes_in_ring(bucket) for bucket in plan]
        altered = [self.compression.alters(bucket) for bucket in plan]
        self._in_rings = self._compressed and all(rings)
        self._quiet = self._compressed and all(ring or not alters for ring, alters in zip(rings, altered, strict=True))

    def _go_on_plain(self) -> None:
        """The buckets before this one were as in the plan, and this one is not: each reducer has an order of its own."""
        self._no_more_buckets()
        while self._move(wait=True):
            pass
        self._quiet = self._in_rings = False
        self.sent_bytes += self._reducer.sent_bytes
        self._reducer = self._plain
        self._reducer.begin()

    def _is_known(self, ready: Ready) -> bool:
        """Whether the bucket is that of the plan."""
        index = ready.index
        fits = index < len(self._layout) and same(ready.parameters, self._layout[index])
        return fits and ready.last == (index == len(self._layout) - 1)

    def _stays_on_device(self, ready: Ready) -> bool:
        """Sums of low rank, and those before the buckets are known, are made on the CPU."""
        if self._exchange.topology.world == 1:
            return True
        on_device = self._neighbours.on_device
        if on_device is None or self._reducer is not self._encoding:
            return False
        return ready.gradient.device == on_device.device and not self.compression.choices[ready.index].is_low_rank

    def _no_more_buckets(self) -> None:
        """Of this pass, or of those that are encoded."""
        self._reducer.backward_ended()
        if self._neighbours.on_device is not None:
            self._neighbours.on_device.end()

    def _sum(self, bucket: int, values: Tensor) -> Task:
        """A bucket that is encoded is looked at when its sum starts."""
        if self._reducer is self._plain:
            self._refused.append(False)
            return self._reducer.sum_exactly(values)
        if self.compression.controller is not None:
            self.compression.controller.gradient(bucket, values)
        task = self._reducer.sum_bucket(bucket, values)
        error = self.compression.non_finite
        if error is not None:
            logger.warning("the gradient of %s is not finite: all ranks get NaN in its bucket", error.name)
            self.compression.non_finite = None
        self._refused.append(error is not None)
        return task

    def _say_what_all_must_know(self) -> None:
        """Whose gradient was refused, and added zeros; whether a link has collapsed; what codecs are chosen by."""
        self._flags = self._measured = torch.empty(0)
        if not self._compressed:
            return
        controller, step = self.compression.controller, self.steps + 1
        if not self._quiet or (controller is not None and step % QUIET_STEPS == 0):
            self._tell_flags()
        if controller is not None and self._reducer is self._encoding:
            if controller.is_due(step):
                self._reduce_measures(controller, step)
            controller.try_shadows(step, self._reducer.progress)

    def _tell_flags(self) -> None:
        controller = self.compression.controller
        alarmed = controller is not None and controller.alarm
        self._flags = torch.tensor([*self._refused, alarmed], dtype=torch.float32)
        self._tasks.append(self._reducer.sum_exactly(self._flags))

    def _conclude(self) -> None:
        """All that was started is done. Where a rank has found its link collapsed all reduce their measures before the end,
        so that the next pass has another plan."""
        controller = self.compression.controller
        if controller is not None and self._alarmed and self._reducer is self._encoding and not len(self._measured):
            self._reduce_measures(controller, self.steps + 1)
        if not self.waiting:
            self._end()

    @property
    def _alarmed(self) -> bool:
        """A rank has found its link collapsed, as all know now."""
        return len(self._flags) > 0 and float(self._flags[-1]) > 0

    def _reduce_measures(self, controller: Controller, step: int) -> None:
        self._measured = controller.vector(step)
        self._tasks.append(self._reducer.sum_exactly(self._measured, largest=True))

    def _end(self) -> None:
        self.steps += 1
        self.sent_bytes += self._reducer.sent_bytes
        if self._compressed:
            self._commit()
        for ready, values in zip(self._open, self._values, strict=True):
            ready.put_back(values)
        if self._reducer is self._plain:
            self._adopt(tuple(ready.parameters for ready in self._open))
        self._values.clear()
        self._refused.clear()
        self._tasks.clear()
        while self._open:  # what is left there when something goes wrong is told so
            self._open[0].give()
            self._open.pop(0)

    def _commit(self) -> None:
        refused = self._flags.tolist()[:-1] if len(self._flags) else [0.0] * len(self._values)
        for bucket, values in enumerate(self._values):
            if refused[bucket] or bucket in self._reducer.spoilt:
                refused[bucket] = 1.0
                values.fill_(math.nan)
        self.compression.commit(skipped=any(refused))
        controller = self.compression.controller
        if controller is not None:
            for decision in controller.decide(self.steps, self._measured, controller.world, alarmed=self._alarmed):
                logger.info("%s", decision)
            if not any(refused) and self.steps % NORM_STEPS == 0:
                controller.measures.gradient_norm(sum(float(torch.dot(v, v)) for v in self._values) ** 0.5)

    def _move(self, *, wait: bool) -> bool:
        """Let the sums get on for a moment; False where all are done."""
        moved = self._reducer.progress()
        first = self._first
        if first is None:
            return False
        self._watch(first.awaited)
        assert first.awaited is not None
        if wait:
            lonely = sum(not task.done for task in self._tasks) == 1
            first.awaited.block(CHECK_SECONDS if self._in_rings else SLICE_SECONDS if lonely else self._briefly)
        self._briefly = patience(self._briefly, moved=moved)
        return True

    @property
    def _first(self) -> Task | None:
        """Of what is on its way, what was begun first."""
        return next((task for task in self._tasks if not task.done), None)

    def _watch(self, awaited: object) -> None:
        now = time.monotonic()
        if self._stop():
            raise Abandoned
        if awaited is not self._awaited:
            self._awaited, self._since = awaited, now
        if now - self._checked > CHECK_SECONDS:
            self._neighbours.check()
            self._checked = now
        if now - self._since > self._timeout:
            raise ExchangeError(f"no gradients came from another rank for {self._timeout:.0f} seconds")

    # ------------------------------------------------------------------ layouts

    def _adopt(self, layout: Layout) -> None:
        """The buckets are these from now on; all that is owed moves over."""
        plan = self._names.plan(layout)
        state = self._loaded or self.state_dict()
        self._check_alike(state)
        devices = {ready.gradient.device for ready in self._open}
        self._neighbours.share(plan.sizes, self._compress(plan).thin_sizes, devices, self._stop)
        self._take_over(plan, state)
        self._layout, self._loaded = layout, None

    def _check_alike(self, state: State) -> None:
        """Else some would wait for what the others do not send. Raises ExchangeError, on all ranks."""
        if self._exchange.topology.world == 1:
            return
        numbers = agree(self._exchange, replicated_number(self.steps, state), self._stop)
        others = [rank for rank, number in enumerate(numbers) if number != numbers[0]]
        if others:
            raise ExchangeError(
                f"the CommState of rank {others[0]} is not that of rank 0: call load_state_dict on every rank, before the "
                "first backward pass, with states of one checkpoint"
            )

    def _take_over(self, plan: BucketPlan, state: State) -> None:
        compression = self._compress(plan)
        take_over(compression, state)
        compression.begin_generation(self._exchange.topology.units(self._neighbours.hosts))
        self.compression = compression
        self._encoding = Reducer(
            self._exchange, self._neighbours.hosts, self._neighbours.on_host, compression, nan_tells=True
        )

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> State:
        """As of `CommState`."""
        if self._loaded is not None:
            return self._loaded
        return {"steps": self.steps, **whole_state(self.compression)}

    def load_state_dict(self, state: State) -> None:
        """Raises ValueError where it is of another model; before the first iteration that shows only there."""
        if self._layout:
            self._take_over(self.compression.plan, state)
        else:
            self._loaded = state
        self.steps = state["steps"]
