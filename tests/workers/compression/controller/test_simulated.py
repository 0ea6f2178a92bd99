"""CC-17 to CC-21 together: four ranks measure a link that changes under them, and the plan follows."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from tests.workers.compression.controller.conftest import ERRORS, mlp
from workers.compression.choice import NONE, Choice, Plan
from workers.compression.controller.forecast import exposed, seconds
from workers.compression.controller.link import Line
from workers.compression.controller.measures import Measures
from workers.compression.controller.policy import DEFAULT, decide, is_decision_step
from workers.compression.controller.state import initial_state
from workers.compression.controller.wire import transfers

BUCKETS = mlp()
HIDDEN = (0.012, 0.002)
FAST, SLOW = Line(1e-4, 8e-9), Line(1e-4, 8e-7)
CODING = {"none": 0.0, "int8": 2e-8, "int4": 2e-8, "fp16": 2e-8, "bf16-ring": 2e-8}
"""Seconds per element, of the others 4e-8: at 1000 Mbit/s encoding, on a busy machine, takes longer than it saves."""


def rate(choice: Choice) -> float:
    return CODING.get(choice.codec, 4e-8)


class Gang:
    """Ranks of four hosts with one controller, whose transfers take what the link makes them take, give or take.

    Every step each rank begins a little later or earlier than the others, so that all but the last wait; one transfer in
    twenty is held up.
    """

    def __init__(self, seed: int, *, alarms: bool) -> None:
        self.random = random.Random(seed)
        self.ranks = [Measures(BUCKETS) for _ in range(4)]
        self.state = initial_state(DEFAULT, len(BUCKETS), 200)
        self.alarms, self.step, self.clock = alarms, 0, 0.0
        self.plans: list[Plan] = []
        self.seconds: list[float] = []

    def run(self, line: Line, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            self.plans.append(self.state.plan)
            self.seconds.append(self.exchange_time(line, self.state.plan))
            self.exchange(line)
            self.try_candidates()
            for rank in self.ranks:
                rank.stepped(max(HIDDEN) + self.seconds[-1])
            before = self.state.plan
            if is_decision_step(self.state, self.step):
                reduced = torch.stack([rank.vector() for rank in self.ranks]).amax(dim=0)
                states = {
                    str(decide(self.state, rank.read(reduced), self.step, BUCKETS)[0].as_dict()) for rank in self.ranks
                }
                assert len(states) == 1
                self.state, _ = decide(self.state, self.ranks[0].read(reduced), self.step, BUCKETS)
                for rank in self.ranks:
                    if self.state.plan != before:
                        rank.begin_steps()
                self.probe(line)
            elif self.alarms and any(rank.alarm(DEFAULT.collapse) for rank in self.ranks):
                self.state = replace(self.state, alarmed=True)

    def exchange_time(self, line: Line, plan: Plan) -> float:
        durations = [
            seconds(line, facts, choice, rate(choice), rate(choice)).seconds
            for facts, choice in zip(BUCKETS, plan, strict=True)
        ]
        return exposed(durations, HIDDEN)

    def exchange(self, line: Line) -> None:
        sizes = [size for facts, choice in zip(BUCKETS, self.state.plan, strict=True) for size in transfers(facts, choice)]
        for size in [4096, *sizes]:
            late = [self.random.uniform(0, 2e-4) for _ in self.ranks]
            end = max(late) + line.seconds(size) * self.random.uniform(1.0, 1.1)
            end *= 10 if self.random.random() < 0.05 else 1
            for rank, begin in zip(self.ranks, late, strict=True):
                rank.transfer("hosts", size, self.clock + begin, self.clock + end)
            self.clock += end + 1e-3
        for rank in self.ranks:
            for bucket, spare in enumerate(HIDDEN):
                rank.hidden(bucket, spare)

    def probe(self, line: Line) -> None:
        if size := self.state.probing:
            for rank in self.ranks:
                rank.expect_probe(size)
                rank.transfer("hosts", size, self.clock, self.clock + line.seconds(size))
            self.clock += line.seconds(size) + 1e-3

    def try_candidates(self) -> None:
        for rank in self.ranks:
            while (pair := rank.next_shadow(self.step, self.state.plan)) is not None:
                for tell in (rank.encoded, rank.decoded):
                    tell(pair.choice, 10**6, 10**6 * rate(pair.choice) * self.random.uniform(1.0, 1.2))
                error = ERRORS[str(pair.choice)] * self.random.uniform(0.8, 1.1)
                rank.gain(pair.bucket, pair.choice, 1 - error, 1.0 + pair.bucket)

    def best_fixed(self, line: Line, steps: slice) -> float:
        """Seconds of the best one of the plans that were in force at any time."""
        return min(self.exchange_time(line, plan) for plan in set(self.plans)) * len(self.seconds[steps])


def changes(plans: list[Plan]) -> list[int]:
    """The steps after which the plan is another one."""
    return [step for step in range(1, len(plans)) if plans[step] != plans[step - 1]]


def test_cc21_the_plan_follows_1000_to_10_to_1000_mbit_within_its_windows() -> None:
    """A collapse: with the decision that follows. Back: after 3 windows, and 100 steps after the last change."""
    for seed in range(3):
        gang = Gang(seed, alarms=False)
        gang.run(FAST, 205)
        assert set(gang.plans) == {(NONE, NONE)}, "nothing beats none on the fast link"
        gang.run(SLOW, 200)
        slow = gang.plans[205:]
        first = changes(gang.plans)[0]
        assert 205 < first <= 225
        assert slow[20][1].codec == "powersgd-int8" and len(set(slow[40:])) == 1
        gang.run(FAST, 200)
        assert gang.plans[-1] == (NONE, NONE)
        assert 405 < changes(gang.plans)[-1] <= 405 + 20 + 3 * 20
        assert len(changes(gang.plans)) <= 4


def test_cc21_with_alarms_a_collapse_costs_few_steps() -> None:
    """The settled part of each stretch is as good as the best of all plans; the change itself takes a handful of steps."""
    for seed in range(3):
        gang = Gang(seed, alarms=True)
        gang.run(FAST, 205)
        gang.run(SLOW, 200)
        assert set(gang.plans[:205]) == {(NONE, NONE)}
        first = changes(gang.plans)[0]
        assert 205 < first <= 211
        settled = slice(225, 405)
        assert sum(gang.seconds[settled]) <= 1.1 * gang.best_fixed(SLOW, settled)


def test_cc18_a_steady_link_keeps_its_plan() -> None:
    """Noise alone changes nothing, over 50 windows."""
    for line in (FAST, Line(1e-4, 8e-8), SLOW):
        gang = Gang(1, alarms=True)
        gang.run(line, 1000)
        assert len(changes(gang.plans)) <= 2
        assert sum(gang.seconds[100:]) <= 1.1 * gang.best_fixed(line, slice(100, 1000))
