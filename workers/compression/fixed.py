"""One codec for all buckets, from the dense start on (CC-14, CC-22)."""

from __future__ import annotations

from workers.collectives.buckets import BucketPlan
from workers.compression.choice import Choice, Plan
from workers.compression.controller.candidates import INT8, is_late
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.state import dense_until


class Fixed:
    """A policy that never changes its mind: `config.codec`, or int8 until the dense start is over where that needs one."""

    def __init__(self, config: ControllerConfig, planned_steps: int) -> None:
        self._choice = Choice.parse(config.codec)
        self._start = dense_until(config, planned_steps) if is_late(self._choice) else 0

    def __call__(self, plan: BucketPlan, step: int) -> Plan:
        return (self._choice if step > self._start else INT8,) * len(plan.sizes)
