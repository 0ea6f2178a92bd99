"""The controller of a rank: what it measures, and what all ranks have decided alike (CC-17 to CC-23)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workers.collectives.buckets import BucketPlan
from workers.collectives.exchange import Groups, Hosts
from workers.compression.choice import Plan
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.layout import Layout
from workers.compression.controller.measures import Measures
from workers.compression.controller.policy import decide, is_decision_step
from workers.compression.controller.records import Record
from workers.compression.controller.shadows import Pair
from workers.compression.controller.state import VERSION, ControllerState, initial_state
from workers.compression.controller.trials import Trials
from workers.compression.controller.wire import BucketFacts

LEVEL = "hosts"
EDGES = 2
"""Parameters at either end of a model that count as its first and its last layer: a weight and a bias."""
EDGE_SHARE = 0.1
"""An end that has more of the model's elements is most of what there is to send, and no edge of it."""


class Controller:
    """Of one rank; outlives generations. What it has decided is replicated, what it has measured is its own.

    Args:
        plan: of the buckets.
        config: which policy, and its constants.
        planned_steps: of the job.
        seed: the job's.
    """

    def __init__(self, plan: BucketPlan, config: ControllerConfig, planned_steps: int, seed: int = 0) -> None:
        self._plan, self._config, self._planned_steps = plan, config, planned_steps
        self.state = self._initial()
        self._hosts, self._local_ranks = 1, 1
        self.measures = Measures(self.facts(1, 1), (LEVEL,))
        self._layout = Layout(len(plan.sizes), (LEVEL,))
        self._next: Pair | None = None
        self.alike = False
        """Machines are, as of `product`."""
        self.is_calm = True
        """No shadow is in the way of the exchange, whose times are then its own."""
        self._begun: tuple[int, float] | None = None
        """The last step, and when it began."""
        self._last = 0.0
        """Seconds of the step before."""
        self._usual: float | None = None
        """Seconds of a step before the plan changed, until the next window ends."""
        self._copies: dict[int, Tensor] = {}
        self._trials = Trials(plan.slots, seed)

    def choices(self, step: int) -> Plan:
        """In force for a step, which is the one after the last that this state knows of."""
        return self.state.plan

    def facts(self, hosts: int, local_ranks: int) -> list[BucketFacts]:
        """What decides beside the measures, the same on all ranks."""
        everything, total = self._plan.slots, sum(self._plan.gradient_sizes)
        ends = (everything[:EDGES], everything[-EDGES:])
        edges = {slot.name for end in ends if sum(s.numel for s in end) <= EDGE_SHARE * total for slot in end}
        found = []
        for bucket, size in enumerate(self._plan.gradient_sizes):
            slots = [slot for slot in self._plan.slots if slot.bucket == bucket]
            sensitive = sum(slot.numel for slot in slots if slot.name in edges) / size if size else 0.0
            shapes = tuple((slot.name, tuple(slot.shape)) for slot in slots)
            found.append(BucketFacts(shapes, hosts, local_ranks, sensitive, LEVEL))
        return found

    def begin_generation(self, units: Hosts | Groups) -> None:
        """Of the units between which gradients are encoded: hosts, or groups of hosts; with groups, what is said of hosts
        here and in `BucketFacts` is meant of groups."""
        self._hosts, self._local_ranks = len(units), min(map(len, units))
        self._forget_steps()
        self.measures.begin_generation(self.facts(self._hosts, self._local_ranks))

    @property
    def world(self) -> tuple[int, int]:
        """Hosts, and the fewest ranks of a host, or of groups: what a commit has to say beside the measures."""
        return self._hosts, self._local_ranks

    # ------------------------------------------------------------------ a step

    def is_due(self, step: int) -> bool:
        """Whether something is reduced beside the gradients of this step: measures, or a probe of the link."""
        return self._hosts > 1 and (self.state.probing > 0 or is_decision_step(self.state, step, self._config))

    def _only_probes(self, step: int) -> bool:
        """So that what a probe has found is known in the next decision, it goes by itself, in the step after the one that
        asked for it."""
        return self.state.probing > 0 and not is_decision_step(self.state, step, self._config)

    def vector(self, step: int) -> Tensor:
        """What is reduced, to the largest of each element, in a step that something is due in: float32 [n]. Measures, and
        behind them, or instead of them, zeros where the link is to be probed."""
        is_whole = step % self._config.every == 0
        found = torch.empty(0) if self._only_probes(step) else self.measures.vector(self._latest or None, is_whole=is_whole)
        receivers = (self._hosts - 1) * self._local_ranks
        if not self.state.probing or not receivers:
            return found
        padding = -(-self.state.probing // (4 * receivers))
        self.measures.expect_probe(4 * padding * receivers)
        return torch.cat([found, torch.zeros(padding)])

    def decide(self, step: int, reduced: Tensor, world: tuple[int, int], *, alarmed: bool) -> list[Record]:
        """The step is committed: the state goes on, alike on all ranks. Returns what is worth an event.

        Args:
            reduced: `vector` of all ranks, the largest of each element; empty where nothing was due.
            world: of the generation that has committed.
            alarmed: whether a rank has found its link collapsed.
        """
        only_probed = self._only_probes(step)
        if alarmed:
            self.state = replace(self.state, alarmed=True)
        if not len(reduced):
            return []
        if only_probed:
            self.state = replace(self.state, probing=0, probed=self.state.probing)
            return []
        facts, before = self.facts(*world), self.state
        measured = self._layout.read(reduced[: self._layout.length])
        self.state, records = decide(before, measured, step, facts, self._config)
        is_whole, is_other = step % self._config.every == 0, self.state.plan != before.plan
        if is_whole or is_other:
            self._usual = measured.step_seconds if is_whole and is_other else None
        if is_other or (before.alarmed and records):
            self.measures.begin_steps()
            self._begun, self._last = None, 0.0
        return records

    @property
    def alarm(self) -> bool:
        """Whether this rank finds its link collapsed, or steps far longer than those before the plan changed: what was
        taken for the link may have been wrong all along."""
        if self._config.policy != "adaptive" or self._hosts == 1:
            return False
        longer = self._usual is not None and self._latest > self._config.collapse * self._usual
        return longer or self.measures.alarm(self._config.collapse)

    def _forget_steps(self) -> None:
        """Those to come have other ranks, or are of another run."""
        self._begun, self._last, self._usual = None, 0.0, None

    @property
    def _latest(self) -> float:
        """Seconds of the last step, or of this one until now, whichever is more."""
        running = 0.0 if self._begun is None else time.perf_counter() - self._begun[1]
        return max(running, self._last)

    # ------------------------------------------------------------------ shadows

    def begin_step(self, step: int) -> None:
        """Whether gradients have to be copied for shadows is known from here on."""
        now = time.perf_counter()
        if self._begun is not None and self._begun[0] == step - 1:
            self._last = now - self._begun[1]
            if self.is_calm:
                self.measures.stepped(self._last)
        self._begun = step, now
        self._copies.clear()
        quiet = self._config.policy != "adaptive" or self.state.probing > 0
        self._next = None if quiet else self.measures.next_shadow(step, self.state.plan)
        self.is_calm = self._next is None

    def gradient(self, bucket: int, gradient: Tensor) -> None:
        """A bucket's gradient, float32 [n], before anything is added to it."""
        if self._next is not None:
            self._copies[bucket] = gradient.to("cpu", copy=True)

    def try_shadows(self, step: int, meanwhile: Callable[[], object]) -> None:
        """Encode and decode what is worth a try, with nothing owed: what the codec keeps of a step's gradient.

        Args:
            meanwhile: called in between, so that the exchange gets on.
        """
        pair = self._next
        while pair is not None:
            if pair.bucket in self._copies:
                self._try(pair, self._copies[pair.bucket])
                meanwhile()
            pair = self.measures.next_shadow(step, self.state.plan)
        self._next = None
        self._copies.clear()

    def _try(self, pair: Pair, gradient: Tensor) -> None:
        trial = self._trials.try_on(pair.bucket, gradient, pair.choice, alike=self.alike)
        if trial is not None:
            self.measures.encoded(pair.choice, len(gradient), trial.encode)
            self.measures.decoded(pair.choice, len(gradient), trial.decode)
            self.measures.gain(pair.bucket, pair.choice, trial.gain, trial.energy)

    # ------------------------------------------------------------------ replicated state

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"policy": self._config.policy, "state": self.state.as_dict()}

    def restore(self, plain: Mapping[str, Any] | None) -> None:
        """Take over `as_dict`; begin anew where there is none, or one of another policy, version or of other buckets."""
        self.state = self._initial()
        self._forget_steps()
        if not plain or plain["policy"] != self._config.policy or plain["state"]["version"] != VERSION:
            return
        if len(plain["state"]["buckets"]) == len(self._plan.sizes):
            self.state = ControllerState.from_dict(plain["state"])

    def _initial(self) -> ControllerState:
        return initial_state(self._config, len(self._plan.sizes), self._planned_steps)
